//! QEMU is killed in the middle of everything that a workspace can be doing: whoever waits is told, the workspace is seen
//! as stopped by a crash, and it starts again with what its disk holds. `cargo xtask test` prepares the state folder;
//! without one the test says so.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

#[allow(dead_code, reason = "other tests need more of it")]
mod homes;

use std::time::{Duration, Instant};

use agentiso_core::types::Resources;
use agentiso_core::{Config, EngineError, ForkSpec, Host, Workspace, WorkspaceSpec, WorkspaceState};

/// Machines are as small as they can be: this boots several.
const RESOURCES: &str = r#"{"vcpus":1,"memory_mb":256,"disk_gb":5}"#;

/// How long whoever waits may have to wait until he is told, on a busy host: far less than what is waited for.
const TOLD_WITHIN: Duration = Duration::from_secs(30);

/// Kills a process, as the kernel does one that has taken too much memory.
fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn spec(name: &str) -> WorkspaceSpec {
    let resources: Resources = serde_json::from_str(RESOURCES).unwrap();
    WorkspaceSpec { throwaway: true, ..WorkspaceSpec::new("debian").name(name).unwrap().resources(resources) }
}

/// The process of a workspace's machine, once it has one.
async fn pid(host: &Host, name: &str) -> u32 {
    let deadline = Instant::now() + TOLD_WITHIN;
    loop {
        if let Ok(workspace) = host.workspace(name).await
            // Its disk may be still to come.
            && let Ok(info) = workspace.info().await
            && let Some(pid) = info.pid
        {
            return pid;
        }
        assert!(Instant::now() < deadline, "workspace {name} has no machine");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Lets an operation begin, kills the machine after so long, and returns what came of it.
async fn killed_in<T: std::fmt::Debug + Send + 'static>(
    what: &str,
    workspace: &Workspace,
    after: Duration,
    operation: impl Future<Output = Result<T, EngineError>> + Send + 'static,
) -> Result<T, EngineError> {
    let pid = workspace.info().await.unwrap().pid.unwrap();
    let working = tokio::spawn(operation);
    tokio::time::sleep(after).await;
    kill(pid);
    let killed = Instant::now();
    let done = working.await.unwrap();
    println!("{what}, killed after {after:?}: told after {:?}: {done:?}", killed.elapsed());
    assert!(killed.elapsed() < TOLD_WITHIN, "{what}: told after {:?}", killed.elapsed());
    done
}

/// It is seen as stopped by a crash, and starts with what its disk holds.
async fn assert_starts_again(what: &str, workspace: &Workspace) {
    let summary = workspace.info().await.unwrap().summary;
    assert_eq!((summary.state, summary.crashed), (WorkspaceState::Stopped, true), "{what}");
    let refused = workspace.exec("true").await.unwrap_err();
    assert!(matches!(refused, EngineError::WrongState { .. }), "{what}: {refused:?}");
    workspace.start().await.unwrap();
    assert_eq!(workspace.exec("cat /root/note").await.unwrap().stdout_text(), "kept\n", "{what}");
    let summary = workspace.info().await.unwrap().summary;
    assert_eq!((summary.state, summary.crashed), (WorkspaceState::Running, false), "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machine_that_is_killed_in_the_middle_of_anything_starts_again() {
    let Some(home) = homes::prepared() else { return };
    let mut config = Config::at(&home);
    config.templates = false;
    let host = Host::open(config).await.unwrap();
    let name = format!("dying-{}", std::process::id());

    // Before its agent answers.
    let (making, wanted) = (host.clone(), spec(&name));
    let making = tokio::spawn(async move { making.create(wanted).await });
    kill(pid(&host, &name).await);
    let killed = Instant::now();
    let error = making.await.unwrap().unwrap_err();
    assert!(matches!(error, EngineError::Start { .. }), "{error:?}");
    assert!(killed.elapsed() < TOLD_WITHIN, "told after {:?}", killed.elapsed());
    assert!(host.workspace(&name).await.is_err(), "something of it is left");

    let workspace = host.create(spec(&name)).await.unwrap();
    workspace.exec("echo kept > /root/note; sync").await.unwrap();

    let running = workspace.clone();
    let second = Duration::from_secs(1);
    let done =
        killed_in("a command", &workspace, second, async move { running.exec("sleep 1000").await }).await;
    assert!(done.is_err(), "a command ended well whose machine was killed");
    assert_starts_again("a command", &workspace).await;

    workspace.pause().await.unwrap();
    let resuming = workspace.clone();
    kill(pid(&host, &name).await);
    let refused = tokio::time::timeout(TOLD_WITHIN, resuming.resume()).await.unwrap();
    assert!(refused.is_err(), "a machine that was killed is resumed");
    assert_starts_again("a pause", &workspace).await;

    for after in [Duration::from_millis(40), Duration::from_millis(250)] {
        let taking = workspace.clone();
        let done =
            killed_in("a snapshot", &workspace, after, async move { taking.snapshot("s").await }).await;
        assert_eq!(workspace.snapshots().await.unwrap().len(), usize::from(done.is_ok()), "{done:?}");
        assert_starts_again("a snapshot", &workspace).await;
        if done.is_ok() {
            workspace.delete_snapshot("s").await.unwrap();
        }
    }

    let forking = workspace.clone();
    let after = Duration::from_millis(150);
    let done =
        killed_in("a fork", &workspace, after, async move { forking.fork(ForkSpec::default()).await }).await;
    assert_starts_again("a fork", &workspace).await;
    for worker in done.into_iter().flat_map(|report| report.workers) {
        host.workspace(&worker.name).await.unwrap().destroy().await.unwrap();
    }
    workspace.snapshot("after").await.unwrap();
    workspace.destroy().await.unwrap();
    host.close().await;
}
