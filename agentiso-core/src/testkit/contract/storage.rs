//! The contract of [`Storage`].

use async_trait::async_trait;

use crate::{
    storage::{
        DiskChain, DiskOrigin, Inventory, Outcome, PendingSnapshot, SnapshotMethod, Storage, StorageError,
    },
    types::{BaseId, DiskId, SnapshotId},
};

/// Size of bases and disks in checks, in bytes.
const BYTES: u64 = 64 << 20;

/// What the storage at hand supplies. Dropping it removes what the check left.
#[async_trait]
pub trait StorageFixture: Send + Sync {
    /// Opens the storage, each time as another process would.
    async fn open(&self) -> Box<dyn Storage>;

    /// The same, on a host whose disk is full.
    async fn open_full(&self) -> Box<dyn Storage>;

    /// Writes a mark, not 0, as a machine that has opened these layers would.
    async fn write_marker(&self, chain: &DiskChain, marker: u8);

    /// Reads the mark as a machine that has opened these layers would; 0 if none was written.
    async fn read_marker(&self, chain: &DiskChain) -> u8;
}

/// The contract of [`Storage`] as tests; see the module `testkit::contract`.
#[macro_export]
macro_rules! storage_contract {
    ($fixture:expr) => {
        $crate::contract_tests!(
            storage,
            $fixture,
            [
                begun_base_is_empty_and_writable,
                second_base_of_an_id_is_refused,
                seal_is_idempotent,
                delete_base_is_idempotent,
                base_with_disks_is_not_deleted,
                unsealed_base_is_no_origin,
                disk_begins_with_its_base,
                disks_of_one_base_are_independent,
                disk_of_a_missing_origin_is_refused,
                disk_smaller_than_its_origin_is_refused,
                second_disk_of_an_id_is_refused,
                full_host_refuses_and_changes_nothing,
                missing_disk_is_not_found,
                committed_snapshot_holds_what_was_there,
                user_that_moved_writes_above_the_snapshot,
                aborted_snapshot_never_was,
                abort_of_a_layer_in_use_is_refused,
                finish_is_idempotent,
                second_snapshot_of_an_id_is_refused,
                begun_snapshot_is_listed_as_pending,
                fork_begins_with_the_snapshot,
                fork_of_a_fork_outlives_its_ancestors,
                rollback_puts_back_and_tells_newer_snapshots,
                rollback_can_be_repeated,
                rollback_past_a_fork_leaves_the_fork,
                rollback_to_a_missing_snapshot_changes_nothing,
                delete_snapshot_is_idempotent,
                snapshot_with_forks_is_not_deleted,
                deleted_snapshot_leaves_the_disk_and_the_others,
                destroy_is_idempotent_and_frees_the_name,
                destroyed_disk_with_a_pending_snapshot_leaves_nothing,
                usage_tells_shared_from_unique,
                usage_lists_snapshots_oldest_first,
                inventory_lists_everything,
            ]
        );
    };
}

async fn sealed_base(fixture: &dyn StorageFixture, marker: u8) -> BaseId {
    let storage = fixture.open().await;
    let base = BaseId::random();
    let chain = storage.begin_base(base, BYTES).await.unwrap();
    if marker != 0 {
        fixture.write_marker(&chain, marker).await;
    }
    storage.seal_base(base).await.unwrap();
    base
}

async fn disk_from(fixture: &dyn StorageFixture, origin: DiskOrigin) -> DiskId {
    let disk = DiskId::random();
    fixture.open().await.create_disk(disk, origin, BYTES).await.unwrap();
    disk
}

/// A disk on a base of its own.
async fn new_disk(fixture: &dyn StorageFixture) -> DiskId {
    let base = sealed_base(fixture, 0).await;
    disk_from(fixture, DiskOrigin::Base(base)).await
}

async fn write(fixture: &dyn StorageFixture, disk: DiskId, marker: u8) {
    let chain = fixture.open().await.open_disk(disk).await.unwrap();
    fixture.write_marker(&chain, marker).await;
}

async fn read(fixture: &dyn StorageFixture, disk: DiskId) -> u8 {
    let chain = fixture.open().await.open_disk(disk).await.unwrap();
    fixture.read_marker(&chain).await
}

/// A snapshot of a disk that nobody uses.
async fn snapshot(fixture: &dyn StorageFixture, disk: DiskId) -> SnapshotId {
    let snapshot = SnapshotId::random();
    let storage = fixture.open().await;
    storage.begin_snapshot(disk, snapshot).await.unwrap();
    storage.finish_snapshot(disk, snapshot, Outcome::Commit).await.unwrap();
    snapshot
}

/// What a disk with this snapshot as its origin begins with.
async fn marker_of(fixture: &dyn StorageFixture, disk: DiskId, snapshot: SnapshotId) -> u8 {
    let fork = disk_from(fixture, DiskOrigin::Snapshot { disk, snapshot }).await;
    let marker = read(fixture, fork).await;
    fixture.open().await.destroy_disk(fork).await.unwrap();
    marker
}

async fn snapshots(fixture: &dyn StorageFixture, disk: DiskId) -> Vec<SnapshotId> {
    let usage = fixture.open().await.usage(disk).await.unwrap();
    usage.snapshots.into_iter().map(|(id, _)| id).collect()
}

fn sorted(mut inventory: Inventory) -> Inventory {
    inventory.bases.sort();
    inventory.disks.sort();
    inventory.pending.sort();
    inventory
}

macro_rules! assert_error {
    ($result:expr, $variant:ident) => {{
        let result = $result;
        assert!(matches!(result, Err(StorageError::$variant { .. })), "{result:?}");
    }};
}

fn assert_in_use<T: std::fmt::Debug>(result: Result<T, StorageError>, mut expected: Vec<DiskId>) {
    match result {
        Err(StorageError::InUse { mut dependents, .. }) => {
            dependents.sort();
            expected.sort();
            assert_eq!(dependents, expected);
        }
        other => panic!("{other:?}"),
    }
}

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
