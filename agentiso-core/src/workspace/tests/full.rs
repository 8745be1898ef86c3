//! The host's disk is full at each thing that an operation writes: it says so, the workspace it was on goes on, nothing
//! is left of what was half made once there is room, and then it can be done.

use super::crash::{Operation, Parent, operations, scene};
use super::{Scene, create, try_create};
use crate::storage::StorageError;
use crate::store::crash::{Points, Room};
use crate::testkit::{Fault, METHODS};
use crate::{EngineError, ForkSpec, WorkspaceState};

/// What is said of a full disk, by the records, by the system and by a storage.
const SAYS_FULL: [&str; 3] = ["disk is full", "no storage space", "not enough free space"];

/// Nothing is on the pretended host that no workspace has, and everything there is works and goes without a trace.
async fn assert_in_order(scene: &Scene, parent: Parent, what: &str) {
    let host = scene.open().await;
    for summary in host.list().await.unwrap() {
        let settled = [WorkspaceState::Running, WorkspaceState::Stopped, WorkspaceState::Paused];
        assert!(settled.contains(&summary.state), "{what}: {} is {:?}", summary.name, summary.state);
    }
    if parent != Parent::MayBeGone {
        let workspace = host.workspace("a").await.unwrap();
        let state = workspace.info().await.unwrap().summary.state;
        assert!(parent == Parent::MayBeStopped || state == WorkspaceState::Running, "{what}: {state:?}");
        workspace.start().await.unwrap();
        assert_eq!(workspace.exec("cat /note").await.unwrap().stdout_text(), "kept\n", "{what}");
    }
    for summary in host.list().await.unwrap() {
        let workspace = host.workspace(&summary.name).await.unwrap();
        workspace.start().await.unwrap();
        assert!(workspace.exec("true").await.unwrap().success(), "{what}: {}", summary.name);
    }
    for summary in host.list().await.unwrap() {
        host.workspace(&summary.name).await.unwrap().destroy().await.unwrap();
    }
    scene.open().await;
    assert_eq!(scene.leftovers().await, Vec::<String>::new(), "{what}");
}

/// The operation finds no room for its `nth` change of the records. `false` if it makes fewer.
async fn full_at(operation: Operation, nth: usize, room: Room, parent: Parent) -> bool {
    let scene = scene().await;
    let points = Points::of(&scene.config().layout().database());
    let host = scene.open().await;
    let what = format!("change {nth}, room {room:?}");

    points.fill(nth, room);
    let done = operation(host.clone()).await;
    let refused = points.refused();
    points.disarm();
    if parent == Parent::Runs {
        // Whoever has the state folder open goes on with it: a name that is not listed is free.
        let workspace = host.workspace("a").await.unwrap();
        if workspace.snapshots().await.unwrap().iter().all(|snapshot| snapshot.name != "t") {
            let again = workspace.snapshot("t").await;
            assert!(again.is_ok(), "{what}: {done:?}, and then: {again:?}");
        }
    }
    host.close().await;

    if refused == 0 {
        assert!(done.is_ok(), "{what}: {done:?}");
        return false;
    }
    // What makes no difference to whoever asked may be passed over.
    if let Err(error) = done {
        let told = error.report();
        assert!(SAYS_FULL.iter().any(|words| told.contains(words)), "{what}: {told}");
    }
    assert_in_order(&scene, parent, &what).await;
    true
}

async fn full_at_every_change(operation: Operation, parent: Parent) {
    for room in [Room::ComesBack, Room::IsGone] {
        let mut nth = 1;
        while full_at(operation, nth, room, parent).await {
            nth += 1;
        }
        assert!(nth > 1, "an operation without a trace in the records");
    }
}

macro_rules! full_at_every_change {
    ($($test:ident: $operation:ident, $parent:ident;)*) => {$(
        #[tokio::test]
        async fn $test() {
            full_at_every_change(operations::$operation, Parent::$parent).await;
        }
    )*};
}

full_at_every_change! {
    create_without_room_for_any_record_says_so_and_leaves_nothing: creating, Runs;
    stop_without_room_for_any_record_leaves_a_workspace_that_starts: stopping, MayBeStopped;
    start_without_room_for_any_record_leaves_a_workspace_that_starts: restarting, MayBeStopped;
    destroy_without_room_for_any_record_can_be_done_again: destroying, MayBeGone;
    snapshot_without_room_for_any_record_leaves_the_machine_running: snapshot, Runs;
    disk_snapshot_without_room_for_any_record_leaves_the_machine_running: disk_snapshot, Runs;
    deletion_without_room_for_any_record_leaves_the_machine_running: deleting, Runs;
    restore_without_room_for_any_record_leaves_a_workspace_that_starts: restoring, MayBeStopped;
    fork_without_room_for_any_record_leaves_the_parent_running: forking, Runs;
    fork_of_a_snapshot_without_room_for_any_record_leaves_the_parent_running: forking_a_snapshot, Runs;
    promotion_without_room_for_any_record_loses_neither_side: promoting, MayBeStopped;
    forward_without_room_for_any_record_leaves_the_machine_running: forwarding, Runs;
    policy_without_room_for_any_record_leaves_the_machine_running: changing_the_policy, Runs;
}

#[tokio::test]
async fn create_and_fork_without_room_for_a_disk_say_so_and_leave_nothing() {
    let scene = scene().await;
    let host = scene.open().await;
    let workspace = host.workspace("a").await.unwrap();
    let disks = scene.backends().storage.inventory().await.unwrap().disks.len();
    scene.fakes.set_disk_full(true);

    let created = try_create(&host, "new").await.unwrap_err();
    let forked = workspace.fork(ForkSpec { count: 2, ..ForkSpec::default() }).await;
    let kept = workspace.snapshot("t").await;

    assert!(matches!(created, EngineError::Storage(StorageError::Full { .. })), "{created:?}");
    for told in [created.report(), forked.unwrap_err().report(), kept.unwrap_err().report()] {
        assert!(SAYS_FULL.iter().any(|words| told.contains(words)), "{told}");
    }
    assert_eq!(scene.backends().storage.inventory().await.unwrap().disks.len(), disks);
    assert_eq!(workspace.snapshots().await.unwrap().len(), 1);
    scene.fakes.set_disk_full(false);
    try_create(&host, "new").await.unwrap();
    assert_in_order(&scene, Parent::Runs, "a full disk").await;
}

/// The calls of backends fail once each while a machine that runs is forked.
#[tokio::test]
async fn failed_fork_of_a_running_machine_leaves_it_running_whatever_failed() {
    for method in METHODS.iter().copied() {
        let scene = Scene::new().await;
        let host = scene.open().await;
        let workspace = create(&host, "a").await;
        workspace.exec("echo kept > /note; sync").await.unwrap();
        scene.fakes.faults().arm(method, 1, Fault::Fail);

        let forked = workspace.fork(ForkSpec { count: 2, ..ForkSpec::default() }).await;

        scene.fakes.faults().disarm();
        let state = workspace.info().await.unwrap().summary.state;
        assert_eq!(state, WorkspaceState::Running, "{method}: {forked:?}");
        assert_in_order(&scene, Parent::Runs, &format!("{method}: {forked:?}")).await;
    }
}
