//! Memory of machines, kept and brought back.

use std::{future::Future, pin::Pin, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{HypervisorError, Machine};
use crate::storage::{DiskLayer, StorageError};
use crate::types::{MachineUid, MemoryMib, SnapshotId, VcpuCount};

/// Keeps memory and device state of machines, as *memory images* that further machines begin with
/// ([`Start::Restore`]).
///
/// An image holds what was in a guest's memory, secrets included: only the state folder's owner can read it.
#[async_trait]
pub trait MachineMemory: Send + Sync {
    /// What all machines that this hypervisor starts here have in common, as a name: an image that was made under
    /// another name cannot be used.
    fn image_key(&self) -> String;

    /// Keeps the memory and device state of a machine that runs, and what its disk holds at that moment. The machine
    /// stands still meanwhile, for as long as it takes to copy what it has written since it was started; then it runs
    /// on, whoever dies.
    ///
    /// On failure (and when the future is dropped) the machine runs, on the disk layer it had or on the new one (ask
    /// [`Hypervisor::active_layer`](super::Hypervisor::active_layer)), and no image is left, or an unfinished one
    /// that [`MachineMemory::images`] lists.
    ///
    /// # Errors
    /// The image exists; the machine is gone or does not run; the host's disk is full; it took so long that the
    /// machine had to run on.
    async fn capture(&self, machine: &Machine, spec: CaptureSpec<'_>) -> Result<Capture, HypervisorError>;

    /// What an image takes up, and whether machines can be started from it here and now.
    ///
    /// # Errors
    /// [`HypervisorError::NoImage`] if it is not there or was never finished.
    async fn image(&self, image: SnapshotId) -> Result<MemoryImage, HypervisorError>;

    /// Every image there is, finished or not.
    async fn images(&self) -> Result<Vec<SnapshotId>, HypervisorError>;

    /// Removes an image. Machines that were started from it go on. Not there: no effect.
    async fn delete_image(&self, image: SnapshotId) -> Result<(), HypervisorError>;
}

/// How a machine begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With nothing in its memory: its kernel boots.
    Boot,
    /// With the memory, devices and processes of an image.
    Restore(SnapshotId),
}

/// What is to be captured.
#[derive(Debug)]
pub struct CaptureSpec<'a> {
    /// The new image.
    pub image: SnapshotId,
    /// The user that the machine's processes run under.
    pub uid: Option<MachineUid>,
    /// What happens to the disk while the machine stands still.
    pub disk: DiskStep<'a>,
    /// How many machines are to be started from it at once, as far as is known: what is copied for each of one is
    /// shared by many.
    pub restores: u32,
    /// Whether the image must survive a power failure of the host.
    pub durable: bool,
    /// Whether the machine runs on.
    pub after: AfterCapture,
}

/// What happens to a disk while its machine is captured.
pub enum DiskStep<'a> {
    /// Nothing.
    Keep,
    /// The machine moves to this new layer.
    Pivot(DiskLayer),
    /// This takes a snapshot of it.
    Instant(Pin<Box<dyn Future<Output = Result<(), StorageError>> + Send + 'a>>),
}

impl std::fmt::Debug for DiskStep<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Keep => f.write_str("Keep"),
            Self::Pivot(to) => f.debug_tuple("Pivot").field(to).finish(),
            Self::Instant(_) => f.write_str("Instant"),
        }
    }
}

/// What a machine does once it is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterCapture {
    /// It runs on.
    Resume,
    /// It stands still, to be ended.
    StayPaused,
}

/// What a capture did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capture {
    /// How long the machine stood still.
    pub pause: Duration,
    /// What it had written since it was started, in bytes.
    pub written_bytes: u64,
    /// What took how long, in order.
    pub steps: Vec<(String, Duration)>,
}

/// An image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryImage {
    /// The machine's vCPUs; one that is started from it has as many.
    pub vcpus: VcpuCount,
    /// The machine's memory; one that is started from it has as much.
    pub memory: MemoryMib,
    /// Space that goes with it, in bytes.
    pub unique_bytes: u64,
    /// Space that it shares with other images and machines, in bytes.
    pub shared_bytes: u64,
    /// Why no machine can be started from it here and now, as in "it was made by QEMU 9.2.0, this is QEMU 10.0.2".
    pub obstacle: Option<String>,
}
