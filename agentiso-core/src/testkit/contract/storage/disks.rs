//! Bases and disks.

use super::{
    BYTES, StorageFixture, assert_error, assert_in_use, disk_from, new_disk, read, sealed_base, snapshot,
    snapshots, sorted, write,
};
use crate::{
    storage::{DiskOrigin, Inventory, Outcome, StorageError},
    types::{BaseId, DiskId, SnapshotId},
};

/// "Makes an empty, writable base of that many bytes, all zero."
pub async fn begun_base_is_empty_and_writable(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let base = BaseId::random();

    let chain = storage.begin_base(base, BYTES).await.unwrap();

    assert_eq!(chain.layers[0].bytes, BYTES);
    assert_eq!(fixture.read_marker(&chain).await, 0);
    fixture.write_marker(&chain, 5).await;
    assert_eq!(fixture.read_marker(&chain).await, 5);
    let info = storage.seal_base(base).await.unwrap();
    assert_eq!(info.bytes, BYTES);
    assert!(info.used_bytes > 0, "what was written takes space");
    assert!(info.used_bytes < BYTES, "what was not written takes none");
}

/// A base exists from when it was begun.
pub async fn second_base_of_an_id_is_refused(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let base = sealed_base(fixture, 7).await;

    assert_error!(storage.begin_base(base, 2 * BYTES).await, Exists);

    let disk = disk_from(fixture, DiskOrigin::Base(base)).await;
    assert_eq!(read(fixture, disk).await, 7);
}

/// "Already sealed: no effect." A base that is not there cannot be sealed.
pub async fn seal_is_idempotent(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let base = sealed_base(fixture, 7).await;

    let first = storage.seal_base(base).await.unwrap();
    let second = fixture.open().await.seal_base(base).await.unwrap();

    assert_eq!(first, second);
    assert_error!(storage.seal_base(BaseId::random()).await, NotFound);
}

/// "Removes a base, sealed or not. Not there: no effect." Its id can be used again.
pub async fn delete_base_is_idempotent(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let sealed = sealed_base(fixture, 7).await;
    let unsealed = BaseId::random();
    storage.begin_base(unsealed, BYTES).await.unwrap();

    for base in [sealed, unsealed] {
        for _ in 0..2 {
            storage.delete_base(base).await.unwrap();
            assert!(!storage.inventory().await.unwrap().bases.contains(&base));
        }
        let chain = storage.begin_base(base, BYTES).await.unwrap();
        assert_eq!(fixture.read_marker(&chain).await, 0);
    }
}

/// "InUse names the disks made from it."
pub async fn base_with_disks_is_not_deleted(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let base = sealed_base(fixture, 7).await;
    let one = disk_from(fixture, DiskOrigin::Base(base)).await;
    let other = disk_from(fixture, DiskOrigin::Base(base)).await;

    assert_in_use(storage.delete_base(base).await, vec![one, other]);
    assert_eq!(read(fixture, one).await, 7);
    storage.destroy_disk(one).await.unwrap();
    assert_in_use(storage.delete_base(base).await, vec![other]);
    storage.destroy_disk(other).await.unwrap();

    storage.delete_base(base).await.unwrap();
    assert_eq!(storage.inventory().await.unwrap(), Inventory::default());
}

/// "Disks can be made from it from now on", not before.
pub async fn unsealed_base_is_no_origin(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let base = BaseId::random();
    storage.begin_base(base, BYTES).await.unwrap();

    assert_error!(storage.create_disk(DiskId::random(), DiskOrigin::Base(base), BYTES).await, NotFound);

    assert_eq!(storage.inventory().await.unwrap().disks, []);
}

/// A disk has its base's content and its own size.
pub async fn disk_begins_with_its_base(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let base = sealed_base(fixture, 7).await;
    let disk = DiskId::random();

    storage.create_disk(disk, DiskOrigin::Base(base), 3 * BYTES).await.unwrap();

    let chain = storage.open_disk(disk).await.unwrap();
    assert_eq!(chain.layers[0].bytes, 3 * BYTES);
    assert_eq!(fixture.read_marker(&chain).await, 7);
    fixture.write_marker(&chain, 8).await;
    assert_eq!(read(fixture, disk).await, 8);
    assert_eq!(fixture.open().await.open_disk(disk).await.unwrap(), chain);
}

