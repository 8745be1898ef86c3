//! Runs machines.

mod log;
mod memory;
pub mod qemu;

use std::{path::PathBuf, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use log::printable;
pub use memory::{AfterCapture, Capture, CaptureSpec, DiskStep, MachineMemory, MemoryImage, Start};

use crate::channel::ChannelDevice;
use crate::network::Nic;
use crate::storage::{DiskChain, DiskLayer, LayerId, ShortenPlan};
use crate::types::{MachineUid, MemoryMib, ProcessRef, SnapshotId, VcpuCount, WorkspaceId};

/// Starts, watches and ends machines.
///
/// A machine is a process of its own that outlives whoever launched it; every method but `launch` works from a
/// [`Machine`] record alone, in any process of the same user.
#[async_trait]
pub trait Hypervisor: MachineMemory {
    /// What this hypervisor is and can do on this host. Never fails: what is missing was an error when it was opened.
    fn capabilities(&self) -> HypervisorCapabilities;

    /// Starts a machine and returns once its process is confined as asked, its control socket answers and its vCPUs
    /// run. The guest itself may still be booting; one that is restored goes on where its image was captured, within
    /// moments.
    ///
    /// On failure (and when the future is dropped) no process and no file of it is left; the error carries the tail
    /// of the machine's logs.
    async fn launch(&self, spec: LaunchSpec) -> Result<Machine, HypervisorError>;

    /// Whether the machine's process lives and what it does. A process that has the number but not the start time of
    /// the record is another one: the machine has then exited.
    async fn status(&self, machine: &Machine) -> Result<MachineStatus, HypervisorError>;

    /// Whether the machine's process lives and has not begun to end: `false` once a connection to it was seen to close for
    /// that. Asks the kernel only, never the machine: cheap, and never waits.
    fn is_alive(&self, machine: &Machine) -> bool;

    /// Stops the vCPUs. Already paused: no effect. Cancelled: paused or not.
    async fn pause(&self, machine: &Machine) -> Result<(), HypervisorError>;

    /// Lets the vCPUs run. Already running: no effect.
    async fn resume(&self, machine: &Machine) -> Result<(), HypervisorError>;

    /// The layer the machine writes to now. After a crash in the middle of a pivot only the machine itself knows.
    async fn active_layer(&self, machine: &Machine) -> Result<LayerId, HypervisorError>;

    /// Makes the machine write to a new, empty layer above its present one, which it keeps open read-only.
    ///
    /// On failure the machine goes on with the layer it had. Already on that layer: no effect.
    async fn pivot_disk(&self, machine: &Machine, to: &DiskLayer) -> Result<(), HypervisorError>;

    /// Makes the machine follow a plan that shortens its disk's chain: it copies what the layers to be dropped hold up
    /// into the topmost one, then reads on through the base and closes the others. The guest runs on and reads and
    /// writes meanwhile.
    ///
    /// Returns at once: starts the copying, or says how far it is. When all is copied, and on stable storage, and the
    /// layers are closed, says [`StreamStatus::Done`], each time from then on. The copying belongs to the machine and
    /// outlives whoever started it.
    ///
    /// On failure the disk shows what it showed, through the layers it had; a later call tries again, with what was
    /// copied so far. Fails if the machine's topmost layer is another, or the host's disk is full.
    async fn stream_disk(
        &self,
        machine: &Machine,
        plan: &ShortenPlan,
    ) -> Result<StreamStatus, HypervisorError>;

    /// Gives up the copying of [`Hypervisor::stream_disk`], and waits until the machine has left it: it can pivot
    /// then. What was copied stays in the topmost layer and does no harm. [`StreamStatus::Done`] if all was copied
    /// already, otherwise [`StreamStatus::Idle`], also if nothing was under way.
    async fn cancel_stream(
        &self,
        machine: &Machine,
        plan: &ShortenPlan,
    ) -> Result<StreamStatus, HypervisorError>;

    /// Presses the power button. What the guest makes of it is up to the guest.
    async fn power_button(&self, machine: &Machine) -> Result<(), HypervisorError>;

    /// Waits until the machine's process is gone. `false` if the time was over first.
    async fn wait_exit(&self, machine: &Machine, limit: Duration) -> Result<bool, HypervisorError>;

    /// Ends the machine at once, waits until it is gone, and removes what belonged to its process: helper processes
    /// and this hypervisor's files in the run folder, except the logs. Already gone: only the removal. Idempotent.
    async fn kill(&self, machine: &Machine) -> Result<(), HypervisorError>;

    /// How much of the host's memory the machine takes up. Asks the kernel only, never the machine.
    ///
    /// # Errors
    /// [`HypervisorError::Gone`] if it has exited.
    async fn memory_usage(&self, machine: &Machine) -> Result<MemoryUsage, HypervisorError>;

    /// What a machine uses of what it is limited to; `None` if it is not limited, or gone. Asks the kernel only.
    fn limited_usage(&self, _machine: &Machine) -> Option<MachineUsage> {
        None
    }

    /// The newest bytes of a log of a machine, running or not, as the guest wrote them: see [`printable`]. Empty if
    /// there is none.
    async fn log_tail(
        &self,
        run_dir: &std::path::Path,
        log: MachineLog,
        max_bytes: u64,
    ) -> Result<Vec<u8>, HypervisorError>;

    /// Processes that this hypervisor started for this state folder, by the workspace they carry in their name.
    /// For finding those that no record knows.
    async fn processes(&self) -> Result<Vec<(WorkspaceId, ProcessRef)>, HypervisorError>;

    /// Ends a process that [`Hypervisor::processes`] listed, and waits until it is gone. Gone already, or another
    /// process has its number by now: no effect.
    async fn kill_process(&self, process: &ProcessRef) -> Result<(), HypervisorError>;
}

/// What a hypervisor is and can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HypervisorCapabilities {
    /// For people, with its version: `QEMU 10.0.2`.
    pub name: String,
    /// What runs the guest's code.
    pub accelerator: Accelerator,
    /// Whether the host's kernel limits what each machine's process uses, from outside of it.
    pub limited: bool,
    /// What stands between a guest that broke the hypervisor and the host, one line each, for `info` and `doctor`.
    pub confinement: Vec<String>,
    /// What should stand there too and does not on this host, one line each with the reason.
    pub open: Vec<String>,
}

