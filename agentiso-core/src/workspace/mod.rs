//! The engine: workspaces and what can be done with them.

mod capture;
mod create;
mod engine;
mod fork;
mod handle;
mod host;
mod info;
mod lifecycle;
mod lock;
mod machine;
mod reconcile;
mod shorten;
mod snapshot;
mod spec;
mod template;

pub use handle::Workspace;
pub use host::Host;
pub use info::{
    ForkFailure, ForkOrigin, ForkReport, ForkWorker, Isolation, PortForward, PruneReport, Pruned,
    RestoreReport, SnapshotInfo, WorkspaceInfo, WorkspaceState, WorkspaceSummary,
};
pub use lifecycle::PolicyChange;
pub use spec::{ForkSpec, MAX_FORKS, MAX_SNAPSHOTS, RestoreSpec, SnapshotSpec, WorkspaceSpec};

#[cfg(test)]
mod tests;
