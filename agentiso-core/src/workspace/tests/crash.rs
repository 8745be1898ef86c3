//! The process is killed right before and right after every change of the records in every operation. Whoever opens the
//! state folder next finds it in order: nothing is left of what was half made, the parent of a fork runs, and everything
//! works.

use std::collections::BTreeSet;

use super::recovery::Victim;
use super::{Scene, create, eventually, try_create};
use crate::store::crash::{Moment, Points};
use crate::types::{GuestPort, SnapshotName};
use crate::{ForkSpec, Host, PolicyChange, PromoteSpec, SnapshotSpec, WorkspaceState};

/// A change of the records as fault points are named after.
const CHANGES: [&str; 3] = ["add to", "update", "remove from"];

/// An operation on a workspace `a` that runs, holds a note and has a snapshot `s` and a stopped fork `f`.
type Operation = fn(Host) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

macro_rules! operations {
    ($($name:ident: |$host:ident, $workspace:ident| $work:expr;)*) => {$(
        fn $name($host: Host) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
            Box::pin(async move {
                let Ok($workspace) = $host.workspace("a").await else { return };
                let _ = $work;
            })
        }
    )*};
}

operations! {
    creating: |host, _a| try_create(&host, "new").await;
    stopping: |host, a| a.stop().await;
    restarting: |host, a| (a.stop().await, a.start().await);
    destroying: |host, a| a.destroy().await;
    snapshot: |host, a| a.snapshot("t").await;
    disk_snapshot: |host, a| a
        .snapshot_with(SnapshotSpec { memory: Some(false), ..SnapshotSpec::new(SnapshotName::new("t").unwrap()) })
        .await;
    deleting: |host, a| a.delete_snapshot("s").await;
    restoring: |host, a| a.restore("s").await;
    forking: |host, a| a.fork(ForkSpec { count: 2, ..ForkSpec::default() }).await;
    forking_a_snapshot: |host, a| a
        .fork(ForkSpec { snapshot: Some(SnapshotName::new("s").unwrap()), ..ForkSpec::default() })
        .await;
    promoting: |host, a| (
        a.stop().await,
        host.workspace("f").await.unwrap().promote(PromoteSpec::default()).await,
    );
    forwarding: |host, a| (
        a.add_forward(GuestPort::new(80).unwrap(), None).await,
        a.remove_forward(GuestPort::new(80).unwrap()).await,
    );
    changing_the_policy: |host, a| a
        .set_policy(PolicyChange { allow_internet: Some(true), ..PolicyChange::default() })
        .await;
}

async fn scene() -> Scene {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "a").await;
    workspace.exec("echo kept > /note; sync").await.unwrap();
    workspace.snapshot("s").await.unwrap();
    let spec = ForkSpec { name: Some("f".parse().unwrap()), ..ForkSpec::default() };
    workspace.fork(spec).await.unwrap();
    host.workspace("f").await.unwrap().stop().await.unwrap();
    scene
}

/// Runs the operation to its end; returns the changes that it makes.
async fn changes(operation: Operation) -> Vec<&'static str> {
    let scene = scene().await;
    let host = scene.open().await;
    let points = Points::of(&scene.config().layout().database());
    operation(host).await;
    points.changes()
}

/// Kills a process in the middle of an operation and looks at what the next one finds.
async fn killed_at(operation: Operation, nth: usize, moment: Moment, parent: Parent) {
    let scene = scene().await;
    let points = Points::of(&scene.config().layout().database());
    let faults = scene.fakes.faults().clone();
    let what = format!("change {nth}, {moment:?}");

    points.arm(nth, moment, move || faults.stop());
    let victim = Victim::stuck_in(&scene, operation).await;
    eventually(&format!("{what} is reached"), async || points.has_crashed()).await;
    victim.kill();
    scene.fakes.faults().disarm();
    points.disarm();

    // Locks of the dead are free once the kernel has taken its descriptors.
    eventually(&format!("{what}: nothing is half made"), async || {
        let host = scene.open().await;
        host.list().await.unwrap().iter().all(|summary| {
            matches!(
                summary.state,
                WorkspaceState::Running | WorkspaceState::Stopped | WorkspaceState::Paused
            )
        })
    })
    .await;
    let host = scene.open().await;
    let names: BTreeSet<_> = host.list().await.unwrap().into_iter().map(|summary| summary.name).collect();
    if parent != Parent::MayBeGone {
        assert!(names.contains("a"), "{what}: {names:?}");
        let workspace = host.workspace("a").await.unwrap();
        let state = workspace.info().await.unwrap().summary.state;
        assert!(parent == Parent::MayBeStopped || state == WorkspaceState::Running, "{what}: {state:?}");
        workspace.start().await.unwrap();
        assert_eq!(workspace.exec("cat /note").await.unwrap().stdout_text(), "kept\n", "{what}");
    }
    // Everything that is there works, and goes without a trace.
    for name in names {
        let workspace = host.workspace(&name).await.unwrap();
        workspace.start().await.unwrap();
        assert!(workspace.exec("true").await.unwrap().success(), "{what}: {name}");
    }
    for summary in host.list().await.unwrap() {
        host.workspace(&summary.name).await.unwrap().destroy().await.unwrap();
    }
    scene.open().await;
    assert_eq!(scene.leftovers().await, Vec::<String>::new(), "{what}");
}

/// What may have become of the workspace that the operation was on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parent {
    Runs,
    MayBeStopped,
    MayBeGone,
}

async fn killed_at_every_change(operation: Operation, parent: Parent) {
    let changes = changes(operation).await;
    assert!(!changes.is_empty(), "an operation without a trace in the records");
    assert!(changes.iter().all(|change| CHANGES.contains(change)), "{changes:?}");
    for nth in 1..=changes.len() {
        for moment in [Moment::Before, Moment::After] {
            killed_at(operation, nth, moment, parent).await;
        }
    }
}

macro_rules! killed_at_every_change {
    ($($test:ident: $operation:ident, $parent:ident;)*) => {$(
        #[tokio::test]
        async fn $test() {
            killed_at_every_change($operation, Parent::$parent).await;
        }
    )*};
}

killed_at_every_change! {
    create_killed_at_any_change_is_undone: creating, Runs;
    stop_killed_at_any_change_leaves_a_workspace_that_starts: stopping, MayBeStopped;
    start_killed_at_any_change_leaves_a_workspace_that_starts: restarting, MayBeStopped;
    destroy_killed_at_any_change_is_finished_or_never_was: destroying, MayBeGone;
    snapshot_killed_at_any_change_leaves_the_machine_running: snapshot, Runs;
    disk_snapshot_killed_at_any_change_leaves_the_machine_running: disk_snapshot, Runs;
    deletion_killed_at_any_change_leaves_the_machine_running: deleting, Runs;
    restore_killed_at_any_change_leaves_a_workspace_that_starts: restoring, MayBeStopped;
    fork_killed_at_any_change_leaves_the_parent_running: forking, Runs;
    fork_of_a_snapshot_killed_at_any_change_leaves_the_parent_running: forking_a_snapshot, Runs;
    promotion_killed_at_any_change_loses_neither_side: promoting, MayBeStopped;
    forward_killed_at_any_change_leaves_the_machine_running: forwarding, Runs;
    policy_killed_at_any_change_leaves_the_machine_running: changing_the_policy, Runs;
}
