//! Every call of every trait fails once, in every operation: the operation says so, or manages without, and nothing
//! is left that it had made.

use super::{Scene, create, try_create};
use crate::testkit::{Fault, METHODS};
use crate::types::SnapshotName;
use crate::{ForkSpec, WorkspaceState};

/// The methods that an engine's backends have; the rest are the guests'.
fn backend_methods() -> impl Iterator<Item = &'static str> {
    METHODS.iter().copied()
}

#[tokio::test]
async fn failed_create_leaves_nothing_whatever_failed() {
    for method in backend_methods() {
        let scene = Scene::new().await;
        let host = scene.open().await;
        scene.fakes.faults().arm(method, 1, Fault::Fail);

        let created = try_create(&host, "a").await;

        scene.fakes.faults().disarm();
        if let Ok(workspace) = &created {
            workspace.destroy().await.unwrap();
        }
        scene.open().await;
        assert_eq!(scene.leftovers().await, Vec::<String>::new(), "{method}: {created:?}");
    }
}

#[tokio::test]
async fn failed_destroy_succeeds_when_repeated() {
    for method in backend_methods() {
        let scene = Scene::new().await;
        let host = scene.open().await;
        let workspace = create(&host, "a").await;
        scene.fakes.faults().arm(method, 1, Fault::Fail);

        let destroyed = workspace.destroy().await;

        scene.fakes.faults().disarm();
        if destroyed.is_err() {
            workspace.destroy().await.unwrap();
        }
        assert_eq!(scene.leftovers().await, Vec::<String>::new(), "{method}: {destroyed:?}");
    }
}

#[tokio::test]
async fn failed_snapshot_loses_nothing_whatever_failed() {
    for method in backend_methods() {
        let scene = Scene::new().await;
        let host = scene.open().await;
        let workspace = create(&host, "a").await;
        workspace.exec("echo kept > /note; sync").await.unwrap();
        scene.fakes.faults().arm(method, 1, Fault::Fail);

        let taken = workspace.snapshot("s").await;

        scene.fakes.faults().disarm();
        scene.open().await;
        let state = workspace.info().await.unwrap().summary.state;
        assert_eq!(state, WorkspaceState::Running, "{method}: {taken:?}");
        let listed = workspace.snapshots().await.unwrap().len();
        assert_eq!(listed, usize::from(taken.is_ok()), "{method}: {taken:?}");
        workspace.stop().await.unwrap();
        workspace.start().await.unwrap();
        assert_eq!(workspace.exec("cat /note").await.unwrap().stdout_text(), "kept\n", "{method}: {taken:?}");
    }
}

#[tokio::test]
async fn failed_start_and_stop_leave_a_workspace_that_starts_again() {
    for method in backend_methods() {
        let scene = Scene::new().await;
        let host = scene.open().await;
        let workspace = create(&host, "a").await;
        workspace.exec("echo kept > /note; sync").await.unwrap();
        scene.fakes.faults().arm(method, 1, Fault::Fail);

        let outcome = (workspace.stop().await, workspace.start().await);

        scene.fakes.faults().disarm();
        workspace.start().await.unwrap();
        assert_eq!(
            workspace.exec("cat /note").await.unwrap().stdout_text(),
            "kept\n",
            "{method}: {outcome:?}"
        );
        workspace.destroy().await.unwrap();
        assert_eq!(scene.leftovers().await, Vec::<String>::new(), "{method}: {outcome:?}");
    }
}

#[tokio::test]
async fn failed_restore_and_fork_leave_nothing_half_made() {
    for method in backend_methods() {
        let scene = Scene::new().await;
        let host = scene.open().await;
        let workspace = create(&host, "a").await;
        workspace.exec("echo kept > /note").await.unwrap();
        workspace.snapshot("s").await.unwrap();
        let spec =
            ForkSpec { snapshot: Some(SnapshotName::new("s").unwrap()), count: 2, ..ForkSpec::default() };
        scene.fakes.faults().arm(method, 1, Fault::Fail);

        let forked = workspace.fork(spec).await;
        let restored = workspace.restore("s").await;

        scene.fakes.faults().disarm();
        workspace.restore("s").await.unwrap();
        workspace.start().await.unwrap();
        assert_eq!(
            workspace.exec("cat /note").await.unwrap().stdout_text(),
            "kept\n",
            "{method}: {restored:?}"
        );
        for summary in host.list().await.unwrap() {
            host.workspace(&summary.name).await.unwrap().destroy().await.unwrap();
        }
        assert_eq!(scene.leftovers().await, Vec::<String>::new(), "{method}: {forked:?}");
    }
}
