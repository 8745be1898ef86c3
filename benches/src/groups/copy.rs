//! Files into a machine and out of it, beside scp over a kept connection.

use std::time::{Duration, Instant};

use agentiso_core::channel::client::{FileRange, GuestClient, WriteOptions};
use tokio::fs::File;

use super::spec;
use crate::{
    Done,
    run::Bench,
    series::{Series, Unit},
    ssh::Ssh,
    table::{Against, Target},
};

const MIB: u32 = 32;

const SAMPLES: usize = 8;

const GUEST_PATH: &str = "/root/copy";

pub(super) async fn measure(bench: &mut Bench) -> Done {
    let mut spec = spec(2)?;
    spec.forwards.insert(Ssh::guest_port()?, None);
    let machine = bench.host.create(spec).await?;
    let ssh = Ssh::set_up(&machine).await;
    let guest = machine.guest().await?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("file");
    std::fs::write(&path, content())?;
    let path = path.to_str().ok_or("the folder for temporary files has no plain name")?;
    let back = format!("{path}.back");
    let series = |name: &str| Series::new(format!("{name}, {MIB} MiB"), Unit::MebibytesPerSecond);
    let [mut into, mut out] = ["file into the machine", "file out of the machine"].map(series);
    let [mut scp_into, mut scp_out] = ["scp into the machine", "scp out of the machine"].map(series);
    for _ in 0..bench.options.samples(SAMPLES) {
        into.add_value(rate(write(&guest, path).await?));
        out.add_value(rate(read(&guest, &back).await?));
        if let Ok(ssh) = &ssh {
            let there = format!("guest:{GUEST_PATH}");
            scp_into.add_value(rate(ssh.copy(path, &there)?));
            scp_out.add_value(rate(ssh.copy(&there, &back)?));
        }
    }
    let table = &mut bench.table;
    table.compare(into, Against::median(&scp_into), Some(Target::AtLeastTimes(1.0)));
    table.compare(out, Against::median(&scp_out), Some(Target::AtLeastTimes(1.0)));
    match ssh {
        Ok(ssh) => {
            table.add(scp_into);
            table.add(scp_out);
            ssh.close();
        }
        Err(error) => table.not_measured("scp", error.to_string()),
    }
    machine.destroy().await?;
    Ok(())
}

/// Bytes that no layer on the way could make fewer of.
fn content() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::new();
    for _ in 0..MIB * 1024 * 128 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes
}

async fn write(guest: &GuestClient, path: &str) -> Done<Duration> {
    let begun = Instant::now();
    let mut file = File::open(path).await?;
    guest.write_file(GUEST_PATH, WriteOptions::default(), &mut file).await?;
    Ok(begun.elapsed())
}

async fn read(guest: &GuestClient, path: &str) -> Done<Duration> {
    let begun = Instant::now();
    let mut file = File::create(path).await?;
    guest.read_file_to(GUEST_PATH, FileRange::default(), &mut file).await?;
    tokio::io::AsyncWriteExt::flush(&mut file).await?;
    Ok(begun.elapsed())
}

fn rate(time: Duration) -> f64 {
    f64::from(MIB) / time.as_secs_f64()
}
