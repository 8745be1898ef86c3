//! Real machines whose process 1, the agent, does its worst, while another machine goes on working. They have a state
//! folder of their own, whose initramfs has the test build of the agent (feature `hostile`); it behaves until it is told
//! not to. `cargo xtask test` builds it and prepares the other state folder; without that one the test says so.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod homes;
#[path = "hostile_agent/operations.rs"]
mod operations;
#[path = "support/process.rs"]
mod process;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use agentiso_core::channel::client::{CollectOptions, ExecSpec, GuestClient};
use agentiso_core::hypervisor::MachineLog;
use agentiso_core::image::assets::{InstallOptions, install};
use agentiso_core::types::Resources;
use agentiso_core::{Config, Host, Workspace, WorkspaceSpec, WorkspaceState};
use tokio::task::JoinSet;

use self::{
    operations::operations,
    process::{descriptors, status},
};

/// How the agents misbehave, and what comes of operations on their machines.
const MODES: [(&str, Expected); 13] = [
    ("random", Expected::AllFail),
    ("huge-length", Expected::AllFail),
    ("out-of-order", Expected::AllFail),
    ("replay", Expected::AllFail),
    ("deaf", Expected::AllFail),
    ("slow", Expected::AllFail),
    ("flood", Expected::AllFail),
    ("endless", Expected::OutputIsCut),
    ("lies", Expected::Believed),
    ("wrong-seal", Expected::AllFail),
    ("hang-up", Expected::AllFail),
    ("reboot", Expected::MachineEnds),
    ("exhaust", Expected::MachineMayEnd),
];

/// What comes of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    AllFail,
    /// A command's output is cut at its limit; what else there is fails.
    OutputIsCut,
    /// What a guest says of itself is its own business; but that it is shut down is looked at.
    Believed,
    /// They fail, and the machine is seen as stopped.
    MachineEnds,
    /// They fail, and the machine goes on or is seen as stopped.
    MachineMayEnd,
}

/// Machines are as small as they can be: there are many at once.
const RESOURCES: &str = r#"{"vcpus":1,"memory_mb":256,"disk_gb":5}"#;

/// How long a small command of the machine that behaves may take, on a busy host that emulates CPUs.
const NEIGHBOUR_LIMIT: Duration = Duration::from_secs(60);

/// How long it may take to end a machine that does not cooperate.
const END_LIMIT: Duration = Duration::from_secs(60);

/// Memory that this process may take for all machines together, in KiB: no more than for one (see `hostile_agent`).
const MEMORY_KIB: u64 = 96 * 1024;

/// Memory of a machine's process beside the guest's, in KiB: what QEMU itself takes, emulated code included.
const OVERHEAD_KIB: u64 = 512 * 1024;

/// Most bytes of a machine's log (docs/threat-model.md).
const LOG_BYTES: usize = 256 * 1024;

const AGENT_TARGET: &str = "x86_64-unknown-linux-gnu";

