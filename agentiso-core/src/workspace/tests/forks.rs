use std::time::Duration;

use super::{Scene, create, eventually};
use crate::testkit::Fault;
use crate::types::{GuestPort, SnapshotName, WorkspaceName};
use crate::{EngineError, ForkSpec, Workspace, WorkspaceState};

fn from_snapshot(count: u32) -> ForkSpec {
    ForkSpec { snapshot: Some(SnapshotName::new("s").unwrap()), count, ..ForkSpec::default() }
}

#[tokio::test]
async fn forks_begin_with_the_snapshot_and_go_their_own_ways() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let parent = create(&host, "p").await;
    parent.exec("echo before > /note").await.unwrap();
    parent.snapshot("s").await.unwrap();
    parent.exec("echo after > /note").await.unwrap();

    let report = parent.fork(from_snapshot(2)).await.unwrap();

    assert_eq!((report.success_count, report.failure_count), (2, 0));
    assert_eq!(report.workers.iter().map(|w| w.name.as_str()).collect::<Vec<_>>(), ["p-1", "p-2"]);
    assert_eq!(report.forked_from.snapshot.as_deref(), Some("s"));
    let (one, two) = (host.workspace("p-1").await.unwrap(), host.workspace("p-2").await.unwrap());
    one.exec("echo changed > /note").await.unwrap();
    assert_eq!(two.exec("cat /note").await.unwrap().stdout_text(), "before\n");
    assert_eq!(parent.exec("cat /note").await.unwrap().stdout_text(), "after\n");
    let info = two.info().await.unwrap();
    assert_eq!(info.forked_from.unwrap().name, "p");
    assert_eq!(info.summary.state, WorkspaceState::Running);
}

#[tokio::test]
async fn forks_take_the_next_free_numbers_and_inherit_no_forward() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let parent = create(&host, "p").await;
    create(&host, "p-1").await;
    parent.add_forward(GuestPort::new(80).unwrap(), None).await.unwrap();
    parent.snapshot("s").await.unwrap();

    let report = parent.fork(from_snapshot(1)).await.unwrap();

    assert_eq!(report.workers[0].name, "p-2");
    assert!(host.workspace("p-2").await.unwrap().forwards().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_stopped_workspace_forks_by_its_disk_and_nothing_hidden_stays() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let parent = create(&host, "p").await;
    parent.exec("echo kept > /note").await.unwrap();
    parent.stop().await.unwrap();

    parent.fork(ForkSpec { count: 2, ..ForkSpec::default() }).await.unwrap();

    let one = host.workspace("p-1").await.unwrap();
    assert_eq!(one.exec("cat /note").await.unwrap().stdout_text(), "kept\n");
    assert!(parent.snapshots().await.unwrap().is_empty());
    one.destroy().await.unwrap();
    host.workspace("p-2").await.unwrap().destroy().await.unwrap();
    let usage = scene.backends().storage.usage((*parent.id().as_uuid()).into()).await.unwrap();
    assert!(usage.snapshots.is_empty(), "{usage:?}");
}

#[tokio::test]
async fn bad_fork_requests_make_nothing() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let parent = create(&host, "p").await;
    parent.snapshot("s").await.unwrap();
    let name = Some(WorkspaceName::new("p").unwrap());

    assert!(matches!(parent.fork(from_snapshot(0)).await, Err(EngineError::OutOfBounds { .. })));
    assert!(matches!(parent.fork(from_snapshot(21)).await, Err(EngineError::OutOfBounds { .. })));
    let two_of_one_name = ForkSpec { name: name.clone(), ..from_snapshot(2) };
    assert!(matches!(parent.fork(two_of_one_name).await, Err(EngineError::Parameters { .. })));
    let taken = ForkSpec { name, ..from_snapshot(1) };
    assert!(matches!(parent.fork(taken).await, Err(EngineError::NameTaken { .. })));

    assert_eq!(host.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn one_fork_that_fails_does_not_keep_the_others() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let parent = create(&host, "p").await;
    parent.snapshot("s").await.unwrap();
    scene.fakes.faults().arm("hypervisor.launch", 2, Fault::Fail);

    let report = parent.fork(from_snapshot(3)).await.unwrap();

    assert_eq!((report.success_count, report.failure_count), (2, 1));
    assert_eq!(host.list().await.unwrap().len(), 3);
    assert!(report.failures[0].error.contains("did not start"), "{:?}", report.failures);
}

#[tokio::test]
async fn a_parent_is_destroyed_while_its_forks_live() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let parent = create(&host, "p").await;
    parent.exec("echo kept > /note").await.unwrap();
    parent.snapshot("s").await.unwrap();
    parent.fork(from_snapshot(1)).await.unwrap();

    parent.destroy().await.unwrap();

    let fork = host.workspace("p-1").await.unwrap();
    assert_eq!(fork.exec("cat /note").await.unwrap().stdout_text(), "kept\n");
    fork.destroy().await.unwrap();
    assert_eq!(scene.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn abandoned_fork_leaves_only_the_parent() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let parent = create(&host, "p").await;
    parent.snapshot("s").await.unwrap();
    scene.fakes.set_boot_time(Duration::from_secs(600));

    let abandoned = tokio::time::timeout(
        Duration::from_millis(300),
        parent.fork(ForkSpec { disk_only: true, ..from_snapshot(3) }),
    )
    .await;

    assert!(abandoned.is_err());
    host.close().await;
    assert_eq!(host.list().await.unwrap().len(), 1);
}

/// Forks a running workspace and has its forks wait before they read its memory. Then `work` is done to it, and all forks
/// must run.
async fn forks_on_their_way_outlast(work: impl AsyncFnOnce(&Workspace)) {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let parent = create(&host, "p").await;
    parent.snapshot("s").await.unwrap();
    parent.exec("echo after > /note").await.unwrap();
    let launched = scene.fakes.faults().count("hypervisor.launch");
    for nth in [1, 2] {
        scene.fakes.faults().arm("hypervisor.launch", nth, Fault::Delay(Duration::from_millis(300)));
    }
    let forking = tokio::spawn({
        let parent = parent.clone();
        async move { parent.fork(ForkSpec { count: 2, ..ForkSpec::default() }).await }
    });
    eventually("both are on their way", async || {
        scene.fakes.faults().count("hypervisor.launch") == launched + 2
    })
    .await;

    // What another opener does meanwhile changes nothing.
    let (_, _) = tokio::join!(work(&parent), scene.open());

    let report = forking.await.unwrap().unwrap();
    assert_eq!((report.success_count, report.failure_count), (2, 0), "{report:?}");
    for name in ["p-1", "p-2"] {
        let fork = host.workspace(name).await.unwrap();
        assert_eq!(fork.exec("cat /note").await.unwrap().stdout_text(), "after\n");
    }
    for left in host.list().await.unwrap() {
        host.workspace(&left.name).await.unwrap().destroy().await.unwrap();
    }
    assert_eq!(scene.leftovers().await, [""; 0]);
}

#[tokio::test]
async fn forks_on_their_way_run_although_their_parent_is_destroyed() {
    forks_on_their_way_outlast(async |parent| parent.destroy().await.unwrap()).await;
}

#[tokio::test]
async fn forks_on_their_way_run_although_their_parent_goes_back() {
    forks_on_their_way_outlast(async |parent| {
        parent.restore("s").await.unwrap();
        assert_eq!(parent.exec("cat /note").await.unwrap().stdout_text(), "");
    })
    .await;
}
