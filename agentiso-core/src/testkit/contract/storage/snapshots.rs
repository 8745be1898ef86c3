//! Snapshots, and disks made from them.

use super::{
    BYTES, StorageFixture, assert_error, assert_in_use, disk_from, marker_of, new_disk, read, sealed_base,
    snapshot, snapshots, write,
};
use crate::{
    storage::{DiskOrigin, Inventory, Outcome, PendingSnapshot, SnapshotMethod, StorageError},
    types::{DiskId, SnapshotId},
};

/// "Committing keeps the snapshot": what is written later is not in it.
pub async fn committed_snapshot_holds_what_was_there(fixture: &dyn StorageFixture) {
    let disk = new_disk(fixture).await;
    write(fixture, disk, 1).await;
    let first = snapshot(fixture, disk).await;
    let unchanged = snapshot(fixture, disk).await;
    write(fixture, disk, 2).await;
    let last = snapshot(fixture, disk).await;
    write(fixture, disk, 3).await;

    assert_eq!(read(fixture, disk).await, 3);
    assert_eq!(marker_of(fixture, disk, first).await, 1);
    assert_eq!(marker_of(fixture, disk, unchanged).await, 1);
    assert_eq!(marker_of(fixture, disk, last).await, 2);
    assert_eq!(snapshots(fixture, disk).await, [first, unchanged, last]);
}

/// A disk in use: what its user writes before the move, or before the end with an instant snapshot, is in the
/// snapshot; what it writes after is not.
pub async fn user_that_moved_writes_above_the_snapshot(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let disk = new_disk(fixture).await;
    let mut in_use = storage.open_disk(disk).await.unwrap();
    let id = SnapshotId::random();

    let pending = storage.begin_snapshot(disk, id).await.unwrap();
    fixture.write_marker(&in_use, 1).await;
    match (storage.capabilities().snapshot, pending) {
        (SnapshotMethod::Pivot, PendingSnapshot::Pivot { to }) => {
            assert_eq!(to.bytes, in_use.layers[0].bytes);
            in_use.layers.insert(0, to);
            assert_eq!(fixture.read_marker(&in_use).await, 1);
            fixture.write_marker(&in_use, 2).await;
            storage.finish_snapshot(disk, id, Outcome::Commit).await.unwrap();
        }
        (SnapshotMethod::Instant, PendingSnapshot::Instant) => {
            storage.finish_snapshot(disk, id, Outcome::Commit).await.unwrap();
            fixture.write_marker(&in_use, 2).await;
        }
        other => panic!("{other:?}"),
    }

    assert_eq!(read(fixture, disk).await, 2);
    assert_eq!(marker_of(fixture, disk, id).await, 1);
    let opened = storage.open_disk(disk).await.unwrap();
    assert_eq!(opened.layers[0], in_use.layers[0]);
}

/// "Aborting leaves the disk as it was."
pub async fn aborted_snapshot_never_was(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let disk = new_disk(fixture).await;
    write(fixture, disk, 1).await;
    let before = storage.open_disk(disk).await.unwrap();
    let id = SnapshotId::random();

    storage.begin_snapshot(disk, id).await.unwrap();
    storage.finish_snapshot(disk, id, Outcome::Abort).await.unwrap();

    assert_eq!(storage.open_disk(disk).await.unwrap(), before);
    assert_eq!(snapshots(fixture, disk).await, []);
    assert_eq!(storage.inventory().await.unwrap().pending, []);
    write(fixture, disk, 2).await;
    assert_eq!(read(fixture, disk).await, 2);
    storage.begin_snapshot(disk, id).await.unwrap();
    storage.finish_snapshot(disk, id, Outcome::Commit).await.unwrap();
    assert_eq!(marker_of(fixture, disk, id).await, 2);
}

/// "Aborting, allowed only while no one has moved to the new layer": what was written there is not thrown away.
pub async fn abort_of_a_layer_in_use_is_refused(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let disk = new_disk(fixture).await;
    let mut in_use = storage.open_disk(disk).await.unwrap();
    let id = SnapshotId::random();
    let PendingSnapshot::Pivot { to } = storage.begin_snapshot(disk, id).await.unwrap() else { return };
    in_use.layers.insert(0, to);
    fixture.write_marker(&in_use, 2).await;

    assert_in_use(storage.finish_snapshot(disk, id, Outcome::Abort).await, vec![disk]);

    storage.finish_snapshot(disk, id, Outcome::Commit).await.unwrap();
    assert_eq!(read(fixture, disk).await, 2);
}