/// What is written to one disk is not seen in its base or another disk.
pub async fn disks_of_one_base_are_independent(fixture: &dyn StorageFixture) {
    let base = sealed_base(fixture, 7).await;
    let one = disk_from(fixture, DiskOrigin::Base(base)).await;
    let other = disk_from(fixture, DiskOrigin::Base(base)).await;

    write(fixture, one, 8).await;
    let third = disk_from(fixture, DiskOrigin::Base(base)).await;

    assert_eq!(read(fixture, one).await, 8);
    assert_eq!(read(fixture, other).await, 7);
    assert_eq!(read(fixture, third).await, 7);
}

/// "The origin is not there."
pub async fn disk_of_a_missing_origin_is_refused(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let disk = new_disk(fixture).await;
    let origins = [
        DiskOrigin::Base(BaseId::random()),
        DiskOrigin::Snapshot { disk, snapshot: SnapshotId::random() },
        DiskOrigin::Snapshot { disk: DiskId::random(), snapshot: SnapshotId::random() },
    ];

    for origin in origins {
        assert_error!(storage.create_disk(DiskId::random(), origin, BYTES).await, NotFound);
    }
    assert_eq!(storage.inventory().await.unwrap().disks, [disk]);
}

/// "... or larger than `bytes`."
pub async fn disk_smaller_than_its_origin_is_refused(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let base = sealed_base(fixture, 0).await;
    let disk = disk_from(fixture, DiskOrigin::Base(base)).await;
    let snapshot = snapshot(fixture, disk).await;

    for origin in [DiskOrigin::Base(base), DiskOrigin::Snapshot { disk, snapshot }] {
        let result = storage.create_disk(DiskId::random(), origin, BYTES - 512).await;
        assert!(
            matches!(&result, Err(StorageError::TooSmall { given, needed: BYTES }) if *given == BYTES - 512),
            "{result:?}"
        );
    }
    assert_eq!(storage.inventory().await.unwrap().disks, [disk]);
}

/// "The disk exists": it keeps what it has.
pub async fn second_disk_of_an_id_is_refused(fixture: &dyn StorageFixture) {
    let base = sealed_base(fixture, 0).await;
    let disk = disk_from(fixture, DiskOrigin::Base(base)).await;
    write(fixture, disk, 8).await;

    assert_error!(fixture.open().await.create_disk(disk, DiskOrigin::Base(base), BYTES).await, Exists);

    assert_eq!(read(fixture, disk).await, 8);
}

/// "The host's disk is full."
pub async fn full_host_refuses_and_changes_nothing(fixture: &dyn StorageFixture) {
    let base = sealed_base(fixture, 0).await;
    let disk = disk_from(fixture, DiskOrigin::Base(base)).await;
    let storage = fixture.open_full().await;

    assert_error!(storage.create_disk(DiskId::random(), DiskOrigin::Base(base), BYTES).await, Full);
    assert_error!(storage.begin_base(BaseId::random(), BYTES).await, Full);

    let inventory = sorted(fixture.open().await.inventory().await.unwrap());
    assert_eq!(inventory, Inventory { bases: vec![base], disks: vec![disk], pending: vec![] });
}

/// Whatever needs a disk says that it is not there.
pub async fn missing_disk_is_not_found(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let (disk, snapshot) = (DiskId::random(), SnapshotId::random());

    assert_error!(storage.open_disk(disk).await, NotFound);
    assert_error!(storage.usage(disk).await, NotFound);
    assert_error!(storage.begin_snapshot(disk, snapshot).await, NotFound);
    assert_error!(storage.finish_snapshot(disk, snapshot, Outcome::Commit).await, NotFound);
    assert_error!(storage.rollback(disk, snapshot).await, NotFound);
    assert_error!(storage.delete_snapshot(disk, snapshot).await, NotFound);
}