/// What runs a guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accelerator {
    /// The CPU, through /dev/kvm.
    Kvm,
    /// QEMU's emulator.
    Tcg,
    /// Nothing does: a fake for tests.
    Fake,
}

/// Everything a machine is started with. Owns the descriptors that the machine inherits.
#[derive(Debug)]
pub struct LaunchSpec {
    /// Whose machine.
    pub id: WorkspaceId,
    /// The user its processes run under; `Some` exactly when the launcher is root.
    pub uid: Option<MachineUid>,
    /// How it begins.
    pub start: Start,
    /// Virtual CPUs.
    pub vcpus: VcpuCount,
    /// Memory.
    pub memory: MemoryMib,
    /// Uncompressed kernel (vmlinux with a PVH note).
    pub kernel: PathBuf,
    /// Initial RAM file system with the agent.
    pub initramfs: PathBuf,
    /// Words for the agent on the kernel's command line; none holds anything of a user's.
    pub agent_options: Vec<AgentOption>,
    /// The machine's disk.
    pub disk: DiskChain,
    /// Its network card; none without.
    pub nic: Option<Nic>,
    /// How the host will reach the agent.
    pub channel: ChannelDevice,
    /// Existing empty folder, private to the state folder's owner, for sockets and logs.
    pub run_dir: PathBuf,
}

/// A word for the agent on the kernel's command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentOption {
    /// The root disk is empty: make it the root all the same and wait for what the host unpacks onto it.
    EmptyRoot,
}