/// "Finished already, the same way: no effect." The other way is refused, and a commit needs a begin.
pub async fn finish_is_idempotent(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let disk = new_disk(fixture).await;
    let (kept, aborted) = (SnapshotId::random(), SnapshotId::random());

    storage.begin_snapshot(disk, kept).await.unwrap();
    for _ in 0..2 {
        storage.finish_snapshot(disk, kept, Outcome::Commit).await.unwrap();
    }
    storage.begin_snapshot(disk, aborted).await.unwrap();
    for _ in 0..2 {
        fixture.open().await.finish_snapshot(disk, aborted, Outcome::Abort).await.unwrap();
    }

    assert_error!(storage.finish_snapshot(disk, kept, Outcome::Abort).await, Exists);
    assert_error!(storage.finish_snapshot(disk, aborted, Outcome::Commit).await, NotFound);
    assert_eq!(snapshots(fixture, disk).await, [kept]);
}

/// A snapshot that exists, or another one that was begun, stands in the way of a new one.
pub async fn second_snapshot_of_an_id_is_refused(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let disk = new_disk(fixture).await;
    let kept = snapshot(fixture, disk).await;
    let pending = SnapshotId::random();

    assert_error!(storage.begin_snapshot(disk, kept).await, Exists);
    storage.begin_snapshot(disk, pending).await.unwrap();
    assert_error!(storage.begin_snapshot(disk, SnapshotId::random()).await, Exists);

    storage.finish_snapshot(disk, pending, Outcome::Commit).await.unwrap();
    assert_eq!(snapshots(fixture, disk).await, [kept, pending]);
}

/// What a process that was killed between begin and finish leaves is found, and finished by another.
pub async fn begun_snapshot_is_listed_as_pending(fixture: &dyn StorageFixture) {
    let disk = new_disk(fixture).await;
    let id = SnapshotId::random();
    write(fixture, disk, 1).await;
    let layer = match fixture.open().await.begin_snapshot(disk, id).await.unwrap() {
        PendingSnapshot::Pivot { to } => Some(to.id),
        PendingSnapshot::Instant => None,
    };

    let storage = fixture.open().await;
    let pending = storage.inventory().await.unwrap().pending;
    storage.finish_snapshot(disk, id, Outcome::Commit).await.unwrap();

    assert_eq!(pending, [(disk, id, layer)]);
    assert_eq!(storage.inventory().await.unwrap().pending, []);
    assert_eq!(marker_of(fixture, disk, id).await, 1);
}

/// A disk "begins with the content of ... a snapshot", and parent and fork go their own ways.
pub async fn fork_begins_with_the_snapshot(fixture: &dyn StorageFixture) {
    let parent = new_disk(fixture).await;
    write(fixture, parent, 1).await;
    let id = snapshot(fixture, parent).await;
    write(fixture, parent, 2).await;
    let origin = DiskOrigin::Snapshot { disk: parent, snapshot: id };

    let one = disk_from(fixture, origin).await;
    let other = disk_from(fixture, origin).await;
    write(fixture, one, 3).await;

    assert_eq!(read(fixture, parent).await, 2);
    assert_eq!(read(fixture, one).await, 3);
    assert_eq!(read(fixture, other).await, 1);
}

/// "What other disks were made from lives on for them."
pub async fn fork_of_a_fork_outlives_its_ancestors(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let base = sealed_base(fixture, 7).await;
    let parent = disk_from(fixture, DiskOrigin::Base(base)).await;
    write(fixture, parent, 1).await;
    let id = snapshot(fixture, parent).await;
    let child = disk_from(fixture, DiskOrigin::Snapshot { disk: parent, snapshot: id }).await;
    let child_id = snapshot(fixture, child).await;
    let origin = DiskOrigin::Snapshot { disk: child, snapshot: child_id };
    let grandchild = disk_from(fixture, origin).await;

    storage.destroy_disk(parent).await.unwrap();
    storage.destroy_disk(child).await.unwrap();

    assert_eq!(read(fixture, grandchild).await, 1);
    assert_in_use(storage.delete_base(base).await, vec![grandchild]);
    storage.destroy_disk(grandchild).await.unwrap();
    storage.delete_base(base).await.unwrap();
    assert_eq!(storage.inventory().await.unwrap(), Inventory::default());
}