/// "Not there: removes what there is", which is nothing.
pub async fn destroy_is_idempotent_and_frees_the_name(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let base = sealed_base(fixture, 7).await;
    let disk = disk_from(fixture, DiskOrigin::Base(base)).await;
    let other = disk_from(fixture, DiskOrigin::Base(base)).await;
    write(fixture, disk, 8).await;
    snapshot(fixture, disk).await;

    for _ in 0..2 {
        storage.destroy_disk(disk).await.unwrap();
        assert_error!(storage.open_disk(disk).await, NotFound);
        assert_eq!(storage.inventory().await.unwrap().disks, [other]);
    }

    storage.create_disk(disk, DiskOrigin::Base(base), BYTES).await.unwrap();
    assert_eq!(read(fixture, disk).await, 7);
    assert_eq!(snapshots(fixture, disk).await, []);
}

/// "Or only half made: removes what there is."
pub async fn destroyed_disk_with_a_pending_snapshot_leaves_nothing(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let disk = new_disk(fixture).await;
    let bases = storage.inventory().await.unwrap().bases;
    storage.begin_snapshot(disk, SnapshotId::random()).await.unwrap();

    fixture.open().await.destroy_disk(disk).await.unwrap();

    assert_eq!(storage.inventory().await.unwrap(), Inventory { bases, ..Inventory::default() });
}

/// What others use too is shared, bases always.
pub async fn usage_tells_shared_from_unique(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    let base = sealed_base(fixture, 7).await;
    let base_bytes = storage.seal_base(base).await.unwrap().used_bytes;
    let disk = disk_from(fixture, DiskOrigin::Base(base)).await;
    let untouched = storage.usage(disk).await.unwrap();
    write(fixture, disk, 8).await;
    let written = storage.usage(disk).await.unwrap();
    let id = snapshot(fixture, disk).await;
    let fork = disk_from(fixture, DiskOrigin::Snapshot { disk, snapshot: id }).await;
    let forked = storage.usage(disk).await.unwrap();
    storage.destroy_disk(fork).await.unwrap();
    let alone = storage.usage(disk).await.unwrap();

    assert_eq!(untouched.bytes, BYTES);
    assert_eq!(untouched.shared_bytes, base_bytes);
    assert!(written.unique_bytes > untouched.unique_bytes, "{untouched:?} {written:?}");
    assert_eq!(written.shared_bytes, base_bytes);
    assert!(forked.shared_bytes > written.shared_bytes, "{written:?} {forked:?}");
    assert_eq!(alone.shared_bytes, base_bytes);
    assert!(alone.unique_bytes >= written.unique_bytes, "{written:?} {alone:?}");
}

/// "Space that each snapshot holds, oldest first."
pub async fn usage_lists_snapshots_oldest_first(fixture: &dyn StorageFixture) {
    let disk = new_disk(fixture).await;
    write(fixture, disk, 1).await;
    let first = snapshot(fixture, disk).await;
    let unchanged = snapshot(fixture, disk).await;
    write(fixture, disk, 2).await;

    let usage = fixture.open().await.usage(disk).await.unwrap().snapshots;

    let ids: Vec<_> = usage.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [first, unchanged]);
    assert!(usage[0].1 > usage[1].1, "{usage:?}");
}

/// "Everything this storage holds, finished or not."
pub async fn inventory_lists_everything(fixture: &dyn StorageFixture) {
    let storage = fixture.open().await;
    assert_eq!(storage.inventory().await.unwrap(), Inventory::default());
    let sealed = sealed_base(fixture, 0).await;
    let unsealed = BaseId::random();
    storage.begin_base(unsealed, BYTES).await.unwrap();
    let disk = disk_from(fixture, DiskOrigin::Base(sealed)).await;
    let id = snapshot(fixture, disk).await;
    let fork = disk_from(fixture, DiskOrigin::Snapshot { disk, snapshot: id }).await;

    let inventory = sorted(fixture.open().await.inventory().await.unwrap());

    let mut bases = vec![sealed, unsealed];
    bases.sort();
    let mut disks = vec![disk, fork];
    disks.sort();
    assert_eq!(inventory, Inventory { bases, disks, pending: vec![] });
}
