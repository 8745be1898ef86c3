//! Long chains made short, and what layers are counted for.
//!
//! A storage whose disks have no chains has no plans either: what is checked of plans holds for it in that way.

use super::{StorageFixture, assert_error, disk_from, marker_of, new_disk, read, snapshot, snapshots, write};
use crate::{
    storage::{DiskOrigin, FORKED_CHAIN_DEPTH, MAX_CHAIN_DEPTH, Outcome, ShortenPlan, StorageError},
    types::{DiskId, SnapshotId},
};

/// Snapshots after which a disk on a base has one layer more than it may have.
const SNAPSHOTS_FOR_A_LONG_CHAIN: u8 = 7;

/// A disk with so many snapshots, in each of which is another mark: 1 in the first, and so on.
async fn disk_with_snapshots(fixture: &dyn StorageFixture, count: u8) -> (DiskId, Vec<SnapshotId>) {
    let disk = new_disk(fixture).await;
    let mut ids = Vec::new();
    for marker in 1..=count {
        write(fixture, disk, marker).await;
        ids.push(snapshot(fixture, disk).await);
    }
    (disk, ids)
}

async fn plan(fixture: &dyn StorageFixture, disk: DiskId) -> Option<ShortenPlan> {
    fixture.open().await.shorten_plan(disk, MAX_CHAIN_DEPTH).await.unwrap()
}

async fn depth(fixture: &dyn StorageFixture, disk: DiskId) -> usize {
    fixture.open().await.open_disk(disk).await.unwrap().layers.len()
}

/// Does what a plan says, if there is one.
async fn shorten(fixture: &dyn StorageFixture, disk: DiskId) {
    let Some(plan) = plan(fixture, disk).await else { return };
    let storage = fixture.open().await;
    fixture.pull_up(&storage.open_disk(disk).await.unwrap(), &plan).await;
    storage.finish_shorten(disk, &plan).await.unwrap();
}

/// "`None` for a shorter one."
pub async fn short_chain_has_no_plan(fixture: &dyn StorageFixture) {
    let (disk, _) = disk_with_snapshots(fixture, SNAPSHOTS_FOR_A_LONG_CHAIN - 1).await;

    assert_eq!(plan(fixture, disk).await, None);
    assert!(depth(fixture, disk).await <= MAX_CHAIN_DEPTH);
    assert_error!(fixture.open().await.shorten_plan(DiskId::random(), MAX_CHAIN_DEPTH).await, NotFound);
}

/// "If it has more than `most`, or was found too long before."
pub async fn shorter_chain_is_too_long_for_who_says_so(fixture: &dyn StorageFixture) {
    let (disk, _) = disk_with_snapshots(fixture, SNAPSHOTS_FOR_A_LONG_CHAIN - 2).await;
    let storage = fixture.open().await;

    assert_eq!(plan(fixture, disk).await, None);
    let Some(found) = storage.shorten_plan(disk, FORKED_CHAIN_DEPTH).await.unwrap() else { return };
    assert_eq!(plan(fixture, disk).await.as_ref(), Some(&found));
    shorten(fixture, disk).await;

    assert!(depth(fixture, disk).await < FORKED_CHAIN_DEPTH);
    assert_eq!(storage.shorten_plan(disk, FORKED_CHAIN_DEPTH).await.unwrap(), None);
    assert_eq!(read(fixture, disk).await, SNAPSHOTS_FOR_A_LONG_CHAIN - 2);
}

