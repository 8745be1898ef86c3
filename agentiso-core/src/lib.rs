//! fork() for machines: real Linux machines for agents, embeddable, with or without root and KVM.
//!
//! ```no_run
//! # async fn demo() -> Result<(), Box<dyn std::error::Error>> {
//! use agentiso_core::{Config, Host, WorkspaceSpec};
//!
//! let host = Host::open(Config::from_env()?).await?;
//! let workspace = host.create(WorkspaceSpec::new("debian")).await?;
//! let output = workspace.exec("python3 -c 'print(6 * 7)'").await?;
//! println!("{}", output.stdout_text());
//! workspace.destroy().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # How it is put together
//!
//! [`Host`] and [`Workspace`] are the engine. It stands on four traits: [`hypervisor::Hypervisor`],
//! [`storage::Storage`], [`network::Network`] and [`channel::GuestChannel`]. A backend implements one of them and knows
//! neither the engine nor another backend; [`Backends`] holds one of each, and [`Host::open_with`] takes any.
//!
//! Decisions, and what they cost:
//!
//! - **No daemon.** Records are in SQLite, machines are detached processes, and a change to a workspace holds that
//!   workspace's file lock, which the kernel releases when its holder dies. Any process can do anything at any time;
//!   the cost is that each one looks at records, processes and folders when it opens the state folder (milliseconds).
//! - **Changes run to their end.** An operation that has begun goes on when its caller stops waiting; a creation is
//!   undone instead. The cost is that a program that wants to leave calls [`Host::close`] first.
//! - **One connection for each operation.** Nothing is shared between two operations on a machine, so a stalled one
//!   delays no other. The cost is a hello per operation, which travels with the request.
//! - **What a guest could have written is never parsed by the host.** Disks are opened layer by layer from the records,
//!   images are unpacked by a machine. The cost is that an image takes a machine's boot to make.
//! - **Memory is one base and one difference.** RAM is a private mapping of a file that all machines of a family share; what
//!   one has written since its start is found in its page tables and copied while it stands still for some milliseconds.
//!   The cost is that this copy grows with all that was written, page cache included, and that memory can only be used
//!   again by the same QEMU and kind of CPU.
//! - **Owners, quotas and rates are rows of the same database** ([`session`]), checked in the transaction of what they guard, so
//!   that any number of servers agree. The cost is a short write for each call of a session's; the operator has none of it.
//! - **Nobody counts users of a memory file.** Each has a hard link, and the file system frees it with the last. The cost is
//!   that everything of a state folder must be on one file system.
//! - **A clone is told who it is before any process in it runs again**: the agent freezes user processes, and thaws them
//!   when host name, addresses, clock and entropy are confirmed. The cost is most of what a fork takes under emulation.
//! - **Descriptors instead of paths.** QEMU gets its disks, sockets and kernel as open descriptors, so it needs no
//!   access to the state folder. The cost is bookkeeping in `hypervisor::qemu`.
//!
//! # Features
//!
//! - `testkit`: fakes of the four traits with fault injection, and the contract suites that backends pass.
//! - `shim`: the companion program `agentiso-shim` that runs beside each machine. Only its builder needs it.
#![warn(missing_docs)]

mod backends;
pub mod channel;
mod config;
pub mod doctor;
mod error;
mod file_lock;
pub mod hypervisor;
pub mod image;
pub mod leases;
mod native;
pub mod network;
pub(crate) mod process;
pub mod session;
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
pub use error::{EngineError, ErrorKind};
pub use store::StoreError;
pub use workspace::{
    Aspect, Change, DiffSide, DiffSpec, DiffStream, Difference, FileState, ForkFailure, ForkOrigin,
    ForkReport, ForkSpec, ForkWorker, Host, Isolation, MAX_FORKS, MAX_POOL, MAX_SNAPSHOTS, PolicyChange,
    Pool, PoolSpec, PortForward, PromoteReport, PromoteSpec, PruneReport, Pruned, RestoreReport, RestoreSpec,
    SnapshotInfo, SnapshotSpec, Standstill, TreeNode, Workspace, WorkspaceInfo, WorkspaceSpec,
    WorkspaceState, WorkspaceSummary,
};

/// The README's example, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
