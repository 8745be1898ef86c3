//! From `create` to the end of the first command, on a machine that boots from nothing.
//!
//! AGENTISO_BENCH_BOOTS: how many machines, 5 unless set.

use std::{path::Path, process::ExitCode, time::Instant};

use agentiso_benches::{BoxError, Samples, count_from_env, run, throwaway};
use agentiso_core::Host;

fn main() -> ExitCode {
    run("cold_boot", measure)
}

async fn measure(host: Host) -> Result<(), BoxError> {
    let boots = count_from_env("AGENTISO_BENCH_BOOTS", 5)?;
    let mut times = Vec::new();
    for _ in 0..boots {
        let began = Instant::now();
        let workspace = throwaway(&host).await?;
        let output = workspace.exec("true").await;
        times.push(began.elapsed());
        workspace.destroy().await?;
        if !output?.success() {
            return Err("`true` failed in the guest".into());
        }
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
    Samples { name: "cold_boot", times }.report(&folder, &host)?;
    Ok(())
}
