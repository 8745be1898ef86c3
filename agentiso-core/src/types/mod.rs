//! Names, numbers and sizes that cannot be wrong once they exist.

mod ids;
mod names;
mod owner;
mod process;
mod sizes;

pub use ids::{BaseId, DiskId, SnapshotId, WorkspaceId};
pub(crate) use names::MAX_NAME_BYTES;
pub use names::{
    ImageName, InvalidName, SnapshotName, WorkspaceName, guest_hostname, is_valid_workspace_name,
};
pub use owner::{InvalidSessionName, Owner, SessionId};
pub use process::{MachineUid, ProcessRef};
pub use sizes::{DiskGib, GuestPort, HostPort, InvalidSize, MemoryMib, Resources, VcpuCount};
