use std::time::Duration;

use super::{Class, FORCED_ADOPTION_IDLE, QuotaResource, SESSION_LIFETIME};
use crate::error::ErrorKind;
use crate::store::StoreError;
use crate::types::{InvalidSessionName, SessionId, WorkspaceId};

/// Why a session may not do what it asked for. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// What was given cannot name a session.
    #[error(transparent)]
    InvalidSession(#[from] InvalidSessionName),
    /// It was never registered, or has ended.
    #[error(
        "there is no session {session}: it ended {} hours after its last call, or never began",
        SESSION_LIFETIME.as_secs() / 3600
    )]
    UnknownSession {
        /// The session.
        session: SessionId,
    },
    /// There is no such workspace.
    #[error("there is no workspace {workspace}")]
    UnknownWorkspace {
        /// The workspace.
        workspace: WorkspaceId,
    },
    /// The workspace belongs to somebody else, or to nobody.
    #[error("workspace {workspace} does not belong to session {session}")]
    NotOwner {
        /// The session.
        session: SessionId,
        /// The workspace.
        workspace: WorkspaceId,
    },
    /// The session would have more than it may.
    #[error(
        "the quota of {limit} {} would be exceeded: the session has {current} and asked for {requested} more",
        resource.unit()
    )]
    QuotaExceeded {
        /// Of what.
        resource: QuotaResource,
        /// The most it may have.
        limit: u64,
        /// What it has.
        current: u64,
        /// What it asked for in addition.
        requested: u64,
    },
    /// The workspace was to be taken from a session that made a call a moment ago.
    #[error(
        "workspace {workspace} belongs to a session that was active less than {FORCED_ADOPTION_IDLE:?} ago"
    )]
    OwnerActive {
        /// The workspace.
        workspace: WorkspaceId,
        /// How long that session has to make no call, from now on.
        wait: Duration,
    },
    /// The workspace was to be taken from the operator.
    #[error("workspace {workspace} belongs to the operator, who has not shared it")]
    OperatorOwned {
        /// The workspace.
        workspace: WorkspaceId,
    },
    /// The workspace cannot be shared, or taken back, by the operator: it is a session's.
    #[error("workspace {workspace} belongs to session {session}")]
    SessionOwned {
        /// The workspace.
        workspace: WorkspaceId,
        /// Whose it is.
        session: SessionId,
    },
    /// Too many calls.
    #[error(
        "too many calls of the kind {class} by {}: at most {burst} at once and {per_minute} a minute",
        if *everybody { "all sessions together" } else { "this session" }
    )]
    RateLimited {
        /// Their kind.
        class: Class,
        /// Whether it is all sessions together that have made too many.
        everybody: bool,
        /// How many can be made at once after a pause.
        burst: u32,
        /// How many can be made in the long run.
        per_minute: u32,
        /// When the next one can be made.
        wait: Duration,
    },
    /// The records could not be read or written.
    #[error(transparent)]
    Records(#[from] StoreError),
    /// A part of the program panicked; a defect.
    #[error("a task of agentiso ended unexpectedly")]
    Panicked(#[source] tokio::task::JoinError),
}

impl AuthError {
    /// The kind of failure, for programs.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidSession(_) => ErrorKind::InvalidParams,
            Self::Records(_) | Self::Panicked(_) => ErrorKind::InternalError,
            _ => ErrorKind::InvalidRequest,
        }
    }

    /// What to do next, as one sentence.
    pub fn next_step(&self) -> Option<String> {
        Some(match self {
            Self::UnknownSession { .. } => "open the session again".into(),
            Self::UnknownWorkspace { .. } => "list the workspaces".into(),
            Self::NotOwner { .. } => "adopt the workspace first, if nobody owns it".into(),
            Self::QuotaExceeded { .. } => {
                "destroy workspaces that are no longer needed, or ask for fewer or smaller ones".into()
            }
            Self::OwnerActive { wait, .. } => format!(
                "use a workspace of your own, or try again after {} if that session makes no call until then",
                seconds(*wait)
            ),
            Self::OperatorOwned { .. } => "the operator can share it: `agentiso share WORKSPACE`".into(),
            Self::SessionOwned { .. } => {
                "a session's workspaces become orphans when it ends; the operator can use them as they are"
                    .into()
            }
            Self::RateLimited { wait, .. } => format!("wait {} and call again", seconds(*wait)),
            Self::InvalidSession(_) | Self::Records(_) | Self::Panicked(_) => return None,
        })
    }
}

/// A time to wait, as people read it: never less than it is.
fn seconds(wait: Duration) -> String {
    let tenths = wait.as_millis().div_ceil(100);
    format!("{}.{} s", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_told_rounded_up() {
        for (millis, text) in
            [(0, "0.0 s"), (1, "0.1 s"), (200, "0.2 s"), (1001, "1.1 s"), (12_000, "12.0 s")]
        {
            assert_eq!(seconds(Duration::from_millis(millis)), text);
        }
    }
}
