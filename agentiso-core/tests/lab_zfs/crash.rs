//! Operations that stop between their steps: each is done or undone afterwards, and leaves nothing.

use agentiso_core::{
    storage::{DiskOrigin, Inventory, Outcome, Storage, StorageError, zfs::ZfsStorage},
    types::{BaseId, DiskId, SnapshotId},
};

use crate::fixture::{BYTES, Fixture};

/// More changes than any operation here makes.
const ENOUGH: usize = 30;

/// A storage that stops after so many changes.
async fn stopping(fixture: &Fixture, changes: usize) -> ZfsStorage {
    ZfsStorage::open_stopping_after(fixture.config(), changes).await.unwrap()
}

/// Destroys everything there is, as whoever opens a state folder without records would, and checks that nothing is
/// left, whoever is asked.
async fn assert_all_can_be_removed(fixture: &Fixture) {
    let storage = fixture.storage().await;
    let Inventory { bases, disks, .. } = storage.inventory().await.unwrap();
    for disk in disks {
        storage.destroy_disk(disk).await.unwrap();
    }
    for base in bases {
        storage.delete_base(base).await.unwrap();
    }
    assert_eq!(storage.inventory().await.unwrap(), Inventory::default());
    assert_eq!(fixture.listed("volume,snapshot"), [""; 0]);
}

#[tokio::test]
async fn making_stops_anywhere_and_leaves_nothing_unknown() {
    let fixture = Fixture::new().await.unwrap();
    for changes in 0..ENOUGH {
        let storage = stopping(&fixture, changes).await;
        let (base, disk, snapshot) = (BaseId::random(), DiskId::random(), SnapshotId::random());
        let made: Result<(), StorageError> = async {
            storage.begin_base(base, BYTES).await?;
            storage.seal_base(base).await?;
            storage.create_disk(disk, DiskOrigin::Base(base), BYTES).await?;
            storage.begin_snapshot(disk, snapshot).await?;
            storage.finish_snapshot(disk, snapshot, Outcome::Commit).await
        }
        .await;

        let inventory = fixture.storage().await.inventory().await.unwrap();
        assert_eq!(inventory.bases.len(), usize::from(changes >= 1));
        assert_eq!(inventory.disks.len(), usize::from(changes >= 3));
        let pending = if changes == 4 { vec![(disk, snapshot, None)] } else { vec![] };
        assert_eq!(inventory.pending, pending);
        for (disk, snapshot, _) in inventory.pending {
            fixture.storage().await.finish_snapshot(disk, snapshot, Outcome::Commit).await.unwrap();
            assert_eq!(fixture.snapshots(disk).await, [snapshot]);
        }
        assert_all_can_be_removed(&fixture).await;
        if made.is_ok() {
            assert_eq!(changes, 5);
            return;
        }
    }
    panic!("it never ended");
}

/// A disk with two snapshots, 1 and 2 in them and 3 in itself, and a fork of the newer.
async fn forked(fixture: &Fixture) -> (DiskId, [SnapshotId; 2], DiskId) {
    let base = fixture.base(0).await;
    let disk = fixture.disk(DiskOrigin::Base(base)).await;
    fixture.write(disk, 1).await;
    let older = fixture.snapshot(disk).await;
    fixture.write(disk, 2).await;
    let newer = fixture.snapshot(disk).await;
    fixture.write(disk, 3).await;
    let fork = fixture.disk(DiskOrigin::Snapshot { disk, snapshot: newer }).await;
    (disk, [older, newer], fork)
}

#[tokio::test]
async fn rollback_past_a_fork_stops_anywhere_and_is_done_or_not() {
    let fixture = Fixture::new().await.unwrap();
    for changes in 0..ENOUGH {
        let (disk, [older, newer], fork) = forked(&fixture).await;

        let result = stopping(&fixture, changes).await.rollback(disk, older).await;

        let (content, left) = if result.is_ok() { (1, vec![older]) } else { (3, vec![older, newer]) };
        assert_eq!(fixture.read(disk).await, content);
        assert_eq!(fixture.snapshots(disk).await, left);
        assert_eq!(fixture.read(fork).await, 2);
        fixture.storage().await.inventory().await.unwrap();
        assert_eq!(fixture.read(disk).await, content);
        assert_eq!(fixture.snapshots(disk).await, left);
        assert_eq!(fixture.read(fork).await, 2);
        // After a sweep there is one volume for each disk and base, and no snapshot that nobody needs.
        assert_eq!(fixture.listed("volume").len(), 3);
        assert_eq!(fixture.listed("snapshot").len(), 1 + left.len());
        assert_all_can_be_removed(&fixture).await;
        if changes >= 4 {
            assert!(result.is_ok());
            return;
        }
    }
    panic!("it never ended");
}

#[tokio::test]
async fn destroying_under_a_fork_stops_anywhere_and_is_done_or_not() {
    let fixture = Fixture::new().await.unwrap();
    for changes in 0..ENOUGH {
        let (disk, snapshots, fork) = forked(&fixture).await;

        let result = stopping(&fixture, changes).await.destroy_disk(disk).await;

        let disks = fixture.storage().await.inventory().await.unwrap().disks;
        assert_eq!(disks.contains(&disk), result.is_err());
        if result.is_err() {
            assert_eq!(fixture.read(disk).await, 3);
            assert_eq!(fixture.snapshots(disk).await, snapshots);
        } else {
            assert_eq!(fixture.listed("volume").len(), 2);
        }
        assert_eq!(fixture.read(fork).await, 2);
        assert_all_can_be_removed(&fixture).await;
        if changes >= 5 {
            assert!(result.is_ok());
            return;
        }
    }
    panic!("it never ended");
}
