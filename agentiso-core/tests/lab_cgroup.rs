//! Machines in groups of cgroup v2 that limit them. `cargo xtask lab` has a host with it; elsewhere the tests say that
//! they were skipped.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    dead_code,
    reason = "tests, and a fixture shared with others"
)]
#![allow(clippy::cast_possible_truncation, reason = "a fixture shared with others")]

#[path = "qemu/fixture.rs"]
mod fixture;
#[path = "qemu/guest.rs"]
mod guest;
#[path = "support/lab.rs"]
mod lab;

use std::path::{Path, PathBuf};

use agentiso_core::hypervisor::{
    Accelerator, Hypervisor, Machine, MachineStatus,
    qemu::{DiskLimits, MachineLimits, Qemu},
};
use fixture::{Fixture, PATIENCE};

/// What the machines' code runs on.
const ACCELERATOR: Accelerator = Accelerator::Kvm;

const MIB: u64 = 1024 * 1024;

async fn fixture() -> Option<Fixture> {
    match Fixture::new().await {
        Ok(fixture) => Some(fixture),
        Err(reason) => {
            println!("skipped: {reason}");
            None
        }
    }
}

async fn limited(fixture: &Fixture) -> Qemu {
    let disk = Some(DiskLimits { read_bytes: 100 * MIB, write_bytes: 50 * MIB });
    let limits = MachineLimits { required: true, disk, ..MachineLimits::default() };
    fixture.qemu().await.with_limits(limits).unwrap()
}

/// The group that the kernel says a machine is in.
fn group_of(machine: &Machine) -> PathBuf {
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", machine.process.pid)).unwrap();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    Path::new("/sys/fs/cgroup").join(group)
}

fn value(group: &Path, file: &str) -> String {
    std::fs::read_to_string(group.join(file)).unwrap().trim().to_owned()
}

fn kill_process(machine: &Machine) {
    let pid = rustix::process::Pid::from_raw(machine.process.pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machine_is_in_a_group_of_its_own_with_limits_and_usage() {
    let Some(fixture) = fixture().await else { return };
    let qemu = limited(&fixture).await;
    let spec = fixture.new_spec().await;
    let vcpus = spec.vcpus.get();

    let machine = qemu.launch(spec).await.unwrap();

    let group = group_of(&machine);
    let name = format!("{}-{}", fixture.state_id, machine.id);
    assert_eq!(group, Path::new("/sys/fs/cgroup/agentiso").join(name));
    assert_eq!(value(&group, "memory.max"), ((128 + 2 + 256) * MIB).to_string());
    if group.join("memory.swap.max").exists() {
        assert_eq!(value(&group, "memory.swap.max"), "0");
    }
    assert_eq!(value(&group, "memory.oom.group"), "1");
    assert_eq!(value(&group, "cpu.max"), format!("{} 100000", u64::from(vcpus) * 100_000));
    assert_eq!(value(&group, "pids.max"), "256");
    let io = value(&group, "io.max");
    println!("io.max: {io:?}");
    assert!(io.contains("rbps=104857600 wbps=52428800"), "{io}");
    let usage = qemu.limited_usage(&machine).unwrap();
    assert!(usage.memory_bytes > MIB && usage.threads > 1, "{usage:?}");
    assert!(usage.cpu_us > 0, "{usage:?}");
    let said = qemu.capabilities();
    assert!(said.confinement.iter().any(|line| line.contains("cgroup v2")), "{said:?}");
    qemu.kill(&machine).await.unwrap();
    assert!(!group.exists());
    assert_eq!(qemu.limited_usage(&machine), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_hog_is_ended_and_nobody_else_is() {
    let Some(fixture) = fixture().await else { return };
    let qemu = limited(&fixture).await;
    let hog = qemu.launch(fixture.new_spec().await).await.unwrap();
    let other = qemu.launch(fixture.new_spec().await).await.unwrap();
    let group = group_of(&hog);

    let socket = hog.run_dir.join("qmp");
    tokio::task::spawn_blocking(move || lab::hog_memory(&socket, 1024 * MIB)).await.unwrap();

    assert!(qemu.wait_exit(&hog, PATIENCE).await.unwrap(), "it runs on");
    let events = value(&group, "memory.events");
    assert!(events.lines().any(|line| line.starts_with("oom_kill ") && !line.ends_with(" 0")), "{events}");
    assert_eq!(qemu.status(&other).await.unwrap(), MachineStatus::Running);
    for machine in [&hog, &other] {
        qemu.kill(machine).await.unwrap();
    }
    assert!(!group.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_that_a_crash_left_are_gone_after_opening() {
    let Some(fixture) = fixture().await else { return };
    let qemu = limited(&fixture).await;
    let [ended, stray] = [fixture.new_spec().await, fixture.new_spec().await];
    let (ended, stray) = (qemu.launch(ended).await.unwrap(), qemu.launch(stray).await.unwrap());
    let groups = [group_of(&ended), group_of(&stray)];
    kill_process(&ended);
    assert!(qemu.wait_exit(&ended, PATIENCE).await.unwrap());

    let opened = limited(&fixture).await;

    assert!(!groups[0].exists() && groups[1].exists(), "{groups:?}");
    for (_, process) in opened.processes().await.unwrap() {
        opened.kill_process(&process).await.unwrap();
    }
    assert!(!groups[1].exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_launch_leaves_no_group() {
    let Some(fixture) = fixture().await else { return };
    let qemu = limited(&fixture).await;
    let mut spec = fixture.new_spec().await;
    let id = spec.id;
    spec.kernel = fixture.path().join("garbage");
    std::fs::write(&spec.kernel, "this is no kernel").unwrap();
    fixture::set_mode(&spec.kernel, 0o644);

    assert!(qemu.launch(spec).await.is_err());

    assert!(!Path::new("/sys/fs/cgroup/agentiso").join(format!("{}-{id}", fixture.state_id)).exists());
}
