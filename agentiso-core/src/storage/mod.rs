//! Disks of machines and the images they begin from.

mod chain;
pub mod qcow2;
pub mod zfs;

use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub(crate) use self::chain::new_base;
pub use self::chain::{FORKED_CHAIN_DEPTH, MAX_CHAIN_DEPTH, ShortenPlan};
use crate::types::{BaseId, DiskId, SnapshotId};

/// Keeps base images, disks and snapshots of disks.
///
/// Callers hold the lock of the workspace that a disk belongs to; a storage guards what disks share. Whatever a method
/// changes is on stable storage when it returns. A method that fails, or whose process is killed, leaves what was
/// there before, or something [`Storage::inventory`] lists and `destroy_disk` or `delete_base` removes.
#[async_trait]
pub trait Storage: Send + Sync {
    /// What this storage is and can do.
    fn capabilities(&self) -> StorageCapabilities;

    /// Makes an empty, writable base of that many bytes, all zero, for a machine to fill.
    async fn begin_base(&self, base: BaseId, bytes: u64) -> Result<DiskChain, StorageError>;

    /// Makes a base that was begun immutable. Disks can be made from it from now on. Already sealed: no effect.
    async fn seal_base(&self, base: BaseId) -> Result<BaseInfo, StorageError>;

    /// Removes a base, sealed or not. Not there: no effect.
    ///
    /// # Errors
    /// [`StorageError::InUse`] names the disks made from it.
    async fn delete_base(&self, base: BaseId) -> Result<(), StorageError>;

    /// Makes a writable disk that begins with the content of a base or of a snapshot (of any disk).
    ///
    /// # Errors
    /// The origin is not there or larger than `bytes`; the host's disk is full; the disk exists.
    async fn create_disk(&self, disk: DiskId, origin: DiskOrigin, bytes: u64) -> Result<(), StorageError>;

    /// The layers a machine opens to use the disk. While a snapshot is begun, still those without the new layer:
    /// finish it first.
    async fn open_disk(&self, disk: DiskId) -> Result<DiskChain, StorageError>;

    /// Begins a snapshot. A disk has at most one that is begun and not finished.
    ///
    /// [`SnapshotMethod::Pivot`]: makes the layer that takes over; the disk's user, if there is one, must move to it
    /// (or none exists) before [`Storage::finish_snapshot`]. [`SnapshotMethod::Instant`]: notes the intent; the
    /// snapshot is taken in `finish_snapshot`, while the disk's user is paused.
    ///
    /// # Errors
    /// [`StorageError::Exists`]: the snapshot is there, or another one is not finished.
    async fn begin_snapshot(
        &self,
        disk: DiskId,
        snapshot: SnapshotId,
    ) -> Result<PendingSnapshot, StorageError>;

    /// Ends what `begin_snapshot` began. Committing keeps the snapshot; aborting, allowed only while no one has moved
    /// to the new layer, leaves the disk as it was. Finished already, the same way: no effect.
    ///
    /// When it is not known whether anyone moved (who began it died, and so did the machine), committing is right
    /// either way.
    ///
    /// # Errors
    /// [`StorageError::NotFound`]: committing what was not begun. [`StorageError::Exists`]: aborting what was
    /// committed. [`StorageError::InUse`]: aborting although the new layer was written to.
    async fn finish_snapshot(
        &self,
        disk: DiskId,
        snapshot: SnapshotId,
        outcome: Outcome,
    ) -> Result<(), StorageError>;

    /// Puts a disk that nobody uses back to a snapshot, and removes the snapshots that are newer. Returns those,
    /// oldest first. A crash leaves the disk as it was or as it becomes.
    ///
    /// # Errors
    /// [`StorageError::InUse`] if a disk was made from a newer snapshot and the storage cannot keep it otherwise.
    async fn rollback(&self, disk: DiskId, snapshot: SnapshotId) -> Result<Vec<SnapshotId>, StorageError>;

    /// Removes a snapshot. Not there: no effect.
    ///
    /// # Errors
    /// [`StorageError::InUse`] names the disks made from it.
    async fn delete_snapshot(&self, disk: DiskId, snapshot: SnapshotId) -> Result<(), StorageError>;

    /// Removes a disk that nobody uses, with its snapshots. What other disks were made from lives on for them. Not
    /// there, or only half made: removes what there is.
    async fn destroy_disk(&self, disk: DiskId) -> Result<(), StorageError>;

    /// What makes a disk's chain of layers short again, if it has more than `most`, which is usually
    /// [`MAX_CHAIN_DEPTH`], or was found too long before; `None` for a shorter one, and always from a storage whose
    /// disks have no chains. Changes nothing about the disk.
    ///
    /// The plan is noted and stays the same until it is finished, or the disk gets another topmost layer: whoever
    /// follows it may die in the middle, and another go on. A plan that nobody followed does no harm.
    ///
    /// # Errors
    /// [`StorageError::Full`]: the host's disk might not hold what would be copied.
    /// [`StorageError::Exists`]: a snapshot of the disk is begun; finish it first.
    async fn shorten_plan(&self, disk: DiskId, most: usize) -> Result<Option<ShortenPlan>, StorageError>;

