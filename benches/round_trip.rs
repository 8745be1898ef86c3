//! Round trips to a running machine: the bare channel, a ping, a command; and what a ping and a command cost over that.
//!
//! AGENTISO_BENCH_ROUND_TRIPS: how many of each, 500 unless set.

use std::{
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use agentiso_benches::{BoxError, Samples, count_from_env, run, throwaway};
use agentiso_core::{
    Host,
    channel::{
        GuestStream,
        client::{CollectOptions, ExecSpec, GuestClient},
    },
};
use agentiso_guest::{
    PROTOCOL_GENERATION,
    frame::encode_plain,
    hello::{Hello, Nonce, WelcomeScanner},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

/// A guest that is silent for this long has died.
const PATIENCE: Duration = Duration::from_secs(30);

/// Programs started by one command when the cost of starting one is measured.
const SPAWNS: u32 = 100;

/// Exchanges before the first that counts: the emulator translates code when it first runs.
const WARM_UP: usize = 20;

fn main() -> ExitCode {
    run("round_trip", measure)
}

async fn measure(host: Host) -> Result<(), BoxError> {
    let count = count_from_env("AGENTISO_BENCH_ROUND_TRIPS", 500)?;
    let workspace = throwaway(&host).await?;
    let measured = async { round_trips(&workspace.guest().await?, count).await }.await;
    workspace.destroy().await?;
    let [raw, ping, exec, spawn] = measured?;

    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
    for samples in [&raw, &ping, &exec, &spawn] {
        samples.report(&folder, &host)?;
    }
    let ping_ratio = ping.median().as_secs_f64() / raw.median().as_secs_f64();
    let least_exec = (raw.median() + spawn.median()).as_secs_f64();
    println!("a ping takes {ping_ratio:.2} times a raw round trip");
    println!(
        "a command takes {:.2} times a raw round trip and what starting a program costs",
        exec.median().as_secs_f64() / least_exec
    );
    Ok(())
}

async fn round_trips(guest: &GuestClient, count: usize) -> Result<[Samples; 4], BoxError> {
    let mut connection = guest.connect_raw().await?;
    let mut raw = Vec::new();
    for _ in 0..WARM_UP + count {
        let began = Instant::now();
        timeout(PATIENCE, hello(&mut connection)).await??;
        raw.push(began.elapsed());
    }
    drop(connection);
    let mut ping = Vec::new();
    for _ in 0..WARM_UP + count {
        let began = Instant::now();
        guest.ping().await?;
        ping.push(began.elapsed());
    }
    let mut exec = Vec::new();
    for _ in 0..WARM_UP + count {
        exec.push(time_of(guest, ExecSpec::program(["/bin/true"])).await?);
    }
    let mut spawn = Vec::new();
    for _ in 0..count.div_ceil(10) {
        spawn.push(spawn_cost(guest).await?);
    }
    Ok([
        Samples { name: "raw_round_trip", times: raw.split_off(WARM_UP) },
        Samples { name: "ping", times: ping.split_off(WARM_UP) },
        Samples { name: "exec_true", times: exec.split_off(WARM_UP) },
        Samples { name: "spawn_true_in_guest", times: spawn },
    ])
}

/// One hello and its welcome on a connection that stays open: what the channel and the agent's loop cost at least.
async fn hello(connection: &mut GuestStream) -> Result<(), BoxError> {
    let nonce = Nonce::from_bytes(uuid::Uuid::new_v4().into_bytes());
    let mut bytes = Vec::new();
    encode_plain(&mut bytes, &Hello { hello: nonce, generation: PROTOCOL_GENERATION, request: false })?;
    connection.write_all(&bytes).await?;
    let mut scanner = WelcomeScanner::new(nonce);
    let mut received = [0; 1024];
    loop {
        let read = connection.read(&mut received).await?;
        if read == 0 {
            return Err("the agent closed the connection".into());
        }
        if scanner.feed(&received[..read])?.is_some() {
            return Ok(());
        }
    }
}

async fn time_of(guest: &GuestClient, spec: ExecSpec) -> Result<Duration, BoxError> {
    let began = Instant::now();
    let output = guest.exec_collect(spec, CollectOptions::default()).await?;
    let time = began.elapsed();
    if !output.success() {
        return Err(format!("a command failed in the guest: {}", output.stderr_text()).into());
    }
    Ok(time)
}

/// What a shell in the guest needs to start and reap one program.
async fn spawn_cost(guest: &GuestClient) -> Result<Duration, BoxError> {
    let shell = |times: u32| {
        ExecSpec::shell(format!("i=0; while [ $i -lt {times} ]; do /bin/true; i=$((i+1)); done"))
    };
    let none = time_of(guest, shell(0)).await?;
    let all = time_of(guest, shell(SPAWNS)).await?;
    Ok(all.saturating_sub(none) / SPAWNS)
}
