//! How long a machine stands still when it is forked, by what it has written to its memory.

use std::time::Instant;

use agentiso_core::{Host, Workspace, channel::client::Command};

use super::{destroy, fork, machine, run};
use crate::{
    Done,
    run::Bench,
    series::Series,
    table::{Against, Target},
};

const WRITTEN_MIB: [u64; 4] = [1, 16, 64, 256];

/// The one that has a target.
const TARGET_MIB: u64 = 16;

const SAMPLES: usize = 30;

const MIB: f64 = 1024.0 * 1024.0;

/// Writes to so much memory that it had not touched before, then looks at the clock as often as it can, and says the
/// longest time between two looks to whoever asks: a signal, answered through a pipe.
const WATCH: &str = "import mmap,os,signal,sys,time
size = int(sys.argv[1]) << 20
memory = mmap.mmap(-1, size)
for at in range(0, size, 4096):
    memory[at] = 1
worst = 0
last = time.monotonic_ns()
def say(*_):
    global worst, last
    with open('/run/watch.answer', 'w') as pipe:
        pipe.write(str(worst))
    worst = 0
    last = time.monotonic_ns()
signal.signal(signal.SIGUSR1, say)
with open('/run/watch.answer', 'w') as pipe:
    pipe.write(str(os.getpid()))
last = time.monotonic_ns()
while True:
    now = time.monotonic_ns()
    worst = max(worst, now - last)
    last = now
";

pub(super) async fn measure(bench: &mut Bench) -> Done {
    for mib in WRITTEN_MIB {
        measure_one(bench, mib).await?;
    }
    Ok(())
}

async fn measure_one(bench: &mut Bench, mib: u64) -> Done {
    let parent = machine(&bench.host, 2).await?;
    let watcher = watch(&parent, mib).await?;
    let mut pause = Series::times(format!("parent's pause, {mib} MiB written by a program"));
    let mut stall = Series::times(format!("  from freeze to thaw, {mib} MiB"));
    let mut seen = Series::times(format!("  longest gap that user code saw, {mib} MiB"));
    let mut copy = Series::times(format!("  memcpy of what was written, {mib} MiB"));
    let mut written = Series::new(
        format!("  all that the parent had written, {mib} MiB by a program"),
        crate::series::Unit::Mebibytes,
    );
    for _ in 0..bench.options.samples(SAMPLES) {
        ask(&parent, &watcher).await?;
        let standstill = standstill(&bench.host, &parent).await?;
        let gap = ask(&parent, &watcher).await?;
        pause.add_value(millis(standstill.paused_us));
        stall.add_value(millis(standstill.stalled_us));
        seen.add_value(gap / 1e6);
        written.add_value(as_f64(standstill.written_bytes) / MIB);
        copy.add_value(memcpy_ms(usize::try_from(standstill.written_bytes)?));
    }
    parent.destroy().await?;
    let target = (mib == TARGET_MIB).then_some(Target::AtMostTimesPlus(3.0, 8.0));
    bench.table.compare(pause, Against::median(&copy), target);
    bench.table.compare(seen, Against::median(&stall), None);
    bench.table.add(stall);
    bench.table.add(copy);
    bench.table.add(written);
    Ok(())
}

async fn standstill(host: &Host, parent: &Workspace) -> Done<agentiso_core::Standstill> {
    let (children, report) = fork(host, parent, 1).await?;
    destroy(&children).await?;
    report.standstill.ok_or_else(|| Bench::error("the fork does not say how long its parent stood still"))
}

/// Starts the program in a machine; returns its process id there.
async fn watch(machine: &Workspace, mib: u64) -> Done<String> {
    run(machine, "mkfifo /run/watch.answer").await?;
    let argv = ["python3", "-c", WATCH, &mib.to_string()].map(str::to_owned).to_vec();
    machine.guest().await?.job_start(Command { argv, ..Command::default() }).await?;
    run(machine, "cat /run/watch.answer").await
}

/// The longest gap since the last question, in nanoseconds.
async fn ask(machine: &Workspace, watcher: &str) -> Done<f64> {
    let answer = run(machine, &format!("kill -USR1 {watcher} && cat /run/watch.answer")).await?;
    Ok(answer.trim().parse()?)
}

/// How long it takes to copy so many bytes into memory that was touched before.
fn memcpy_ms(bytes: usize) -> f64 {
    let from = vec![1_u8; bytes];
    let mut to = vec![2_u8; bytes];
    let begun = Instant::now();
    to.copy_from_slice(std::hint::black_box(&from));
    let time = begun.elapsed();
    std::hint::black_box(&to);
    time.as_secs_f64() * 1e3
}

fn millis(microseconds: u64) -> f64 {
    as_f64(microseconds) / 1e3
}

/// Exact for whatever is measured here: below 2^53.
fn as_f64(number: u64) -> f64 {
    let high = u32::try_from(number >> 32).unwrap_or(u32::MAX);
    let low = u32::try_from(number & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}
