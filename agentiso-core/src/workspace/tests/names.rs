//! A name that is given away: whoever held its first workspace never meets the one that has it now.

use std::time::Duration;

use super::{Scene, create, eventually};
use crate::testkit::Fault;
use crate::types::GuestPort;
use crate::{EngineError, ForkSpec, PromoteSpec, Workspace, WorkspaceState};

/// What a handle can do to its workspace, each with what became of it.
async fn everything(workspace: &Workspace) -> Vec<(&'static str, Result<(), EngineError>)> {
    let port = GuestPort::new(80).unwrap();
    vec![
        ("info", workspace.info().await.map(drop)),
        ("exec", workspace.exec("echo old > /note").await.map(drop)),
        ("guest", workspace.guest().await.map(drop)),
        ("pause", workspace.pause().await),
        ("resume", workspace.resume().await),
        ("stop", workspace.stop().await),
        ("start", workspace.start().await),
        ("snapshot", workspace.snapshot("old").await.map(drop)),
        ("snapshots", workspace.snapshots().await.map(drop)),
        ("restore", workspace.restore("s").await.map(drop)),
        ("delete_snapshot", workspace.delete_snapshot("s").await),
        ("fork", workspace.fork(ForkSpec::default()).await.map(drop)),
        ("promote", workspace.promote(PromoteSpec::default()).await.map(drop)),
        ("add_forward", workspace.add_forward(port, None).await.map(drop)),
        ("remove_forward", workspace.remove_forward(port).await),
        ("forwards", workspace.forwards().await.map(drop)),
        ("keep", workspace.keep().await),
        ("destroy", workspace.destroy().await),
    ]
}

/// Asserts that this one is as it was made, with one snapshot `s`.
async fn assert_untouched(workspace: &Workspace) {
    let info = workspace.info().await.unwrap();
    assert_eq!(info.summary.state, WorkspaceState::Running);
    let snapshots = workspace.snapshots().await.unwrap();
    assert_eq!(snapshots.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["s"]);
    assert!(workspace.forwards().await.unwrap().is_empty());
    assert_eq!(workspace.exec("cat /note").await.unwrap().stdout_text(), "new\n");
}

async fn next_of_the_name(host: &crate::Host) -> Workspace {
    let new = create(host, "a").await;
    new.exec("echo new > /note").await.unwrap();
    new.snapshot("s").await.unwrap();
    new
}

#[tokio::test]
async fn handle_of_a_destroyed_workspace_does_nothing_to_the_next_of_its_name() {
    let scene = Scene::new().await;
    let (host, other) = (scene.open().await, scene.open().await);
    let old = create(&host, "a").await;
    let old_client = old.guest().await.unwrap();
    other.workspace("a").await.unwrap().destroy().await.unwrap();
    let new = next_of_the_name(&other).await;

    for (operation, result) in everything(&old).await {
        assert!(matches!(result, Err(EngineError::NoSuchWorkspace { .. })), "{operation}: {result:?}");
    }
    old_client.env_clear().await.unwrap_err();

    assert_untouched(&new).await;
    assert_eq!(host.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn operation_that_waited_while_its_name_was_given_away_does_nothing() {
    let scene = Scene::new().await;
    let (host, other) = (scene.open().await, scene.open().await);
    let old = create(&host, "a").await;
    scene.fakes.faults().arm("storage.destroy_disk", 1, Fault::Delay(Duration::from_secs(1)));
    let destroying = {
        let victim = other.workspace("a").await.unwrap();
        tokio::spawn(async move { victim.destroy().await })
    };
    eventually("the lock is held", async || scene.fakes.faults().count("storage.destroy_disk") > 0).await;
    let waiting = tokio::spawn(async move { (old.snapshot("old").await.map(drop), old.stop().await) });

    destroying.await.unwrap().unwrap();
    let new = next_of_the_name(&other).await;

    let (snapshot, stop) = waiting.await.unwrap();
    assert!(matches!(snapshot, Err(EngineError::NoSuchWorkspace { .. })), "{snapshot:?}");
    assert!(matches!(stop, Err(EngineError::NoSuchWorkspace { .. })), "{stop:?}");
    assert_untouched(&new).await;
}

#[tokio::test]
async fn handle_of_a_parent_stays_with_it_when_a_fork_takes_its_name() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let parent = create(&host, "a").await;
    parent.exec("echo parent > /note").await.unwrap();
    let forked = parent.fork(ForkSpec::default()).await.unwrap();
    let child = host.workspace(&forked.workers[0].workspace_id.to_string()).await.unwrap();
    child.exec("echo child > /note").await.unwrap();
    child.promote(PromoteSpec::default()).await.unwrap();

    parent.start().await.unwrap();

    assert_eq!(parent.exec("cat /note").await.unwrap().stdout_text(), "parent\n");
    assert_eq!(host.workspace("a").await.unwrap().id(), child.id());
    assert_eq!(host.workspace("a").await.unwrap().exec("cat /note").await.unwrap().stdout_text(), "child\n");
}
