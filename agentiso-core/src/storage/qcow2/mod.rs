//! Disks as files in one folder: raw bases, qcow2 layers above them, and a manifest per disk that says which.
//!
//! ```text
//! <folder>/lock                  whoever adds layers shares it, whoever removes some has it alone; for milliseconds
//! <folder>/bases/<base>.raw      content of a base; read-only once sealed
//! <folder>/bases/<base>.json     its manifest
//! <folder>/layers/<layer>.qcow2  one layer; read-only once something is above it
//! <folder>/disks/<disk>.json     manifest of a disk: its layers, snapshots, and the snapshot under way
//! ```
//!
//! Manifests are the only truth: written whole (temporary file, fsync, rename, fsync of the folder), closed by a
//! checksum, and never guessed from what a layer holds, for a guest that broke its hypervisor can write anything
//! into its topmost layer. This storage itself never reads a layer, and makes each from scratch (see `format`).
//!
//! A change takes effect when its manifest does. A layer is made before the manifest that names it and removed after
//! the last one that does, so a process that is killed can leave a file that no manifest names, never the reverse.
//! [`Storage::inventory`] and every removal sweep such files away. One damaged manifest makes its disk unusable until
//! it is destroyed, and nothing else; but no layer is swept meanwhile, for the manifest could have named it.
//!
//! Forks share layers: a layer lives as long as any manifest names it, for its disk or for a snapshot. Deleting a
//! snapshot therefore removes the point one can go back to; what of its data is part of what is above it stays, and its
//! space is counted for the next newer snapshot, or for the disk.
//!
//! A long chain is shortened by the disk's user (see [`ShortenPlan`]): it copies the layers in the middle up into the
//! topmost. The manifest lists each snapshot's layers in full, so the disk's chain can then leave them out. Until it
//! does, the longer chain is right too: it shows the same content.
//!
//! A snapshot that was begun by a process that died can always be committed: either layer below and above is right
//! for a user that moved and for one that did not. Aborting is refused once the new layer was written to.

mod bases;
mod disks;
mod files;
mod format;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod manifest;
mod shorten;
mod sweep;
#[cfg(test)]
mod tests;
mod usage;

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;

use super::{
    BaseInfo, DiskChain, DiskOrigin, DiskUsage, Inventory, Outcome, PendingSnapshot, ShortenPlan,
    SnapshotMethod, Storage, StorageCapabilities, StorageError,
};
use crate::types::{BaseId, DiskId, SnapshotId};
use files::Folder;

/// Space that must be free before a base or disk is made, in bytes. A machine that starts with less soon fails its
/// guest's writes; which they are is worse to find out than this.
pub const DEFAULT_RESERVE_BYTES: u64 = 256 << 20;

/// Where a [`Qcow2Storage`] keeps its files.
#[derive(Clone, Debug)]
pub struct Qcow2Config {
    /// The folder; made, with mode 0700, if it is not there.
    pub folder: PathBuf,
    /// See [`DEFAULT_RESERVE_BYTES`].
    pub reserve_bytes: u64,
}

impl Qcow2Config {
    /// Files in this folder, with the default reserve.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), reserve_bytes: DEFAULT_RESERVE_BYTES }
    }
}

/// Disks as qcow2 files in a folder.
///
/// Methods do their work on a thread of their own. One that is cancelled goes on there and completes.
#[derive(Clone, Debug)]
pub struct Qcow2Storage {
    folder: Arc<Folder>,
}

impl Qcow2Storage {
    /// Opens the storage in a folder. Any number of processes may have it open.
    ///
    /// # Errors
    /// [`StorageError::Io`] if the folder cannot be made.
    pub async fn open(config: Qcow2Config) -> Result<Self, StorageError> {
        run(move || Folder::open(&config)).await.map(|folder| Self { folder: Arc::new(folder) })
    }

    async fn on_folder<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Folder) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let folder = Arc::clone(&self.folder);
        run(move || act(&folder)).await
    }
}

/// Runs what waits for the host's disk where it may wait.
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
impl Storage for Qcow2Storage {
    fn capabilities(&self) -> StorageCapabilities {
        StorageCapabilities {
            name: format!("qcow2 in {}", self.folder.path().display()),
            snapshot: SnapshotMethod::Pivot,
        }
    }

    async fn begin_base(&self, base: BaseId, bytes: u64) -> Result<DiskChain, StorageError> {
        self.on_folder(move |folder| bases::begin(folder, base, bytes)).await
    }

    async fn seal_base(&self, base: BaseId) -> Result<BaseInfo, StorageError> {
        self.on_folder(move |folder| bases::seal(folder, base)).await
    }

    async fn delete_base(&self, base: BaseId) -> Result<(), StorageError> {
        self.on_folder(move |folder| bases::delete(folder, base)).await
    }

    async fn create_disk(&self, disk: DiskId, origin: DiskOrigin, bytes: u64) -> Result<(), StorageError> {
        self.on_folder(move |folder| disks::create(folder, disk, origin, bytes)).await
    }

    async fn open_disk(&self, disk: DiskId) -> Result<DiskChain, StorageError> {
        self.on_folder(move |folder| disks::chain(folder, disk)).await
    }

    async fn begin_snapshot(
        &self,
        disk: DiskId,
        snapshot: SnapshotId,
    ) -> Result<PendingSnapshot, StorageError> {
        self.on_folder(move |folder| disks::begin_snapshot(folder, disk, snapshot)).await
    }

    async fn finish_snapshot(
        &self,
        disk: DiskId,
        snapshot: SnapshotId,
        outcome: Outcome,
    ) -> Result<(), StorageError> {
        self.on_folder(move |folder| disks::finish_snapshot(folder, disk, snapshot, outcome)).await
    }

    async fn rollback(&self, disk: DiskId, snapshot: SnapshotId) -> Result<Vec<SnapshotId>, StorageError> {
        self.on_folder(move |folder| disks::rollback(folder, disk, snapshot)).await
    }

    async fn delete_snapshot(&self, disk: DiskId, snapshot: SnapshotId) -> Result<(), StorageError> {
        self.on_folder(move |folder| disks::delete_snapshot(folder, disk, snapshot)).await
    }

    async fn destroy_disk(&self, disk: DiskId) -> Result<(), StorageError> {
        self.on_folder(move |folder| disks::destroy(folder, disk)).await
    }

    async fn shorten_plan(&self, disk: DiskId, most: usize) -> Result<Option<ShortenPlan>, StorageError> {
        self.on_folder(move |folder| shorten::plan(folder, disk, most)).await
    }

    async fn finish_shorten(&self, disk: DiskId, plan: &ShortenPlan) -> Result<(), StorageError> {
        let plan = plan.clone();
        self.on_folder(move |folder| shorten::finish(folder, disk, &plan)).await
    }

    async fn usage(&self, disk: DiskId) -> Result<DiskUsage, StorageError> {
        self.on_folder(move |folder| usage::usage(folder, disk)).await
    }

    async fn inventory(&self) -> Result<Inventory, StorageError> {
        self.on_folder(sweep::inventory).await
    }
}
