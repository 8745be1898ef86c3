//! A machine whose user does his worst to the host, on a real machine, while another one goes on working. `cargo xtask
//! test` prepares the state folder; without one the tests say so.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

#[path = "support/process.rs"]
mod process;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use agentiso_core::channel::client::{CollectOptions, ExecSpec, GuestClient};
use agentiso_core::hypervisor::MachineLog;
use agentiso_core::{Config, Host, Workspace, WorkspaceSpec, WorkspaceState};

use self::process::{descriptors, status};

/// Most bytes of a machine's log (docs/threat-model.md).
const LOG_BYTES: usize = 256 * 1024;

/// Longest time for a small command of the other machine, on a busy host that emulates CPUs.
const NEIGHBOUR_LIMIT: Duration = Duration::from_secs(60);

async fn host() -> Option<Host> {
    let home = std::env::var_os("AGENTISO_HOME").filter(|_| std::env::var_os("AGENTISO_TEST_SEED").is_some());
    let Some(home) = home else {
        println!("skipped: there is no state folder with an image; `cargo xtask test` makes one");
        return None;
    };
    Some(Host::open(Config::at(PathBuf::from(home))).await.unwrap())
}

async fn machine(host: &Host) -> (Workspace, GuestClient) {
    let workspace =
        host.create(WorkspaceSpec { throwaway: true, ..WorkspaceSpec::new("debian") }).await.unwrap();
    let guest = workspace.guest().await.unwrap();
    (workspace, guest)
}

async fn run(guest: &GuestClient, line: &str, limit: Duration) -> Option<String> {
    let spec = ExecSpec::shell(line).timeout(limit);
    let output = guest.exec_collect(spec, CollectOptions::default()).await.ok()?;
    Some(format!("{}{}", output.stdout_text(), output.stderr_text()))
}

async fn works(guest: &GuestClient) {
    let begun = Instant::now();
    let output = run(guest, "echo fine", NEIGHBOUR_LIMIT).await;
    assert_eq!(output.as_deref(), Some("fine\n"), "the other machine, after {:?}", begun.elapsed());
}

/// What root in the guest can do to the channel, the console, the disk and the memory.
#[tokio::test]
async fn root_in_a_guest_costs_the_host_no_more_than_its_machine() {
    let Some(host) = host().await else { return };
    let (neighbour, other) = machine(&host).await;
    let (workspace, guest) = machine(&host).await;
    let pid = workspace.info().await.unwrap().pid.unwrap();
    let open = descriptors(pid).unwrap();
    let own = status(std::process::id(), "VmRSS:").unwrap();

    // The agent's ports are the agent's: nobody else speaks to the host through them.
    let line =
        "for port in /dev/vport*; do (exec 3<>$port) 2>/dev/null && echo opened $port; done; echo tried";
    let ports = run(&guest, line, NEIGHBOUR_LIMIT).await;
    assert_eq!(ports.as_deref(), Some("tried\n"));
    works(&other).await;

    // Without end to the console: the log stays within its bounds.
    let _ = run(&guest, "timeout 5 yes flood > /dev/console", NEIGHBOUR_LIMIT).await;
    let log = workspace.logs(MachineLog::Console, u64::MAX).await.unwrap();
    assert!(log.len() <= LOG_BYTES, "a log of {} bytes", log.len());
    works(&other).await;

    // Without end to its output: no more is kept than asked for.
    let spec = ExecSpec::shell("yes").timeout(Duration::from_secs(5));
    let output =
        guest.exec_collect(spec, CollectOptions { max_output_bytes: 1000, ..CollectOptions::default() });
    let output = output.await.unwrap();
    assert!(output.stdout.len() < 1100, "{} bytes", output.stdout.len());
    works(&other).await;

    // Its memory and its disk, to the last byte. The kernel of the guest ends what it likes but the agent.
    let _ =
        run(&guest, "timeout 20 python3 -c 'x = [bytearray(1 << 22) for _ in range(1000)]'", NEIGHBOUR_LIMIT)
            .await;
    let _ = run(&guest, "timeout 20 dd if=/dev/zero of=/full bs=1M count=256 2>&1", NEIGHBOUR_LIMIT).await;
    works(&other).await;
    works(&guest).await;

    let now = descriptors(pid).unwrap();
    assert!(now <= open + 8, "descriptors of QEMU went from {open} to {now}");
    let grown = status(std::process::id(), "VmHWM:").unwrap().saturating_sub(own);
    assert!(grown < 64 * 1024, "this process grew by {grown} KiB");
    workspace.destroy().await.unwrap();
    works(&other).await;
    neighbour.destroy().await.unwrap();
    host.close().await;
}

/// A kernel that panics ends its machine, is told as that, and nothing else is touched.
#[tokio::test]
async fn panic_of_a_guests_kernel_ends_that_machine_alone() {
    let Some(host) = host().await else { return };
    let (neighbour, other) = machine(&host).await;
    let (workspace, guest) = machine(&host).await;

    let told = run(&guest, "echo c > /proc/sysrq-trigger", Duration::from_secs(20)).await;

    assert_eq!(told, None, "the machine lives");
    let deadline = Instant::now() + NEIGHBOUR_LIMIT;
    loop {
        let summary = workspace.info().await.unwrap().summary;
        if summary.state == WorkspaceState::Stopped {
            assert!(summary.crashed, "it is told as one that was stopped");
            break;
        }
        assert!(Instant::now() < deadline, "{:?}", summary.state);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    works(&other).await;
    workspace.start().await.unwrap();
    works(&workspace.guest().await.unwrap()).await;
    workspace.destroy().await.unwrap();
    neighbour.destroy().await.unwrap();
    host.close().await;
}
