//! What one exchange with a running machine takes.

use std::time::{Duration, Instant};

use agentiso_core::{
    Workspace,
    channel::{
        GuestStream,
        client::{CollectOptions, ExecSpec, GuestClient},
    },
};
use agentiso_guest::{
    frame::encode_plain,
    hello::{Nonce, WelcomeScanner},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::spec;
use crate::{
    Done,
    run::Bench,
    series::Series,
    ssh::Ssh,
    table::{Against, Target},
};

/// A guest that is silent for this long has died.
const PATIENCE: Duration = Duration::from_secs(30);

/// Rounds, each of one of everything that is compared.
const ROUNDS: usize = 300;

/// Rounds before the first that counts: the emulator translates code when it first runs.
const WARM_UP: usize = 20;

/// In how many of the rounds the guest's own cost is measured, and ssh: each takes longer than all the rest.
const SLOW_EVERY: usize = 5;

/// Times programs that it starts itself, each from before its start until it was waited for; prints microseconds.
const SPAWN: &str = "import os,time
for _ in range(10):
    begun = time.monotonic_ns()
    os.waitpid(os.posix_spawn('/bin/true', ['true'], os.environ), 0)
    print((time.monotonic_ns() - begun) / 1000)";

pub(super) async fn measure(bench: &mut Bench) -> Done {
    let mut spec = spec(2)?;
    spec.forwards.insert(Ssh::guest_port()?, None);
    let machine = bench.host.create(spec).await?;
    let ssh = Ssh::set_up(&machine).await;
    let guest = machine.guest().await?;
    let mut raw = Series::times("raw round trip");
    let mut ping = Series::times("ping");
    let mut spawn = Series::times("the guest's own start of `true`");
    let mut exec = Series::times("exec of `true`");
    let mut ssh_exec = Series::times("`true` by ssh, kept connection");
    let mut connection = guest.connect_raw().await?;
    let rounds = bench.options.samples(ROUNDS);
    for number in 0..WARM_UP + rounds {
        // Each comes first in its turn: whatever the last round left behind meets all of them.
        let (mut raw_time, mut ping_time, mut exec_time) = Default::default();
        for turn in 0..3 {
            match (number + turn) % 3 {
                0 => raw_time = timed(hello(&mut connection)).await?,
                1 => ping_time = timed(guest.ping()).await?,
                _ => exec_time = exec_true(&guest).await?,
            }
        }
        if number < WARM_UP {
            continue;
        }
        raw.add(raw_time);
        ping.add(ping_time);
        exec.add(exec_time);
        if number % SLOW_EVERY == 0 {
            guest_spawns(&machine, &mut spawn).await?;
            if let Ok(ssh) = &ssh {
                ssh_exec.add(ssh.run_true()?);
            }
        }
    }
    let table = &mut bench.table;
    table.add(raw.clone());
    table.compare(ping, Against::median(&raw), Some(Target::AtMostTimes(1.3)));
    table.add(spawn.clone());
    let least = raw.median().zip(spawn.median()).map(|(raw, spawn)| raw + spawn);
    let least = least.map(|least| Against::value("raw round trip + guest's own start", least));
    table.compare(exec.clone(), least, Some(Target::AtMostTimes(1.5)));
    match ssh {
        Ok(ssh) => {
            table.compare(ssh_exec, Against::median(&exec), Some(Target::AtLeastTimes(1.0)));
            ssh.close();
        }
        Err(error) => table.not_measured("`true` by ssh, kept connection", error.to_string()),
    }
    machine.destroy().await?;
    Ok(())
}

async fn timed<T, E: Into<crate::BoxError>>(work: impl Future<Output = Result<T, E>>) -> Done<Duration> {
    let begun = Instant::now();
    work.await.map_err(Into::into)?;
    Ok(begun.elapsed())
}

/// A hello and its welcome on a connection that stays open: what the channel and the agent's loop cost at least.
async fn hello(connection: &mut GuestStream) -> Done {
    let nonce = Nonce::from_bytes(uuid::Uuid::new_v4().into_bytes());
    let mut bytes = Vec::new();
    encode_plain(&mut bytes, &connection.introduction().hello(nonce, false))?;
    connection.write_all(&bytes).await?;
    let mut scanner = WelcomeScanner::new(nonce);
    let mut received = [0; 1024];
    loop {
        let read = timeout(PATIENCE, connection.read(&mut received)).await??;
        if read == 0 {
            return Err("the agent closed the connection".into());
        }
        if scanner.feed(&received[..read])?.is_some() {
            return Ok(());
        }
    }
}

async fn exec_true(guest: &GuestClient) -> Done<Duration> {
    let begun = Instant::now();
    let output = guest.exec_collect(ExecSpec::program(["/bin/true"]), CollectOptions::default()).await?;
    let time = begun.elapsed();
    if !output.success() {
        return Err("`true` failed in the guest".into());
    }
    Ok(time)
}

/// What the guest needs for the same by itself.
async fn guest_spawns(machine: &Workspace, series: &mut Series) -> Done {
    let spec = ExecSpec::program(["python3", "-c", SPAWN]);
    let output = machine.exec_with(spec, CollectOptions::default()).await?;
    if !output.success() {
        return Err(Bench::error(format!("python3 failed in the guest: {}", output.stderr_text())));
    }
    // The first of each process is slower: it is the one in which memory is copied that was only mapped.
    for line in output.stdout_text().lines().skip(1) {
        series.add_value(line.trim().parse::<f64>()? / 1e3);
    }
    Ok(())
}