/// "Puts a disk ... back to a snapshot, and removes the snapshots that are newer. Returns those, oldest first."
pub async fn rollback_puts_back_and_tells_newer_snapshots(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let disk = new_disk(fixture).await;
    let mut ids = Vec::new();
    for marker in 1..=4 {
        write(fixture, disk, marker).await;
        ids.push(snapshot(fixture, disk).await);
    }
    write(fixture, disk, 9).await;

    let removed = storage.rollback(disk, ids[1]).await.unwrap();

    assert_eq!(removed, ids[2..]);
    assert_eq!(read(fixture, disk).await, 2);
    assert_eq!(snapshots(fixture, disk).await, ids[..2]);
    assert_eq!(marker_of(fixture, disk, ids[0]).await, 1);
    let origin = DiskOrigin::Snapshot { disk, snapshot: ids[3] };
    assert_error!(storage.create_disk(DiskId::random(), origin, BYTES).await, NotFound);
}

/// The snapshot that a disk was put back to is still what it was, after whatever was written since.
pub async fn rollback_can_be_repeated(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let disk = new_disk(fixture).await;
    write(fixture, disk, 1).await;
    let id = snapshot(fixture, disk).await;

    for marker in 2..5 {
        write(fixture, disk, marker).await;
        assert_eq!(storage.rollback(disk, id).await.unwrap(), []);
        assert_eq!(read(fixture, disk).await, 1);
    }
}

/// A disk made from a newer snapshot either lives on or is named, and then nothing has changed.
pub async fn rollback_past_a_fork_leaves_the_fork(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let disk = new_disk(fixture).await;
    write(fixture, disk, 1).await;
    let older = snapshot(fixture, disk).await;
    write(fixture, disk, 2).await;
    let newer = snapshot(fixture, disk).await;
    write(fixture, disk, 3).await;
    let fork = disk_from(fixture, DiskOrigin::Snapshot { disk, snapshot: newer }).await;

    match storage.rollback(disk, older).await {
        Ok(removed) => {
            assert_eq!(removed, [newer]);
            assert_eq!(read(fixture, disk).await, 1);
        }
        refused => {
            assert_in_use(refused, vec![fork]);
            assert_eq!(read(fixture, disk).await, 3);
            assert_eq!(snapshots(fixture, disk).await, [older, newer]);
        }
    }
    assert_eq!(read(fixture, fork).await, 2);
    storage.destroy_disk(disk).await.unwrap();
    assert_eq!(read(fixture, fork).await, 2);
}

/// What cannot be rolled back to leaves the disk alone.
pub async fn rollback_to_a_missing_snapshot_changes_nothing(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let disk = new_disk(fixture).await;
    let kept = snapshot(fixture, disk).await;
    write(fixture, disk, 2).await;

    assert_error!(storage.rollback(disk, SnapshotId::random()).await, NotFound);

    assert_eq!(read(fixture, disk).await, 2);
    assert_eq!(snapshots(fixture, disk).await, [kept]);
}

/// "Not there: no effect."
pub async fn delete_snapshot_is_idempotent(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let disk = new_disk(fixture).await;
    let id = snapshot(fixture, disk).await;

    for _ in 0..2 {
        storage.delete_snapshot(disk, id).await.unwrap();
        assert_eq!(snapshots(fixture, disk).await, []);
    }
    assert_error!(storage.rollback(disk, id).await, NotFound);
}

/// "InUse names the disks made from it."
pub async fn snapshot_with_forks_is_not_deleted(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let disk = new_disk(fixture).await;
    let id = snapshot(fixture, disk).await;
    let fork = disk_from(fixture, DiskOrigin::Snapshot { disk, snapshot: id }).await;

    assert_in_use(storage.delete_snapshot(disk, id).await, vec![fork]);
    assert_eq!(snapshots(fixture, disk).await, [id]);
    storage.destroy_disk(fork).await.unwrap();

    storage.delete_snapshot(disk, id).await.unwrap();
    assert_eq!(snapshots(fixture, disk).await, []);
}

/// A snapshot that goes takes nothing from its neighbours.
pub async fn deleted_snapshot_leaves_the_disk_and_the_others(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let disk = new_disk(fixture).await;
    let mut ids = Vec::new();
    for marker in 1..=3 {
        write(fixture, disk, marker).await;
        ids.push(snapshot(fixture, disk).await);
    }

    storage.delete_snapshot(disk, ids[1]).await.unwrap();

    assert_eq!(read(fixture, disk).await, 3);
    assert_eq!(snapshots(fixture, disk).await, [ids[0], ids[2]]);
    assert_eq!(marker_of(fixture, disk, ids[0]).await, 1);
    assert_eq!(marker_of(fixture, disk, ids[2]).await, 3);
    assert_eq!(storage.rollback(disk, ids[0]).await.unwrap(), [ids[2]]);
    assert_eq!(read(fixture, disk).await, 1);
}