/// The disk shows the same through fewer layers, whatever was written to it meanwhile. "Finished already: no effect."
pub async fn long_chain_gets_short_and_shows_the_same(fixture: &dyn StorageFixture) {
    for written_meanwhile in [None, Some(99)] {
        let (disk, ids) = disk_with_snapshots(fixture, SNAPSHOTS_FOR_A_LONG_CHAIN + 3).await;
        let Some(plan) = plan(fixture, disk).await else { return };
        let storage = fixture.open().await;
        let before = storage.open_disk(disk).await.unwrap();
        assert_eq!(plan.top, before.layers[0]);
        assert_eq!(plan.beneath, before.layers.len() - 1 - plan.dropped.len());

        if let Some(marker) = written_meanwhile {
            write(fixture, disk, marker).await;
        }
        fixture.pull_up(&before, &plan).await;
        for _ in 0..2 {
            fixture.open().await.finish_shorten(disk, &plan).await.unwrap();
        }

        let after = storage.open_disk(disk).await.unwrap();
        assert_eq!(after.layers[0], before.layers[0]);
        assert_eq!(after.layers[1..], before.layers[1 + plan.dropped.len()..]);
        assert!(after.layers.len() < MAX_CHAIN_DEPTH);
        assert_eq!(read(fixture, disk).await, written_meanwhile.unwrap_or(SNAPSHOTS_FOR_A_LONG_CHAIN + 3));
        assert_eq!(storage.shorten_plan(disk, MAX_CHAIN_DEPTH).await.unwrap(), None);
        assert_eq!(snapshots(fixture, disk).await, ids);
    }
}

/// "The plan is noted and stays the same until it is finished, or the disk gets another topmost layer." A plan that
/// nobody followed does no harm.
pub async fn plan_stays_until_the_disk_gets_another_layer(fixture: &dyn StorageFixture) {
    let (disk, ids) = disk_with_snapshots(fixture, SNAPSHOTS_FOR_A_LONG_CHAIN).await;
    let Some(first) = plan(fixture, disk).await else { return };
    // With forks of an old snapshot another plan would be made.
    disk_from(fixture, DiskOrigin::Snapshot { disk, snapshot: ids[6] }).await;

    assert_eq!(plan(fixture, disk).await.as_ref(), Some(&first));
    let newest = snapshot(fixture, disk).await;
    let second = plan(fixture, disk).await.unwrap();
    assert_ne!(second.top, first.top);
    assert_error!(fixture.open().await.finish_shorten(disk, &first).await, NotFound);
    assert_eq!(marker_of(fixture, disk, newest).await, SNAPSHOTS_FOR_A_LONG_CHAIN);
    fixture.open().await.rollback(disk, ids[0]).await.unwrap();

    assert_eq!(plan(fixture, disk).await, None);
    assert_error!(fixture.open().await.finish_shorten(disk, &second).await, NotFound);
    assert_eq!(read(fixture, disk).await, 1);
}

/// "A snapshot of the disk is begun; finish it first." A plan made before can be finished in the middle of it.
pub async fn plan_waits_for_a_snapshot_that_is_begun(fixture: &dyn StorageFixture) {
    let (disk, _) = disk_with_snapshots(fixture, SNAPSHOTS_FOR_A_LONG_CHAIN).await;
    let storage = fixture.open().await;
    let (first, second) = (SnapshotId::random(), SnapshotId::random());

    storage.begin_snapshot(disk, first).await.unwrap();
    if let Err(error) = storage.shorten_plan(disk, MAX_CHAIN_DEPTH).await {
        assert!(matches!(error, StorageError::Exists { .. }), "{error}");
    }
    storage.finish_snapshot(disk, first, Outcome::Commit).await.unwrap();
    let Some(plan) = plan(fixture, disk).await else { return };
    storage.begin_snapshot(disk, second).await.unwrap();
    fixture.pull_up(&storage.open_disk(disk).await.unwrap(), &plan).await;
    storage.finish_shorten(disk, &plan).await.unwrap();
    storage.finish_snapshot(disk, second, Outcome::Commit).await.unwrap();

    assert_eq!(read(fixture, disk).await, SNAPSHOTS_FOR_A_LONG_CHAIN);
    assert_eq!(marker_of(fixture, disk, second).await, SNAPSHOTS_FOR_A_LONG_CHAIN);
    assert!(depth(fixture, disk).await < MAX_CHAIN_DEPTH);
}

