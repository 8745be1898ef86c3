//! Workspaces whose machines run on KVM. `cargo xtask lab` has a host with KVM on any machine; elsewhere the tests say
//! that they were skipped.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

#[path = "support/lab.rs"]
mod lab;

use std::path::PathBuf;

use agentiso_core::{Config, ForkSpec, Host, WorkspaceState, hypervisor::Accelerator};
use lab::{BOOT_LIMIT, sh, throwaway};

async fn open() -> Option<Host> {
    let home = match lab::home() {
        Ok(home) => home,
        Err(reason) => {
            println!("skipped: {reason}");
            return None;
        }
    };
    let mut config = Config::at(home);
    config.accelerator = Some(Accelerator::Kvm);
    config.boot_timeout = BOOT_LIMIT;
    Some(Host::open(config).await.unwrap())
}

#[tokio::test]
async fn workspace_runs_on_kvm_with_its_clock() {
    let Some(host) = open().await else { return };
    let workspace = throwaway(&host).await;

    let kernel = sh(&workspace, "uname -s").await;
    let hypervisor =
        sh(&workspace, "grep -o -m1 hypervisor /proc/cpuinfo; dmesg | grep -o 'Hypervisor detected: .*'")
            .await;
    let clock = sh(&workspace, "cat /sys/devices/system/clocksource/clocksource0/current_clocksource").await;
    let info = workspace.info().await.unwrap();
    workspace.destroy().await.unwrap();

    assert_eq!(kernel, "Linux");
    assert_eq!(hypervisor, "hypervisor\nHypervisor detected: KVM");
    assert_eq!(clock, "kvm-clock");
    assert_eq!(info.isolation.level, "vm-kvm");
    host.close().await;
}

#[tokio::test]
async fn workspaces_are_restored_from_a_template_and_differ() {
    let Some(host) = open().await else { return };
    let one = throwaway(&host).await;
    let two = throwaway(&host).await;
    let mut restored = Vec::new();
    for workspace in [&one, &two] {
        let pid = workspace.info().await.unwrap().pid.unwrap();
        let words = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        restored.push(words.split('\0').any(|word| word == "-incoming"));
    }
    let names = [sh(&one, "hostname").await, sh(&two, "hostname").await];
    let random = "head -c 16 /dev/urandom | od -An -tx1";
    let entropy = [sh(&one, random).await, sh(&two, random).await];
    let host_time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    let guest_time: f64 = sh(&two, "date +%s.%N").await.parse().unwrap();
    for workspace in [&one, &two] {
        workspace.destroy().await.unwrap();
    }

    assert_eq!(restored, [true; 2], "neither has booted");
    assert_eq!(names, [one.name(), two.name()]);
    assert_ne!(entropy[0], entropy[1]);
    assert!((guest_time - host_time).abs() < 10.0, "{guest_time} at {host_time}");
    host.close().await;
}

#[tokio::test]
async fn live_forks_run_on_with_processes_memory_and_disk() {
    let Some(host) = open().await else { return };
    let parent = throwaway(&host).await;
    sh(&parent, "dd if=/dev/urandom of=/dev/shm/data bs=1M count=32 2>/dev/null; echo on disk > /root/file")
        .await;
    let sum = sh(&parent, "sha256sum /dev/shm/data").await;
    let counting = "sh -c 'n=0; while true; do n=$((n+1)); echo $n > /dev/shm/count; sleep 0.1; done' \
                    > /dev/null 2>&1 & echo $!";
    let pid = sh(&parent, counting).await;
    sh(&parent, "until test -s /dev/shm/count; do sleep 0.1; done").await;

    let report = parent.fork(ForkSpec { count: 2, ..ForkSpec::default() }).await.unwrap();

    assert!(report.failures.is_empty(), "{:?}", report.failures);
    println!("the parent stood still: {:?}", report.standstill);
    let mut all = vec![parent];
    for worker in &report.workers {
        assert_eq!(worker.state, WorkspaceState::Running);
        all.push(host.workspace(&worker.name).await.unwrap());
    }
    assert_eq!(all.len(), 3);
    for workspace in &all {
        assert_eq!(sh(workspace, "sha256sum /dev/shm/data").await, sum);
        assert_eq!(sh(workspace, "cat /root/file").await, "on disk");
        assert_eq!(sh(workspace, "hostname").await, workspace.name());
        let goes_on = format!(
            "kill -0 {pid} && n=$(cat /dev/shm/count); until test $(cat /dev/shm/count) -gt $n; do sleep 0.1; done"
        );
        sh(workspace, &goes_on).await;
        // What one of them writes, the others do not see.
        sh(workspace, &format!("test ! -e /root/own && echo {} > /root/own && sync", workspace.name())).await;
        assert_eq!(workspace.info().await.unwrap().isolation.level, "vm-kvm");
    }
    let pids: Vec<u32> = {
        let mut pids = Vec::new();
        for workspace in &all {
            pids.push(workspace.info().await.unwrap().pid.unwrap());
        }
        pids
    };
    for workspace in &all {
        workspace.destroy().await.unwrap();
    }
    for pid in pids {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "QEMU {pid} is left over");
    }
    host.close().await;
}

