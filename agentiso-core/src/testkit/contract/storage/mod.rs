//! The contract of [`Storage`].

mod chains;
mod disks;
mod snapshots;

pub use chains::*;
pub use disks::*;
pub use snapshots::*;

use async_trait::async_trait;

use crate::{
    storage::{DiskChain, DiskOrigin, Inventory, Outcome, ShortenPlan, Storage, StorageError},
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

    /// Follows a plan as a machine that has opened these layers would: copies up what is to be dropped.
    async fn pull_up(&self, chain: &DiskChain, plan: &ShortenPlan);
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
                usage_counts_each_layer_once,
                short_chain_has_no_plan,
                shorter_chain_is_too_long_for_who_says_so,
                long_chain_gets_short_and_shows_the_same,
                plan_stays_until_the_disk_gets_another_layer,
                plan_waits_for_a_snapshot_that_is_begun,
                snapshots_and_forks_keep_the_layers_that_their_disk_left,
                layers_that_nobody_uses_any_more_are_given_up,
                finish_of_another_plan_changes_nothing,
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
use assert_error;

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