    /// Takes the layers that a plan drops out of a disk's chain, and removes those that no snapshot and no other disk
    /// uses. The disk's user, if there is one, has followed the plan: the topmost layer holds, on stable storage, all
    /// that they held. Finished already: no effect. A crash leaves the disk as it was or as it becomes; either is right.
    ///
    /// # Errors
    /// [`StorageError::NotFound`]: the plan is not of the disk's present chain. Nothing is changed then.
    async fn finish_shorten(&self, disk: DiskId, plan: &ShortenPlan) -> Result<(), StorageError>;

    /// What a disk takes up.
    async fn usage(&self, disk: DiskId) -> Result<DiskUsage, StorageError>;

    /// Everything this storage holds, finished or not.
    async fn inventory(&self) -> Result<Inventory, StorageError>;
}

/// What a storage is and can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StorageCapabilities {
    /// For people: `qcow2 in /var/lib/agentiso/disks`.
    pub name: String,
    /// How a disk in use is snapshotted.
    pub snapshot: SnapshotMethod,
}

/// How a disk in use is snapshotted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotMethod {
    /// At once, underneath its user, who should be paused meanwhile.
    Instant,
    /// Its user moves to a new layer.
    Pivot,
}

/// Name of one layer: 24 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LayerId(pub(crate) String);

impl LayerId {
    /// A new one, from random bits.
    pub fn random() -> Self {
        let mut digits = uuid::Uuid::new_v4().simple().to_string();
        digits.truncate(24);
        Self(digits)
    }

    /// Reads 24 lower-case hexadecimal digits; anything else is `None`.
    pub fn parse(text: &str) -> Option<Self> {
        let valid = text.len() == 24 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        valid.then(|| Self(text.to_owned()))
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for LayerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// One file or device of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLayer {
    /// Its name, from the storage's records.
    pub id: LayerId,
    /// Where it is.
    pub path: PathBuf,
    /// How it is laid out. From the records: never found out by looking at what a guest could have written.
    pub format: LayerFormat,
    /// Size of the disk it shows, in bytes.
    pub bytes: u64,
}

/// How a layer is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerFormat {
    /// As the guest sees it.
    Raw,
    /// QEMU copy-on-write.
    Qcow2,
}

/// The layers of a disk. The first is written to, each other is read through those above it and never written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskChain {
    /// Topmost first; not empty.
    pub layers: Vec<DiskLayer>,
}

/// What a disk begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskOrigin {
    /// A sealed base.
    Base(BaseId),
    /// A snapshot of a disk.
    Snapshot {
        /// The disk.
        disk: DiskId,
        /// The snapshot.
        snapshot: SnapshotId,
    },
}

/// A snapshot that has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PendingSnapshot {
    /// The disk's user must move to this layer.
    Pivot {
        /// The new topmost layer.
        to: DiskLayer,
    },
    /// Nothing to do for the disk's user.
    Instant,
}

/// How a snapshot that has begun ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is kept.
    Commit,
    /// It never was.
    Abort,
}

/// A sealed base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseInfo {
    /// Size of the disk, in bytes.
    pub bytes: u64,
    /// Space it takes up on the host, in bytes.
    pub used_bytes: u64,
}

/// What a disk takes up on the host: the space of its layers, holes not counted. Each layer is counted once, and is
/// either unique or shared, so that the unique bytes of all disks and the shared layers, each counted once, are what
/// the files take up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUsage {
    /// Size of the disk as the guest sees it, in bytes.
    pub bytes: u64,
    /// Space of what only this disk and its snapshots use, in bytes.
    pub unique_bytes: u64,
    /// Space of what it shares with other disks and their snapshots, in bytes. A base is always shared.
    pub shared_bytes: u64,
    /// What of the unique bytes each snapshot holds, oldest first, in bytes. A layer that several have counts for the
    /// oldest of them; what no snapshot has is the disk's alone.
    pub snapshots: Vec<(SnapshotId, u64)>,
}

/// Everything a storage holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Bases, sealed or not.
    pub bases: Vec<BaseId>,
    /// Disks, whole or not.
    pub disks: Vec<DiskId>,
    /// Snapshots that were begun and not finished.
    pub pending: Vec<(DiskId, SnapshotId, Option<LayerId>)>,
}

/// Why a storage could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// No such base, disk or snapshot.
    #[error("{what} does not exist")]
    NotFound {
        /// Which, as in `snapshot 3f...`.
        what: String,
    },
    /// It exists already.
    #[error("{what} exists already")]
    Exists {
        /// Which.
        what: String,
    },
    /// Others depend on it.
    #[error("{what} is in use by {} disk(s)", .dependents.len())]
    InUse {
        /// Which.
        what: String,
        /// The disks that were made from it.
        dependents: Vec<DiskId>,
    },
    /// The disk asked for is smaller than what it begins with.
    #[error("a disk of {given} bytes cannot hold its origin's {needed} bytes")]
    TooSmall {
        /// Bytes asked for.
        given: u64,
        /// Bytes needed.
        needed: u64,
    },
    /// The host's disk is full.
    #[error("the host has not enough free space for {what}")]
    Full {
        /// What was being made.
        what: String,
    },
    /// A record of the storage makes no sense.
    #[error("the storage's record {record} is damaged: {reason}")]
    Damaged {
        /// Which file or property.
        record: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A program or library this host lacks, with the remedy.
    #[error("{what} is missing: {remedy}")]
    Missing {
        /// What.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// A file of the host.
    #[error("could not {operation} {object}")]
    Io {
        /// What was being done, as in "write".
        operation: &'static str,
        /// To what.
        object: String,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
}
