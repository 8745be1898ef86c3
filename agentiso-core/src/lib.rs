//! fork() for machines.
#![warn(missing_docs)]

mod backends;
pub mod channel;
mod config;
pub mod doctor;
mod error;
pub mod hypervisor;
pub mod image;
mod native;
pub mod network;
pub(crate) mod process;
#[cfg(feature = "shim")]
pub mod shim;
pub mod storage;
mod store;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
pub mod types;
mod workspace;

pub use backends::Backends;
pub use config::{Config, Layout};
pub use error::{Error, ErrorKind};
pub use store::StoreError;
pub use workspace::{
    ForkFailure, ForkOrigin, ForkReport, ForkSpec, ForkWorker, Host, Isolation, MAX_FORKS, MAX_SNAPSHOTS,
    PolicyChange, PortForward, PruneReport, Pruned, RestoreReport, SnapshotInfo, SnapshotSpec, Workspace,
    WorkspaceInfo, WorkspaceSpec, WorkspaceState, WorkspaceSummary,
};