/// Snapshots of before can still be forked and rolled back to, and forks show what they showed.
pub async fn snapshots_and_forks_keep_the_layers_that_their_disk_left(fixture: &dyn StorageFixture) {
    let (disk, ids) = disk_with_snapshots(fixture, SNAPSHOTS_FOR_A_LONG_CHAIN + 2).await;
    let fork = disk_from(fixture, DiskOrigin::Snapshot { disk, snapshot: ids[4] }).await;

    shorten(fixture, disk).await;
    write(fixture, disk, 99).await;

    for (at, id) in (1..).zip(&ids) {
        assert_eq!(marker_of(fixture, disk, *id).await, at);
    }
    assert_eq!(read(fixture, fork).await, 5);
    let newest = snapshot(fixture, disk).await;
    assert_eq!(marker_of(fixture, disk, newest).await, 99);
    assert_eq!(fixture.open().await.rollback(disk, ids[2]).await.unwrap(), [&ids[3..], &[newest]].concat());
    assert_eq!(read(fixture, disk).await, 3);
    assert_eq!(snapshots(fixture, disk).await, ids[..3]);
    fixture.open().await.destroy_disk(disk).await.unwrap();
    assert_eq!(read(fixture, fork).await, 5);
}

/// "Removes those that no snapshot and no other disk uses", and those of a snapshot with the snapshot.
pub async fn layers_that_nobody_uses_any_more_are_given_up(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let (disk, ids) = disk_with_snapshots(fixture, SNAPSHOTS_FOR_A_LONG_CHAIN + 2).await;
    for id in &ids[1..] {
        storage.delete_snapshot(disk, *id).await.unwrap();
    }
    let before = storage.usage(disk).await.unwrap();

    shorten(fixture, disk).await;
    storage.delete_snapshot(disk, ids[0]).await.unwrap();

    let after = storage.usage(disk).await.unwrap();
    assert!(after.unique_bytes <= before.unique_bytes, "{before:?} {after:?}");
    assert_eq!(after.shared_bytes, before.shared_bytes);
    assert_eq!(after.snapshots, []);
    assert_eq!(read(fixture, disk).await, SNAPSHOTS_FOR_A_LONG_CHAIN + 2);
}

/// "The plan is not of the disk's present chain. Nothing is changed then."
pub async fn finish_of_another_plan_changes_nothing(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let (disk, _) = disk_with_snapshots(fixture, SNAPSHOTS_FOR_A_LONG_CHAIN).await;
    let (other, _) = disk_with_snapshots(fixture, SNAPSHOTS_FOR_A_LONG_CHAIN).await;
    let before = storage.open_disk(disk).await.unwrap();
    let (Some(own), Some(foreign)) = (plan(fixture, disk).await, plan(fixture, other).await) else { return };
    let mut too_much = own.clone();
    too_much.dropped.pop();
    let to_itself = ShortenPlan { base: own.top.id.clone(), ..own.clone() };

    for plan in [foreign, too_much, to_itself] {
        assert_error!(storage.finish_shorten(disk, &plan).await, NotFound);
        assert_eq!(storage.open_disk(disk).await.unwrap(), before);
    }
}

/// What layers count for: unique to a disk, of that held by a snapshot, or shared. A fork moves what it began with
/// from unique to shared, and nothing is counted twice or lost.
pub async fn usage_counts_each_layer_once(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let (disk, ids) = disk_with_snapshots(fixture, 3).await;
    let alone = storage.usage(disk).await.unwrap();
    let fork = disk_from(fixture, DiskOrigin::Snapshot { disk, snapshot: ids[1] }).await;

    let shared = storage.usage(disk).await.unwrap();
    let of_fork = storage.usage(fork).await.unwrap();

    let [first, second, third] = [0, 1, 2].map(|at| alone.snapshots[at].1);
    assert!(first > 0 && second > 0 && third > 0, "{alone:?}");
    assert!(alone.unique_bytes >= first + second + third, "{alone:?}");
    let moved = first + second;
    assert_eq!(shared.unique_bytes, alone.unique_bytes - moved);
    assert_eq!(shared.shared_bytes, alone.shared_bytes + moved);
    let held: Vec<u64> = shared.snapshots.iter().map(|(_, bytes)| *bytes).collect();
    assert_eq!(held, [0, 0, third]);
    assert_eq!(of_fork.shared_bytes, alone.shared_bytes + moved);
    storage.destroy_disk(fork).await.unwrap();
    assert_eq!(storage.usage(disk).await.unwrap(), alone);
}