/// A machine's process, as recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Whose machine.
    pub id: WorkspaceId,
    /// The process that is the machine.
    pub process: ProcessRef,
    /// Folder of sockets and logs.
    pub run_dir: PathBuf,
    /// What the backend needs to find the rest again.
    pub details: serde_json::Value,
}

/// What a machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineStatus {
    /// Its vCPUs run.
    Running,
    /// Its vCPUs are stopped.
    Paused,
    /// Its process is gone.
    Exited,
}

/// How far a machine is with shortening its disk's chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamStatus {
    /// It is not at it.
    Idle,
    /// It copies.
    Running {
        /// Bytes of the disk that were looked at.
        done_bytes: u64,
        /// Bytes of the disk in all, as far as is known.
        total_bytes: u64,
    },
    /// All is copied; the layers to be dropped are closed.
    Done,
}

/// How much of the host's memory a machine takes up, all of its hypervisor process included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUsage {
    /// Memory that is the machine's alone and is free again when it ends: what it has written, and what its process
    /// needs for itself; swapped out or not. In bytes.
    pub unique_bytes: u64,
    /// Resident pages of files: of the memory image that it began from, as far as it has not written to them, and of
    /// programs. They are in the host's page cache once, however many machines have them mapped, and count fully for
    /// each of these. In bytes.
    pub shared_bytes: u64,
    /// All that is in the host's memory: the two above, without what is swapped out. In bytes.
    pub resident_bytes: u64,
}

/// What a machine uses of what it is limited to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineUsage {
    /// Memory that is counted for it, its share of the page cache included, in bytes.
    pub memory_bytes: u64,
    /// CPU time since it was started, in microseconds.
    pub cpu_us: u64,
    /// Its threads.
    pub threads: u64,
}

/// Which log of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MachineLog {
    /// What the guest's kernel and agent print.
    Console,
    /// What the hypervisor's process prints.
    Stderr,
}

/// Why a hypervisor could not do something.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// A program or device this host lacks, with the remedy.
    #[error("{what} is missing: {remedy}")]
    Missing {
        /// What.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// Older than what agentiso needs.
    #[error("{found} is too old, {needed} or later is needed: {remedy}")]
    TooOld {
        /// What was found, with its version.
        found: String,
        /// The version needed.
        needed: &'static str,
        /// What to do about it.
        remedy: String,
    },
    /// The machine did not come up.
    #[error("machine {id} did not start: {reason}{}", if .log.is_empty() { String::new() } else { format!("\nthe end of its log:\n{}", .log) })]
    Launch {
        /// Whose machine.
        id: WorkspaceId,
        /// What went wrong.
        reason: String,
        /// The end of its logs, cleaned of control characters.
        log: String,
        /// What lies beneath.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// There is no such memory image.
    #[error("there is no memory image {image}")]
    NoImage {
        /// Which.
        image: SnapshotId,
    },
    /// A machine cannot be started from a memory image on this host, as it is now.
    #[error("memory image {image} cannot be used here: {reason}")]
    Incompatible {
        /// Which.
        image: SnapshotId,
        /// What differs.
        reason: String,
    },
    /// The machine could not stand still for as long as capturing it takes.
    #[error(
        "machine {id} could not be captured within {limit:?} and runs on: try again when the host is less busy"
    )]
    TooSlow {
        /// Whose machine.
        id: WorkspaceId,
        /// How long a machine stands still at most.
        limit: Duration,
    },
    /// The machine's process is gone.
    #[error("machine {id} is not running")]
    Gone {
        /// Whose machine.
        id: WorkspaceId,
    },
    /// The control socket did not do as asked.
    #[error("could not {operation} machine {id}")]
    Control {
        /// What was being done, as in "pause".
        operation: &'static str,
        /// Whose machine.
        id: WorkspaceId,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file or process of the host.
    #[error("could not {operation} {object}")]
    Io {
        /// What was being done, as in "open".
        operation: &'static str,
        /// To what.
        object: String,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
}
