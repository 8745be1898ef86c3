//! Disks as ZFS volumes.
//!
//! ```text
//! tank/agentiso                          made by `agentiso init --zfs tank`; mounted nowhere
//! tank/agentiso/base/<base>              content of a base, and what it was sealed with: @sealed
//! tank/agentiso/workspaces/<disk>        a disk that was made from a base: a clone of its @sealed
//! tank/agentiso/forks/<disk>             a disk that was made from a snapshot of another: a clone of that
//! ...@<snapshot>                         a snapshot of a disk
//! ```
//!
//! Everything goes through libzfs_core, loaded at run time, and small programs in the kernel (channel programs) that
//! look, or check and change, in one piece. Nothing is written down anywhere else: user properties (`agentiso:...`) say
//! what each volume and snapshot is, are set together with it, and are what is gone by, never the names, for a
//! promotion moves snapshots to other volumes. A dataset without our tag, set on itself, is never changed or removed.
//!
//! A change takes effect by one request to the kernel: a clone made, a snapshot taken, a tag set. What it leaves behind
//! is waste, which the same call removes and, if that is interrupted, [`Storage::inventory`] or the next removal.
//! Waste that others still stand on is promoted away: one of the clones becomes the owner of the snapshots, and the old
//! volume can go. So a disk can always be destroyed, and put back to any snapshot, whatever was made from it.
//!
//! A snapshot is instant: one request while the machine stands still, no move to another layer. Disks have no chains.

mod bases;
mod device;
mod disks;
#[cfg(any(test, feature = "testkit"))]
mod faults;
mod kernel;
mod names;
mod pool;
mod setup;
mod shared;
mod snapshots;
mod sys;
#[cfg(test)]
mod tests;
mod usage;
mod world;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;

use super::{
    BaseInfo, DiskChain, DiskOrigin, DiskUsage, Inventory, Outcome, PendingSnapshot, ShortenPlan,
    SnapshotMethod, Storage, StorageCapabilities, StorageError,
};
use crate::types::{BaseId, DiskId, SnapshotId};
use names::Root;
use shared::Shared;

/// Name of the dataset in a pool, if no other is asked for.
pub const DEFAULT_DATASET: &str = "agentiso";

/// Space that must be left in the pool beside a new disk's full size, in bytes. A pool that runs full stops the writes
/// of every machine on it, and ZFS itself becomes slow long before.
pub const DEFAULT_RESERVE_BYTES: u64 = 1 << 30;

/// Where a [`ZfsStorage`] keeps its disks.
#[derive(Clone, Debug)]
pub struct ZfsConfig {
    /// The dataset that everything is below, as in `tank/agentiso`. Made by [`ZfsStorage::prepare`].
    pub dataset: String,
    /// The state folder's id: what datasets are tagged with.
    pub state_id: String,
    /// A file whose lock is held for moments; made if it is missing, with its folder. The same for all processes.
    pub lock: PathBuf,
    /// See [`DEFAULT_RESERVE_BYTES`].
    pub reserve_bytes: u64,
}

impl ZfsConfig {
    /// Disks below this dataset, with the default reserve.
    pub fn new(dataset: impl Into<String>, state_id: impl Into<String>, lock: impl Into<PathBuf>) -> Self {
        Self {
            dataset: dataset.into(),
            state_id: state_id.into(),
            lock: lock.into(),
            reserve_bytes: DEFAULT_RESERVE_BYTES,
        }
    }
}

/// Disks as volumes of a ZFS pool. Needs root.
///
/// Methods do their work on a thread of their own. One that is cancelled goes on there and completes.
#[derive(Clone, Debug)]
pub struct ZfsStorage {
    shared: Arc<Shared>,
}

impl ZfsStorage {
    /// Opens the storage in a dataset. Any number of processes may have it open.
    ///
    /// # Errors
    /// [`StorageError::Missing`] names what this host lacks, and the remedy: root, the libraries, the kernel's module,
    /// the pool, a pool that works, the dataset, or one of this state folder.
    pub async fn open(config: ZfsConfig) -> Result<Self, StorageError> {
        Self::open_on(config, |pool| Box::new(pool)).await
    }

    /// A storage that stops in the middle: after so many requests that change the pool, it fails before each further
    /// one. What it leaves is what a process leaves that is killed there, for each request is done whole or not at all.
    ///
    /// # Errors
    /// As [`ZfsStorage::open`].
    #[cfg(any(test, feature = "testkit"))]
    pub async fn open_stopping_after(config: ZfsConfig, changes: usize) -> Result<Self, StorageError> {
        Self::open_on(config, move |pool| Box::new(faults::Stopping::after(changes, pool))).await
    }

