//! Processes that are killed at each step of creating and destroying.

use std::time::{Duration, Instant};

use crate::{
    fixture::{HOME_VARIABLE, Native, config, spec},
    lab::OtherProcess,
};

/// How long to wait for the moment at which to kill.
const PATIENCE: Duration = Duration::from_secs(120);

/// Stands for the volumes of the test's own dataset.
const VOLUME: &str = "volume";

fn start(native: &Native, helper: &str) -> OtherProcess {
    OtherProcess::start(helper, &[(HOME_VARIABLE, &native.home)])
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

/// How much there is whose line contains this.
fn count(lines: &[String], what: &str) -> usize {
    lines.iter().filter(|line| line.contains(what)).count()
}

/// Waits until there is more, or less, of something than there was.
async fn wait_until(native: &Native, what: &str, is: impl Fn(usize) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is(count(&native.left(), what)) {
        assert!(Instant::now() < deadline, "nothing changes about {what}: {:?}", native.left());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_creation_leaves_nothing() {
    let Some(native) = Native::shared().await else { return };
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
        let there = count(&before, step);
        let mut other = start(&native, "crash::helper_process_that_creates");
        wait_until(&native, step, |now| now > there).await;
        tokio::time::sleep(wait).await;
        other.kill();

        let host = native.open().await;

        assert_eq!(native.left(), before, "killed when there was {step}, after {wait:?}");
        assert_eq!(host.list().await.unwrap(), []);
        host.close().await;
    }
}

/// Kills a process that destroys a workspace as soon as these are gone, once for each.
async fn kill_destruction_without(steps: &[&str]) {
    let Some(native) = Native::shared().await else { return };
    let host = native.open().await;
    let before = native.left();
    for &step in steps {
        let step = if step == VOLUME { native.dataset.as_str() } else { step };
        let there = count(&before, step);
        host.create(spec().name("victim").unwrap()).await.unwrap();
        let mut other = start(&native, "crash::helper_process_that_destroys");
        if !step.is_empty() {
            wait_until(&native, step, |now| now <= there).await;
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

// Two tests, because one that takes five minutes is ended.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_destruction_is_finished_by_the_next_opener() {
    // Before anything is gone, and when the machine is.
    kill_destruction_without(&["", "agentiso-", "/sys/fs/cgroup/", "\"at"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_destruction_is_finished_when_the_network_and_the_disk_are_gone() {
    kill_destruction_without(&["agbr", "Address", "VsockCid", VOLUME]).await;
}
