//! What callers of the engine are told when something fails.

use std::time::Duration;

use crate::channel::{ChannelError, client::GuestError};
use crate::hypervisor::HypervisorError;
use crate::image::{CatalogError, ImageError};
use crate::network::NetworkError;
use crate::session::AuthError;
use crate::storage::StorageError;
use crate::store::StoreError;
use crate::types::{InvalidName, InvalidSize};
use crate::workspace::WorkspaceState;

/// Kinds of failure, for programs: what JSON errors carry as `code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// What was given is wrong; nothing was done.
    InvalidParams,
    /// It cannot be done now, or to this object; nothing was changed.
    InvalidRequest,
    /// This host, or agentiso, failed.
    InternalError,
}

/// Why the engine did not do as asked. The message names operation and object and leaves the cause to the source;
/// [`EngineError::report`] joins the chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A name is not valid.
    #[error(transparent)]
    InvalidName(#[from] InvalidName),
    /// A size is out of bounds.
    #[error(transparent)]
    InvalidSize(#[from] InvalidSize),
    /// Neither AGENTISO_HOME nor a home folder says where the state folder is.
    #[error("there is no place for the state folder: neither AGENTISO_HOME, XDG_DATA_HOME nor HOME is set")]
    NoStateDir,
    /// The state folder cannot be used.
    #[error("could not use the state folder {path}")]
    StateDir {
        /// The folder.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The state folder belongs to somebody else, or others may enter it.
    #[error("the state folder {path} is not private: {reason}")]
    StateDirNotPrivate {
        /// The folder.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No workspace of that name or id.
    #[error("there is no workspace {given}")]
    NoSuchWorkspace {
        /// What was given.
        given: String,
    },
    /// An id prefix that fits several.
    #[error("{given} is the beginning of several workspace ids")]
    AmbiguousId {
        /// What was given.
        given: String,
    },
    /// The name is taken.
    #[error("a workspace named {name} exists already")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// No snapshot of that name.
    #[error("workspace {workspace} has no snapshot {snapshot}")]
    NoSuchSnapshot {
        /// The workspace.
        workspace: String,
        /// The snapshot.
        snapshot: String,
    },
    /// The snapshot's name is taken.
    #[error("workspace {workspace} has a snapshot {snapshot} already")]
    SnapshotExists {
        /// The workspace.
        workspace: String,
        /// The snapshot.
        snapshot: String,
    },
    /// One snapshot too many.
    #[error("workspace {workspace} has {max} snapshots, the most there can be")]
    TooManySnapshots {
        /// The workspace.
        workspace: String,
        /// How many there can be.
        max: usize,
    },
    /// Workspaces were forked from the snapshot.
    #[error("snapshot {snapshot} of workspace {workspace} is what {} began from", dependents.join(", "))]
    SnapshotInUse {
        /// The workspace.
        workspace: String,
        /// The snapshot.
        snapshot: String,
        /// Names of the workspaces that need it.
        dependents: Vec<String>,
    },
    /// The disk asked for cannot hold the image.
    #[error("a disk of {disk_gb} GiB is smaller than {origin}, which needs {needed_gb} GiB")]
    DiskTooSmall {
        /// What was asked for, in GiB.
        disk_gb: u32,
        /// What it should have begun with.
        origin: String,
        /// What that needs, in GiB, rounded up.
        needed_gb: u64,
    },
    /// The workspace is in a state that does not allow this.
    #[error("workspace {workspace} is {state}: it cannot be {operation}")]
    WrongState {
        /// The workspace.
        workspace: String,
        /// What it does.
        state: WorkspaceState,
        /// What was asked, as in "paused".
        operation: &'static str,
        /// What to do first.
        remedy: String,
    },
    /// Another operation on the workspace did not end in time.
    #[error("workspace {workspace} was busy with another operation for {waited:?}")]
    Busy {
        /// The workspace.
        workspace: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The memory in a snapshot cannot be used here, as this host is now.
    #[error("the memory in snapshot {snapshot} of workspace {workspace} cannot be used here: {reason}")]
    MemoryUnusable {
        /// The workspace.
        workspace: String,
        /// The snapshot.
        snapshot: String,
        /// What differs, as in "it was made with QEMU 9.2.0, here it is 10.0.2".
        reason: String,
    },
    /// User processes did not stand still in time.
    #[error("the processes in workspace {workspace} could not be frozen: they run on")]
    NotFrozen {
        /// The workspace.
        workspace: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A count out of bounds.
    #[error("{what} is {given}: it can be {min} to {max}")]
    OutOfBounds {
        /// What.
        what: &'static str,
        /// What was given.
        given: u64,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// Parameters that contradict each other, or one that makes no sense.
    #[error("{reason}")]
    Parameters {
        /// What is wrong, as a sentence.
        reason: String,
        /// What to do instead.
        remedy: String,
    },
    /// The guest did not confirm that its file systems are flushed.
    #[error("workspace {workspace} did not flush its file systems: no snapshot was taken")]
    NotFlushed {
        /// The workspace.
        workspace: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The machine did not come up.
    #[error("workspace {workspace} did not start{}", if console.is_empty() { String::new() } else { format!("; the end of its console:\n{console}\n") })]
    Start {
        /// The workspace.
        workspace: String,
        /// The end of its console, cleaned of control characters.
        console: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A step of an operation failed.
    #[error("could not {operation} workspace {workspace}")]
    Operation {
        /// What was being done, as in "stop".
        operation: &'static str,
        /// The workspace.
        workspace: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Something failed, and undoing it failed too.
    #[error(
        "could not undo what a failed operation on workspace {workspace} had done ({undo}); the next command will try again"
    )]
    Undo {
        /// The workspace.
        workspace: String,
        /// What the undoing ran into.
        undo: String,
        /// What had failed.
        #[source]
        source: Box<EngineError>,
    },
    /// An operation was abandoned by whoever had asked for it.
    #[error("the operation on workspace {workspace} was abandoned and undone")]
    Abandoned {
        /// The workspace.
        workspace: String,
    },
    /// A session may not do that.
    #[error(transparent)]
    Session(AuthError),
    /// Records.
    #[error(transparent)]
    Store(StoreError),
    /// Machines.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// Disks.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Networks.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Channels.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// Base images.
    #[error(transparent)]
    Image(Box<ImageError>),
    /// A part of the engine panicked; a defect.
    #[error("a task of agentiso ended unexpectedly")]
    Panicked(#[source] tokio::task::JoinError),
}

impl From<ImageError> for EngineError {
    fn from(error: ImageError) -> Self {
        Self::Image(Box::new(error))
    }
}

impl From<StoreError> for EngineError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NameTaken { name } => Self::NameTaken { name },
            error => Self::Store(error),
        }
    }
}

impl From<AuthError> for EngineError {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Records(error) => error.into(),
            AuthError::Panicked(error) => Self::Panicked(error),
            error => Self::Session(error),
        }
    }
}

impl EngineError {
    /// The kind of failure, for programs.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidName(_)
            | Self::InvalidSize(_)
            | Self::OutOfBounds { .. }
            | Self::Parameters { .. }
            | Self::DiskTooSmall { .. } => ErrorKind::InvalidParams,
            Self::NoSuchWorkspace { .. }
            | Self::AmbiguousId { .. }
            | Self::NameTaken { .. }
            | Self::NoSuchSnapshot { .. }
            | Self::SnapshotExists { .. }
            | Self::TooManySnapshots { .. }
            | Self::SnapshotInUse { .. }
            | Self::WrongState { .. }
            | Self::Busy { .. }
            | Self::MemoryUnusable { .. }
            | Self::NotFrozen { .. }
            | Self::NotFlushed { .. }
            | Self::Abandoned { .. }
            | Self::Store(StoreError::PortTaken { .. })
            | Self::Network(
                NetworkError::PortTaken { .. }
                | NetworkError::AlreadyForwarded { .. }
                | NetworkError::Unsupported { .. },
            ) => ErrorKind::InvalidRequest,
            Self::Session(error) => error.kind(),
            Self::Image(error) => match **error {
                ImageError::Catalog(CatalogError::NotFound { .. }) | ImageError::InUse { .. } => {
                    ErrorKind::InvalidRequest
                }
                ImageError::InvalidName(_) => ErrorKind::InvalidParams,
                _ => ErrorKind::InternalError,
            },
            // What a guest refuses is what it was asked: no such program, no such folder.
            Self::Operation { source, .. }
                if matches!(source.downcast_ref(), Some(GuestError::Refused { .. })) =>
            {
                ErrorKind::InvalidRequest
            }
            _ => ErrorKind::InternalError,
        }
    }

    /// What to do next, as one sentence.
    pub fn next_step(&self) -> Option<String> {
        Some(match self {
            Self::NoStateDir => "set AGENTISO_HOME to a folder of your own".into(),
            Self::StateDir { .. } | Self::StateDirNotPrivate { .. } => {
                "give the folder to your user with mode 0700, or set AGENTISO_HOME to another one".into()
            }
            Self::NoSuchWorkspace { .. } => "`agentiso ls` lists the workspaces".into(),
            Self::AmbiguousId { .. } => "give more digits of the id, or the name".into(),
            Self::Image(error) => match **error {
                ImageError::Catalog(CatalogError::NotFound { .. }) => {
                    "`agentiso image ls` lists the images; `agentiso image build debian` makes the default one".into()
                }
                ImageError::InUse { .. } => "remove those workspaces first".into(),
                _ => return None,
            },
            Self::Session(error) => return error.next_step(),
            Self::NameTaken { .. } => {
                "choose another name, or remove the old workspace with `agentiso rm`".into()
            }
            Self::NoSuchSnapshot { workspace, .. } => {
                format!("`agentiso snapshot ls {workspace}` lists its snapshots")
            }
            Self::SnapshotExists { .. } => "choose another name, or delete the old snapshot".into(),
            Self::TooManySnapshots { .. } => "delete a snapshot that is no longer needed".into(),
            Self::SnapshotInUse { .. } => {
                "remove those workspaces first".into()
            }
            Self::DiskTooSmall { needed_gb, .. } => format!("ask for a disk of {needed_gb} GiB or more"),
            Self::WrongState { remedy, .. } | Self::Parameters { remedy, .. } => remedy.clone(),
            Self::Busy { .. } => "try again when the other operation has ended".into(),
            Self::MemoryUnusable { .. } => "use its disk alone: --disk-only".into(),
            Self::NotFrozen { .. } => "try again when the machine is less busy, or fork from a disk snapshot".into(),
            Self::NotFlushed { .. } => "try again, or take a crash-consistent snapshot".into(),
            Self::Start { .. } => {
                "`agentiso logs WORKSPACE` shows more; `agentiso doctor` checks this host".into()
            }
            _ => return None,
        })
    }

    /// The whole chain in one line: what failed, and why.
    pub fn report(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let message = error.to_string();
            // Transparent wrappers repeat what is already there.
            if !text.ends_with(&message) {
                text.push_str(": ");
                text.push_str(&message);
            }
            cause = error.source();
        }
        text
    }

    pub(crate) fn operation(
        operation: &'static str,
        workspace: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Operation { operation, workspace: workspace.into(), source: Box::new(source) }
    }
}