    async fn open_on(
        config: ZfsConfig,
        kernel: impl FnOnce(pool::Pool) -> Box<dyn kernel::Kernel> + Send + 'static,
    ) -> Result<Self, StorageError> {
        let shared = run(move || {
            let root = Root::parse(&config.dataset)?;
            let pool = setup::open(&root, &config.state_id)?;
            Ok(Shared {
                kernel: kernel(pool),
                root,
                lock: config.lock,
                reserve_bytes: config.reserve_bytes,
                begun: Mutex::default(),
            })
        });
        shared.await.map(|shared| Self { shared: Arc::new(shared) })
    }

    /// Makes the dataset that a storage is opened in, tagged as this state folder's, and not mounted. It is there and
    /// this state folder's: no effect. The pool is there already.
    ///
    /// # Errors
    /// As [`ZfsStorage::open`]. A dataset that somebody else made is refused, and left alone.
    pub async fn prepare(
        dataset: impl Into<String>,
        state_id: impl Into<String>,
    ) -> Result<(), StorageError> {
        let (dataset, state) = (dataset.into(), state_id.into());
        run(move || setup::prepare(&Root::parse(&dataset)?, &state)).await
    }

    async fn on_shared<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Shared) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let shared = Arc::clone(&self.shared);
        run(move || act(&shared)).await
    }
}

/// Runs what waits for the pool where it may wait.
async fn run<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    match tokio::task::spawn_blocking(act).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Err(StorageError::Io {
            operation: "use",
            object: "the storage while the runtime shuts down".to_owned(),
            source: std::io::Error::other(error),
        }),
    }
}

#[async_trait]
impl Storage for ZfsStorage {
    fn capabilities(&self) -> StorageCapabilities {
        StorageCapabilities {
            name: format!("zfs in {}", self.shared.root.as_str()),
            snapshot: SnapshotMethod::Instant,
        }
    }

    async fn begin_base(&self, base: BaseId, bytes: u64) -> Result<DiskChain, StorageError> {
        self.on_shared(move |shared| bases::begin(shared, base, bytes)).await
    }

    async fn seal_base(&self, base: BaseId) -> Result<BaseInfo, StorageError> {
        self.on_shared(move |shared| bases::seal(shared, base)).await
    }

    async fn delete_base(&self, base: BaseId) -> Result<(), StorageError> {
        self.on_shared(move |shared| bases::delete(shared, base)).await
    }

    async fn create_disk(&self, disk: DiskId, origin: DiskOrigin, bytes: u64) -> Result<(), StorageError> {
        self.on_shared(move |shared| disks::create(shared, disk, origin, bytes)).await
    }

    async fn open_disk(&self, disk: DiskId) -> Result<DiskChain, StorageError> {
        self.on_shared(move |shared| disks::open(shared, disk)).await
    }

    async fn begin_snapshot(
        &self,
        disk: DiskId,
        snapshot: SnapshotId,
    ) -> Result<PendingSnapshot, StorageError> {
        self.on_shared(move |shared| snapshots::begin(shared, disk, snapshot)).await
    }

    async fn finish_snapshot(
        &self,
        disk: DiskId,
        snapshot: SnapshotId,
        outcome: Outcome,
    ) -> Result<(), StorageError> {
        self.on_shared(move |shared| snapshots::finish(shared, disk, snapshot, outcome)).await
    }

    async fn rollback(&self, disk: DiskId, snapshot: SnapshotId) -> Result<Vec<SnapshotId>, StorageError> {
        self.on_shared(move |shared| disks::rollback(shared, disk, snapshot)).await
    }

    async fn delete_snapshot(&self, disk: DiskId, snapshot: SnapshotId) -> Result<(), StorageError> {
        self.on_shared(move |shared| snapshots::delete(shared, disk, snapshot)).await
    }

    async fn destroy_disk(&self, disk: DiskId) -> Result<(), StorageError> {
        self.on_shared(move |shared| disks::destroy(shared, disk)).await
    }

    async fn shorten_plan(&self, disk: DiskId, _most: usize) -> Result<Option<ShortenPlan>, StorageError> {
        self.on_shared(move |shared| disks::check_exists(shared, disk).map(|()| None)).await
    }

    async fn finish_shorten(&self, disk: DiskId, _plan: &ShortenPlan) -> Result<(), StorageError> {
        // No plan is ever made here.
        self.on_shared(move |shared| {
            disks::check_exists(shared, disk)?;
            Err(shared::missing(format_args!("the chain that disk {disk} was to shorten")))
        })
        .await
    }

    async fn usage(&self, disk: DiskId) -> Result<DiskUsage, StorageError> {
        self.on_shared(move |shared| usage::usage(shared, disk)).await
    }

    async fn inventory(&self) -> Result<Inventory, StorageError> {
        self.on_shared(usage::inventory).await
    }
}