/// The agent, static as the one of a release: it is process 1 of a machine without a libc.
fn hostile_program() -> PathBuf {
    if let Some(program) = std::env::var_os("AGENTISO_TEST_HOSTILE_AGENT") {
        return PathBuf::from(program);
    }
    // This program is target/debug/deps/vm_hostile_agent-HASH.
    let here = std::env::current_exe().unwrap();
    let target = here.ancestors().nth(3).unwrap().join("hostile");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--release", "--target", AGENT_TARGET, "--package", "agentiso-guest"])
        .args(["--features", "hostile", "--bin", "agentiso-guest", "--target-dir"])
        .arg(&target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(built.status.success(), "the agent: {}", String::from_utf8_lossy(&built.stderr));
    target.join(AGENT_TARGET).join("release/agentiso-guest")
}

/// A state folder whose machines have the hostile agent. Dropped, nothing of it is left, whatever became of the test.
struct HostileHome {
    folder: tempfile::TempDir,
}

impl HostileHome {
    /// Makes one beside the other, with whose files it shares what they have in common.
    fn beside(home: &Path) -> Self {
        let folder = homes::folder_beside(home, "hostile-");
        homes::bring(home, folder.path(), &["-al"]);
        let options = InstallOptions {
            agent: Some(hostile_program()),
            shim: Some(home.join("lib/agentiso-shim")),
            ..InstallOptions::default()
        };
        // Files that differ are replaced, not written to: the other folder keeps its own.
        let report = install(folder.path(), &options, &|_| {}).unwrap();
        assert!(report.written.contains(&"initramfs"), "{:?}", report.written);
        Self { folder }
    }

    fn config(&self) -> Config {
        Config::at(self.folder.path())
    }
}

impl Drop for HostileHome {
    fn drop(&mut self) {
        homes::destroy_all(Config::at(self.folder.path()));
    }
}

async fn machine(host: &Host) -> (Workspace, GuestClient) {
    let resources: Resources = serde_json::from_str(RESOURCES).unwrap();
    let spec = WorkspaceSpec { throwaway: true, ..WorkspaceSpec::new("debian").resources(resources) };
    let workspace = host.create(spec).await.unwrap();
    let guest = workspace.guest().await.unwrap();
    (workspace, guest)
}

async fn works(guest: &GuestClient) {
    let begun = Instant::now();
    let spec = ExecSpec::shell("echo fine").timeout(NEIGHBOUR_LIMIT);
    let output = guest.exec_collect(spec, CollectOptions::default()).await;
    let told = output.map(|output| output.stdout_text().into_owned());
    assert_eq!(
        told.as_deref().ok(),
        Some("fine\n"),
        "the other machine, after {:?}: {told:?}",
        begun.elapsed()
    );
}

/// Tells a machine's agent to misbehave, tries everything on it, and ends it.
async fn survive(
    workspace: Workspace,
    guest: GuestClient,
    mode: &'static str,
    expected: Expected,
) -> &'static str {
    let pid = workspace.info().await.unwrap().pid.unwrap();
    let open = descriptors(pid).unwrap_or(0);
    let spec = ExecSpec::program(["agentiso-hostile", mode]);
    let told = guest.exec_collect(spec, CollectOptions::default()).await.unwrap();
    assert!(told.success(), "there is no mode {mode}");

    let client = guest.with_connect_limit(Duration::from_secs(3));
    let mut tries = JoinSet::new();
    operations(&client, &mut tries);
    while let Some(tried) = tries.join_next().await {
        let (name, result) = tried.unwrap();
        let may_work =
            expected == Expected::Believed || (expected == Expected::OutputIsCut && name == "exec");
        assert!(result.is_err() || may_work, "{mode}: {name} succeeded");
    }
    let summary = workspace.info().await.unwrap().summary;
    if summary.state == WorkspaceState::Running {
        assert_ne!(expected, Expected::MachineEnds, "{mode}: it runs");
        // What needs the agent's help is refused, and leaves nothing.
        let kept = workspace.snapshot("s").await;
        assert!(
            kept.is_err() || expected == Expected::Believed,
            "{mode}: an agent that misbehaves has flushed its file systems"
        );
        assert_eq!(workspace.snapshots().await.unwrap().len(), usize::from(kept.is_ok()), "{mode}");
    } else {
        assert!(
            matches!(expected, Expected::MachineEnds | Expected::MachineMayEnd),
            "{mode}: it does not run"
        );
        assert_eq!((summary.state, summary.crashed), (WorkspaceState::Stopped, true), "{mode}");
    }

    let now = descriptors(pid).unwrap_or(0);
    assert!(now <= open + 8, "{mode}: descriptors of QEMU went from {open} to {now}");
    if let Some(resident) = status(pid, "VmRSS:") {
        let most = OVERHEAD_KIB + 256 * 1024;
        assert!(resident < most, "{mode}: QEMU has {resident} KiB");
    }
    let log = workspace.logs(MachineLog::Console, u64::MAX).await.unwrap();
    assert!(log.len() <= LOG_BYTES, "{mode}: a log of {} bytes", log.len());
    let begun = Instant::now();
    if expected == Expected::MachineEnds {
        workspace.start().await.unwrap();
        works(&workspace.guest().await.unwrap()).await;
    }
    if matches!(mode, "deaf" | "lies") {
        workspace.stop().await.unwrap();
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{mode}: stopped, and process {pid} is there");
    }
    workspace.destroy().await.unwrap();
    assert!(begun.elapsed() < END_LIMIT, "{mode}: ended after {:?}", begun.elapsed());
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{mode}: process {pid} is still there");
    mode
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_that_misbehaves_as_process_1_costs_the_host_no_more_than_its_machine() {
    let Some(home) = homes::prepared() else { return };
    let begun = Instant::now();
    let hostile_home = HostileHome::beside(&home);
    let good_host = Host::open(Config::at(&home)).await.unwrap();
    let host = Host::open(hostile_home.config()).await.unwrap();
    let (neighbour, other) = machine(&good_host).await;
    let mut machines = Vec::new();
    for _ in MODES {
        machines.push(machine(&host).await);
    }
    works(&other).await;
    println!("machines after {:?}", begun.elapsed());
    let own = std::process::id();
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before =
        (status(own, "VmRSS:").unwrap(), status(own, "Threads:").unwrap(), descriptors(own).unwrap());

    let mut modes = JoinSet::new();
    for ((workspace, guest), (mode, expected)) in machines.into_iter().zip(MODES) {
        modes.spawn(survive(workspace, guest, mode, expected));
    }
    let mut served = 0;
    while !modes.is_empty() {
        tokio::select! {
            ended = modes.join_next() => {
                println!("{} was over after {:?}", ended.unwrap().unwrap(), begun.elapsed());
            }
            () = works(&other) => served += 1,
        }
    }

    works(&other).await;
    let (peak, threads) = (status(own, "VmHWM:").unwrap(), status(own, "Threads:").unwrap());
    println!(
        "{} KiB more at most, {served} commands of the neighbour meanwhile",
        peak.saturating_sub(before.0)
    );
    assert!(served > 0, "the other machine did nothing meanwhile");
    assert!(peak < before.0 + MEMORY_KIB, "memory went from {} to {peak} KiB", before.0);
    // Blocking work has threads of its own, which stay for a while.
    assert!(threads <= before.1 + 64, "threads went from {} to {threads}", before.1);
    neighbour.destroy().await.unwrap();
    host.close().await;
    good_host.close().await;
    let open = descriptors(own).unwrap();
    assert!(open <= before.2 + 2, "descriptors went from {} to {open}", before.2);
}
