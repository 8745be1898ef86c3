//! What the records hold.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::channel::ChannelRecord;
use crate::hypervisor::Machine;
use crate::network::{NetworkPolicy, NetworkRecord};
use crate::types::{
    BaseId, DiskId, ImageName, MachineUid, Owner, ProcessRef, Resources, SnapshotId, WorkspaceId,
    WorkspaceName,
};
use crate::workspace::{ForkOrigin, WorkspaceState};

/// A workspace, as recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WorkspaceRecord {
    pub(crate) id: WorkspaceId,
    pub(crate) name: WorkspaceName,
    /// What it did when the record was written; whether its machine still lives is asked of the machine.
    pub(crate) state: WorkspaceState,
    pub(crate) crashed: bool,
    /// Seconds since 1970.
    pub(crate) created_at: u64,
    pub(crate) image: ImageName,
    pub(crate) base: BaseId,
    pub(crate) resources: Resources,
    pub(crate) policy: NetworkPolicy,
    pub(crate) uid: Option<MachineUid>,
    /// Changed by adoption and promotion alone, which do not wait for whoever is busy with the workspace: what a
    /// record in memory says is what was so when it was read.
    pub(crate) owner: Owner,
    /// Whether the machine's memory may hold an environment that an earlier owner had set.
    pub(crate) inherited: bool,
    /// The process it goes with.
    pub(crate) throwaway_of: Option<ProcessRef>,
    pub(crate) forked_from: Option<ForkOrigin>,
    /// The machine and what belongs to it; none while it is stopped.
    pub(crate) runtime: Option<Runtime>,
    pub(crate) boot_time_ms: Option<u64>,
    /// Whether it waits, paused, for somebody to ask for a workspace like it.
    pub(crate) pooled: bool,
}

impl WorkspaceRecord {
    /// Each workspace has one disk, named like it.
    pub(crate) fn disk(&self) -> DiskId {
        DiskId::from(*self.id.as_uuid())
    }
}

/// A machine and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Runtime {
    pub(crate) machine: Machine,
    pub(crate) network: NetworkRecord,
    pub(crate) channel: ChannelRecord,
}

/// A snapshot, as recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotRecord {
    pub(crate) id: SnapshotId,
    pub(crate) workspace: WorkspaceId,
    pub(crate) name: String,
    /// Seconds since 1970.
    pub(crate) created_at: u64,
    /// Whether it was completed; one that was not is undone by the next opener.
    pub(crate) ready: bool,
    /// Made by a fork of a stopped workspace, not by a user; goes with the last fork that needs it.
    pub(crate) hidden: bool,
    pub(crate) crash_consistent: bool,
    /// Whether there is a memory image of the same id.
    pub(crate) memory: bool,
}

/// A machine that others begin with, as recorded: its disk, the snapshot of that and the memory image have its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TemplateRecord {
    pub(crate) id: Uuid,
    pub(crate) base: BaseId,
    /// When a machine was made from it last, in seconds since 1970; not exact to the hour.
    pub(crate) used_at: u64,
}