#[tokio::test]
async fn snapshot_brings_memory_and_disk_back() {
    let Some(host) = open().await else { return };
    let workspace = throwaway(&host).await;
    sh(&workspace, "echo before > /root/file; echo before > /dev/shm/file").await;

    workspace.snapshot("before").await.unwrap();
    sh(&workspace, "echo after > /root/file; echo after > /dev/shm/file; sync").await;
    workspace.restore("before").await.unwrap();
    let seen = sh(&workspace, "cat /root/file /dev/shm/file").await;
    workspace.destroy().await.unwrap();

    assert_eq!(seen, "before\nbefore");
    host.close().await;
}

/// Lets only ancestors and named processes read a process's memory, as Ubuntu does; dropped, as it was.
struct Yama {
    before: String,
}

impl Yama {
    const SCOPE: &str = "/proc/sys/kernel/yama/ptrace_scope";

    fn restrict() -> Self {
        let before = std::fs::read_to_string(Self::SCOPE).unwrap();
        std::fs::write(Self::SCOPE, "1").unwrap();
        Self { before }
    }
}

impl Drop for Yama {
    fn drop(&mut self) {
        std::fs::write(Self::SCOPE, &self.before).unwrap();
    }
}

/// The command line as an ordinary user who may use KVM.
struct User {
    home: PathBuf,
    kvm_group: u32,
}

impl User {
    const ID: u32 = 1000;

    /// With a copy of the tests' state folder.
    fn with_state_of(seed: &std::path::Path, folder: &std::path::Path) -> Self {
        use std::os::unix::fs::MetadataExt;
        let home = folder.join("home");
        let script = "chmod 755 \"$2\" && mkdir -m 700 \"$3\" \"$3/disks\" && cp -a \"$1/lib\" \"$1/images\" \"$3\" && \
                      cp -a \"$1/disks/bases\" \"$3/disks\" && chown -R \"$4:$4\" \"$3\"";
        let mut copy = std::process::Command::new("sh");
        copy.args(["-c", script, "sh"]).arg(seed).arg(folder).arg(&home).arg(Self::ID.to_string());
        assert!(copy.status().unwrap().success());
        Self { home, kvm_group: std::fs::metadata("/dev/kvm").unwrap().gid() }
    }

    fn agentiso(&self, words: &[&str]) -> String {
        use std::os::unix::process::CommandExt;
        let mut command = std::process::Command::new("setpriv");
        command.args([
            format!("--reuid={}", Self::ID),
            format!("--regid={}", Self::ID),
            format!("--groups={}", self.kvm_group),
        ]);
        // The user has no folder for temporary files of ours.
        command.arg(std::env::var_os("AGENTISO_BIN").unwrap()).args(words).env_remove("TMPDIR");
        let output = command.env("AGENTISO_HOME", &self.home).process_group(0).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(output.status.success(), "{words:?}: {text} {}", String::from_utf8_lossy(&output.stderr));
        text
    }
}

#[test]
fn ordinary_user_forks_live_where_memory_is_readable_by_ancestors_only() {
    let seed = match lab::seed() {
        Ok(seed) => seed,
        Err(reason) => return println!("skipped: {reason}"),
    };
    let _yama = Yama::restrict();
    let folder = tempfile::tempdir().unwrap();
    let user = User::with_state_of(&seed, folder.path());

    let parent = user.agentiso(&["create", "parent"]);
    user.agentiso(&["exec", &parent, "--", "sh", "-c", "echo kept > /dev/shm/file"]);
    user.agentiso(&["fork", &parent, "--count", "2", "--name", "child"]);
    let seen =
        ["child-1", "child-2"].map(|child| user.agentiso(&["exec", child, "--", "cat", "/dev/shm/file"]));
    let info = user.agentiso(&["info", "child-1", "--json"]);
    user.agentiso(&["rm", "-f", "child-1", "child-2", &parent]);

    assert_eq!(seen, ["kept", "kept"]);
    assert!(info.contains("vm-kvm"), "{info}");
}
