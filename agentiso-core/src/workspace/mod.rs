//! The engine: workspaces and what can be done with them.

mod capture;
mod create;
mod diff;
mod engine;
mod fork;
mod handle;
mod host;
mod info;
mod lifecycle;
mod lock;
mod machine;
mod pool;
mod promote;
mod reconcile;
mod shorten;
mod snapshot;
mod spec;
mod template;
mod tree;
mod warm_up;

pub use diff::{Aspect, Change, DiffSide, DiffSpec, DiffStream, Difference, FileState};
pub use handle::Workspace;
pub use host::Host;
pub use info::{
    ForkFailure, ForkOrigin, ForkReport, ForkWorker, Isolation, PortForward, PruneReport, Pruned,
    RestoreReport, SnapshotInfo, Standstill, WorkspaceInfo, WorkspaceState, WorkspaceSummary,
};
pub use lifecycle::PolicyChange;
pub use pool::{MAX_POOL, Pool, PoolSpec};
pub(crate) use promote::old_names;
pub use promote::{PromoteReport, PromoteSpec};
pub use spec::{ForkSpec, MAX_FORKS, MAX_SNAPSHOTS, RestoreSpec, SnapshotSpec, WorkspaceSpec};
pub use tree::TreeNode;

#[cfg(test)]
mod tests;
