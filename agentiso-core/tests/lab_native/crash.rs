//! Processes that are killed at each step of creating and destroying.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::fixture::{HOME_VARIABLE, Native, config, spec};

/// How long to wait for the moment at which to kill.
const PATIENCE: Duration = Duration::from_secs(120);

/// Another process, killed when this is dropped.
struct OtherProcess(Child);

impl OtherProcess {
    fn start(native: &Native, helper: &str) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", helper]).stdout(Stdio::null());
        Self(command.env(HOME_VARIABLE, native.home.path()).spawn().unwrap())
    }

    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for OtherProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn open_host() -> agentiso_core::Host {
    let home = std::env::var_os(HOME_VARIABLE).expect("the test that starts this names the state folder");
    agentiso_core::Host::open(config(home.as_ref())).await.unwrap()
}

/// Not a test of its own: the process that is killed.
#[tokio::test]
#[ignore = "helper process of killed_creation_leaves_nothing"]
async fn helper_process_that_creates() {
    let mut spec = spec();
    spec.throwaway = true;
    let _workspace = open_host().await.create(spec).await.unwrap();
    std::future::pending::<()>().await;
}

/// Not a test of its own: the process that is killed.
#[tokio::test]
#[ignore = "helper process of killed_destruction_is_finished_by_the_next_opener"]
async fn helper_process_that_destroys() {
    open_host().await.workspace("victim").await.unwrap().destroy().await.unwrap();
    std::future::pending::<()>().await;
}

/// Waits until a machine has something whose line contains this.
async fn wait_for(native: &Native, what: &str, before: usize) {
    let deadline = Instant::now() + PATIENCE;
    while native.left().iter().filter(|line| line.contains(what)).count() <= before {
        assert!(Instant::now() < deadline, "there never was {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_creation_leaves_nothing() {
    let Some(native) = Native::new().await else { return };
    let host = native.open().await;
    host.warm("debian", spec().resources).await.unwrap();
    host.close().await;
    drop(host);
    let before = native.left();
    assert_eq!(before.len(), 1, "the template's volume: {before:?}");
    // In the order in which they are made, and once when it runs.
    for (step, wait) in [
        (native.dataset.as_str(), Duration::ZERO),
        ("VsockCid", Duration::ZERO),
        ("Address", Duration::ZERO),
        ("\"at", Duration::ZERO),
        ("/sys/fs/cgroup/", Duration::ZERO),
        ("agentiso-", Duration::ZERO),
        ("agentiso-", Duration::from_secs(3)),
    ] {
        let there = before.iter().filter(|line| line.contains(step)).count();
        let mut other = OtherProcess::start(&native, "crash::helper_process_that_creates");
        wait_for(&native, step, there).await;
        tokio::time::sleep(wait).await;
        other.kill();

        let host = native.open().await;

        assert_eq!(native.left(), before, "killed when there was {step}, after {wait:?}");
        assert_eq!(host.list().await.unwrap(), []);
        host.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_destruction_is_finished_by_the_next_opener() {
    let Some(native) = Native::new().await else { return };
    let host = native.open().await;
    host.warm("debian", spec().resources).await.unwrap();
    let before = native.left();
    // Before anything is gone, and when each thing is.
    for step in ["", "agentiso-", "/sys/fs/cgroup/", "\"at", "VsockCid"] {
        host.create(spec().name("victim").unwrap()).await.unwrap();
        let mut other = OtherProcess::start(&native, "crash::helper_process_that_destroys");
        let deadline = Instant::now() + PATIENCE;
        while !step.is_empty() && native.left().iter().any(|line| line.contains(step)) {
            assert!(Instant::now() < deadline, "there still is {step}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        other.kill();

        let opened = native.open().await;

        if let Ok(untouched) = opened.workspace("victim").await {
            untouched.destroy().await.unwrap();
            assert_eq!(step, "", "it was being destroyed");
        }
        assert_eq!(native.left(), before, "killed when there was no {step}");
        opened.close().await;
    }
    host.close().await;
}
