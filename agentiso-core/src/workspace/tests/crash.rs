//! The process is killed right before and right after every change of the records in every operation. Whoever opens the
//! state folder next finds it in order: nothing is left of what was half made, the parent of a fork runs, and everything
//! works.

use std::{collections::BTreeSet, pin::Pin};

use super::recovery::Victim;
use super::{Scene, create, eventually, try_create};
use crate::store::crash::{Moment, Points};
use crate::types::{GuestPort, SnapshotName};
use crate::{
    EngineError, ForkReport, ForkSpec, Host, PolicyChange, PromoteSpec, SnapshotSpec, WorkspaceState,
};

/// A change of the records as fault points are named after.
const CHANGES: [&str; 3] = ["add to", "update", "remove from"];

/// An operation on a workspace `a` that runs, holds a note and has a snapshot `s` and a stopped fork `f`.
pub(super) type Operation = fn(Host) -> Pin<Box<dyn Future<Output = Result<(), EngineError>> + Send>>;

macro_rules! operations {
    ($($name:ident: |$host:ident, $workspace:ident| $work:expr;)*) => {$(
        pub(in super::super) fn $name(
            $host: Host,
        ) -> Pin<Box<dyn Future<Output = Result<(), EngineError>> + Send>> {
            Box::pin(async move {
                let $workspace = $host.workspace("a").await?;
                $work
            })
        }
    )*};
}

/// Everything that changes the records of one workspace or more.
pub(super) mod operations {
    use super::*;

    operations! {
        creating: |host, _a| try_create(&host, "new").await.map(drop);
        stopping: |host, a| a.stop().await;
        restarting: |host, a| both(a.stop().await, a.start().await);
        destroying: |host, a| a.destroy().await;
        snapshot: |host, a| a.snapshot("t").await.map(drop);
        disk_snapshot: |host, a| a
            .snapshot_with(SnapshotSpec { memory: Some(false), ..SnapshotSpec::new(SnapshotName::new("t").unwrap()) })
            .await
            .map(drop);
        deleting: |host, a| a.delete_snapshot("s").await;
        restoring: |host, a| a.restore("s").await.map(drop);
        forking: |host, a| whole(a.fork(ForkSpec { count: 2, ..ForkSpec::default() }).await);
        forking_a_snapshot: |host, a| whole(a
            .fork(ForkSpec { snapshot: Some(SnapshotName::new("s").unwrap()), ..ForkSpec::default() })
            .await);
        promoting: |host, a| both(
            a.stop().await,
            host.workspace("f").await?.promote(PromoteSpec::default()).await.map(drop),
        );
        forwarding: |host, a| both(
            a.add_forward(GuestPort::new(80).unwrap(), None).await.map(drop),
            a.remove_forward(GuestPort::new(80).unwrap()).await,
        );
        changing_the_policy: |host, a| a
            .set_policy(PolicyChange { allow_internet: Some(true), ..PolicyChange::default() })
            .await
            .map(drop);
    }

    /// Two steps, each tried whatever came of the other.
    fn both(first: Result<(), EngineError>, second: Result<(), EngineError>) -> Result<(), EngineError> {
        first.and(second)
    }

    /// A fork that made fewer workspaces than it should is none.
    fn whole(forked: Result<ForkReport, EngineError>) -> Result<(), EngineError> {
        match forked?.failures.into_iter().next() {
            Some(failure) => Err(EngineError::Parameters { reason: failure.error, remedy: String::new() }),
            None => Ok(()),
        }
    }
}

pub(super) async fn scene() -> Scene {
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
    operation(host).await.unwrap();
    points.changes()
}

/// Kills a process in the middle of an operation and looks at what the next one finds.
async fn killed_at(operation: Operation, nth: usize, moment: Moment, parent: Parent) {
    let scene = scene().await;
    let points = Points::of(&scene.config().layout().database());
    let faults = scene.fakes.faults().clone();
    let what = format!("change {nth}, {moment:?}");

    points.arm(nth, moment, move || faults.stop());
    let victim = Victim::stuck_in(&scene, async move |host| drop(operation(host).await)).await;
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
pub(super) enum Parent {
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
            killed_at_every_change(operations::$operation, Parent::$parent).await;
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
