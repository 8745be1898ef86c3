//! What callers are told. Each type's JSON form is what the CLI's `--json` and the MCP tools print.

use serde::{Deserialize, Serialize};

use crate::hypervisor::MachineUsage;
use crate::native::BackendChoice;
use crate::network::NetworkPolicy;
use crate::types::{GuestPort, HostPort, Owner, Resources, SnapshotId, WorkspaceId};

/// What a workspace does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkspaceState {
    /// Being made.
    Creating,
    /// Its machine boots.
    Starting,
    /// Its machine runs.
    Running,
    /// Its machine's vCPUs are stopped.
    Paused,
    /// Its machine shuts down.
    Stopping,
    /// It has no machine; its disk is kept.
    Stopped,
    /// Being removed.
    Destroying,
}

impl WorkspaceState {
    /// Whether it is being made or removed: not all of what belongs to it is there.
    pub(super) fn is_passing(self) -> bool {
        matches!(self, Self::Creating | Self::Destroying)
    }
}

impl std::fmt::Display for WorkspaceState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Destroying => "destroying",
        })
    }
}

/// One line about a workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceSummary {
    /// Its id.
    pub workspace_id: WorkspaceId,
    /// What people call it.
    pub name: String,
    /// What it does.
    pub state: WorkspaceState,
    /// Whether its machine ended without having been asked to.
    pub crashed: bool,
    /// The image it began from.
    pub image: String,
    /// When it was created, in seconds since 1970.
    pub created_at: u64,
    /// CPUs, memory and disk.
    pub resources: Resources,
    /// The guest's address, while it has one.
    pub ip: Option<String>,
    /// Who owns it: `operator`, a session's name, or `nobody`.
    pub owner: Owner,
    /// Whether it goes with the process that made it.
    pub throwaway: bool,
}

/// Everything about a workspace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceInfo {
    /// The line about it.
    #[serde(flatten)]
    pub summary: WorkspaceSummary,
    /// Process id of its machine.
    pub pid: Option<u32>,
    /// How long its last start took until the agent had confirmed its configuration, in milliseconds.
    pub boot_time_ms: Option<u64>,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<SnapshotInfo>,
    /// What it may reach.
    pub network: NetworkPolicy,
    /// Its forwards.
    pub port_forwards: Vec<PortForward>,
    /// Space its disk takes up on the host, without what it shares with others, in bytes.
    pub disk_used_bytes: u64,
    /// Space it shares with its image and other workspaces, in bytes.
    pub disk_shared_bytes: u64,
    /// Memory of the host that its machine alone takes up, in bytes; none while it has no machine.
    pub memory_unique_bytes: Option<u64>,
    /// Memory that its machine maps from files and shares with other machines and the host's page cache, in bytes; none
    /// while it has no machine.
    pub memory_shared_bytes: Option<u64>,
    /// What its machine uses of what the host's kernel limits it to; none while it has no machine, or none that is limited.
    #[serde(default)]
    pub usage: Option<MachineUsage>,
    /// The workspace it was forked from.
    pub forked_from: Option<ForkOrigin>,
    /// What stands between it and the host.
    pub isolation: Isolation,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Its id.
    pub snapshot_id: SnapshotId,
    /// What people call it.
    pub name: String,
    /// When it was taken, in seconds since 1970.
    pub created_at: u64,
    /// Whether it holds the machine's memory.
    pub memory: bool,
    /// Whether it was taken without the guest having flushed its file systems.
    pub crash_consistent: bool,
    /// Space it holds on the host, disk and memory, without what it shares with others, in bytes.
    pub size_bytes: u64,
}

/// What a restore did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreReport {
    /// The snapshot that was restored.
    pub restored: String,
    /// Newer snapshots that are gone, oldest first.
    pub removed_snapshots: Vec<String>,
    /// What the workspace does now.
    pub state: WorkspaceState,
}

/// A port of the host's loopback that leads to a port of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortForward {
    /// The guest's port.
    pub guest_port: GuestPort,
    /// The host's port.
    pub host_port: HostPort,
}

/// Where a fork began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkOrigin {
    /// The workspace.
    pub workspace_id: WorkspaceId,
    /// Its name when the fork was made.
    pub name: String,
    /// The snapshot's name, if it was forked from a named one.
    pub snapshot: Option<String>,
}

/// What stands between a workspace and the host, honestly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    /// `vm-kvm`, `vm-tcg` or `fake`: what runs the guest's code.
    pub level: String,
    /// The hypervisor with its version.
    pub hypervisor: String,
    /// How its disk is kept.
    pub storage: String,
    /// How it is connected.
    pub network: String,
    /// How the host reaches its agent.
    pub channel: String,
    /// What confines a hypervisor that a guest has broken.
    pub confinement: Vec<String>,
    /// What is open that should not be, with the reason.
    pub open: Vec<String>,
    /// Which backend of each kind is used for machines that are started now, and why. Empty for a host that was given
    /// its backends.
    #[serde(default)]
    pub backends: Vec<BackendChoice>,
}

/// What a fork did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkReport {
    /// Forks that run.
    pub success_count: usize,
    /// Forks that could not be made.
    pub failure_count: usize,
    /// Those that run.
    pub workers: Vec<ForkWorker>,
    /// Those that could not be made, with the reason.
    pub failures: Vec<ForkFailure>,
    /// The workspace they were forked from.
    pub forked_from: ForkOrigin,
    /// What it cost that workspace, if it ran and was forked as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standstill: Option<Standstill>,
}

/// How long a workspace stood still while it was forked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standstill {
    /// How long the machine did, in microseconds.
    pub paused_us: u64,
    /// How long its processes did at most, in microseconds: from the order to freeze them until it was confirmed that
    /// they run.
    pub stalled_us: u64,
    /// What the machine had written to its memory since it was started, in bytes.
    pub written_bytes: u64,
}

/// A fork that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkWorker {
    /// Its id.
    pub workspace_id: WorkspaceId,
    /// Its name.
    pub name: String,
    /// What it does.
    pub state: WorkspaceState,
}

/// A fork that could not be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkFailure {
    /// The name it would have had.
    pub name: String,
    /// Why.
    pub error: String,
}

/// What [`Host::prune`](crate::Host::prune) removes, or would remove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneReport {
    /// Images that no workspace uses.
    pub images: Vec<Pruned>,
    /// Throwaway workspaces.
    pub workspaces: Vec<Pruned>,
    /// All sizes together, in bytes.
    pub total_bytes: u64,
    /// Whether it was done, or only looked at.
    pub done: bool,
}

/// One thing that was pruned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Its name.
    pub name: String,
    /// Space it took up, in bytes.
    pub bytes: u64,
}
