use super::{Scene, create};
use crate::testkit::Fault;
use crate::types::SnapshotName;
use crate::{EngineError, MAX_SNAPSHOTS, SnapshotSpec, WorkspaceState};

async fn names(workspace: &crate::Workspace) -> Vec<String> {
    workspace.snapshots().await.unwrap().into_iter().map(|snapshot| snapshot.name).collect()
}

#[tokio::test]
async fn restore_brings_files_back_and_tells_what_it_removed() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "a").await;
    workspace.exec("echo one > /note").await.unwrap();
    workspace.snapshot("first").await.unwrap();
    workspace.exec("echo two > /note").await.unwrap();
    workspace.snapshot("second").await.unwrap();

    let report = workspace.restore("first").await.unwrap();

    assert_eq!(report.removed_snapshots, ["second"]);
    assert_eq!(report.state, WorkspaceState::Running);
    assert_eq!(names(&workspace).await, ["first"]);
    assert_eq!(workspace.exec("cat /note").await.unwrap().stdout_text(), "one\n");
}

#[tokio::test]
async fn restore_of_a_stopped_workspace_leaves_it_stopped() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "a").await;
    workspace.stop().await.unwrap();
    workspace.snapshot("s").await.unwrap();

    let report = workspace.restore("s").await.unwrap();

    assert_eq!(report.state, WorkspaceState::Stopped);
}

#[tokio::test]
async fn snapshot_refuses_a_name_that_is_taken_and_one_too_many() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "a").await;
    for number in 0..MAX_SNAPSHOTS {
        workspace.snapshot(&format!("s{number}")).await.unwrap();
    }

    assert!(matches!(workspace.snapshot("s0").await, Err(EngineError::SnapshotExists { .. })));
    assert!(matches!(workspace.snapshot("new").await, Err(EngineError::TooManySnapshots { .. })));
    assert!(matches!(workspace.restore("none").await, Err(EngineError::NoSuchSnapshot { .. })));
}

#[tokio::test]
async fn snapshot_of_a_guest_that_does_not_flush_is_refused_unless_crash_consistent() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "a").await;
    scene.fakes.faults().arm("agent.sync", 1, Fault::Fail);

    let refused = workspace.snapshot("s").await;

    assert!(matches!(refused, Err(EngineError::NotFlushed { .. })), "{refused:?}");
    assert!(names(&workspace).await.is_empty());
    let spec = SnapshotSpec {
        memory: Some(false),
        crash_consistent: true,
        ..SnapshotSpec::new(SnapshotName::new("s").unwrap())
    };
    assert!(workspace.snapshot_with(spec).await.unwrap().crash_consistent);
}

#[tokio::test]
async fn failed_pivot_undoes_the_snapshot_and_the_machine_goes_on() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "a").await;
    scene.fakes.faults().arm("hypervisor.pivot_disk", 1, Fault::Fail);

    let disk = SnapshotSpec { memory: Some(false), ..SnapshotSpec::new(SnapshotName::new("s").unwrap()) };
    assert!(workspace.snapshot_with(disk).await.is_err());

    assert!(names(&workspace).await.is_empty());
    workspace.exec("echo on > /note").await.unwrap();
    workspace.snapshot("s").await.unwrap();
    workspace.stop().await.unwrap();
    workspace.start().await.unwrap();
    assert_eq!(workspace.exec("cat /note").await.unwrap().stdout_text(), "on\n");
}

#[tokio::test]
async fn delete_refuses_a_snapshot_with_forks_and_names_them() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "a").await;
    workspace.snapshot("s").await.unwrap();
    let spec = crate::ForkSpec { snapshot: Some(SnapshotName::new("s").unwrap()), ..Default::default() };
    workspace.fork(spec).await.unwrap();

    let refused = workspace.delete_snapshot("s").await.unwrap_err();

    assert_eq!(refused.to_string(), "snapshot s of workspace a is what a-1 began from");
    host.workspace("a-1").await.unwrap().destroy().await.unwrap();
    workspace.delete_snapshot("s").await.unwrap();
    assert!(names(&workspace).await.is_empty());
}
