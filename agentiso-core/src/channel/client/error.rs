use std::{io, time::Duration};

use agentiso_guest::{frame::FrameError, hello::HelloError, message::ErrorCode};

use super::text::clean_text;
use crate::{channel::ChannelError, types::WorkspaceId};

/// Why an operation on a guest failed.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// No connection to the agent. The operation was not begun.
    #[error("could not {operation}: no connection to the agent")]
    Channel {
        /// What was being done, as in "run a command".
        operation: &'static str,
        /// Why.
        #[source]
        source: ChannelError,
    },
    /// What the agent answered to the hello is no welcome. The operation was not begun.
    #[error("could not {operation}: the agent of machine {id} did not open the connection properly")]
    Hello {
        /// What was being done.
        operation: &'static str,
        /// Whose agent.
        id: WorkspaceId,
        /// What was wrong.
        #[source]
        source: HelloError,
    },
    /// The agent does not take this host's key. The operation was not begun.
    #[error(
        "could not {operation}: machine {id} does not take the key that its folder holds: stop and start the workspace to \
         give it another"
    )]
    WrongKey {
        /// What was being done.
        operation: &'static str,
        /// Whose agent.
        id: WorkspaceId,
    },
    /// What answered is not the machine: it does not know its key. The operation was not begun.
    #[error(
        "could not {operation}: what answers at the address of machine {id} does not know that machine's key, so it is \
         something else: stop and start the workspace to give it another address"
    )]
    Stranger {
        /// What was being done.
        operation: &'static str,
        /// Whose address.
        id: WorkspaceId,
    },
    /// The agent speaks another generation of the protocol. The operation was not begun.
    #[error(
        "could not {operation}: the agent of machine {id} (version {agent}) speaks protocol generation {theirs} and this \
         program {ours}: stop and start the workspace to give it this program's agent"
    )]
    Generation {
        /// What was being done.
        operation: &'static str,
        /// Whose agent.
        id: WorkspaceId,
        /// The agent's version.
        agent: String,
        /// The agent's generation.
        theirs: u32,
        /// This program's generation.
        ours: u32,
    },
    /// The agent serves as many connections as it can. The operation was not begun.
    #[error(
        "could not {operation}: the agent of machine {id} serves as many operations as it can: wait for some to end"
    )]
    AgentBusy {
        /// What was being done.
        operation: &'static str,
        /// Whose agent.
        id: WorkspaceId,
    },
    /// The agent broke the protocol. How far the operation came is unknown.
    #[error(
        "could not {operation}: the agent of machine {id} broke the protocol, what it says cannot be trusted"
    )]
    Protocol {
        /// What was being done.
        operation: &'static str,
        /// Whose agent.
        id: WorkspaceId,
        /// How.
        #[source]
        source: ProtocolError,
    },
    /// The agent did not go on within the limit. How far the operation came is unknown.
    #[error("could not {operation}: the agent of machine {id} was silent for {after:?}")]
    Timeout {
        /// What was being done.
        operation: &'static str,
        /// Whose agent.
        id: WorkspaceId,
        /// The limit.
        after: Duration,
    },
    /// The connection ended before the operation did. How far the operation came is unknown.
    #[error("could not {operation}: the connection to machine {id} was lost, it may have stopped or crashed")]
    Disconnected {
        /// What was being done.
        operation: &'static str,
        /// Whose agent.
        id: WorkspaceId,
    },
    /// The agent refused the operation, or it failed in the guest.
    #[error("could not {operation}: {message}")]
    Refused {
        /// What was being done.
        operation: &'static str,
        /// The kind, for programs.
        code: ErrorCode,
        /// The guest's text, cleaned with [`clean_text`]. Only as true as the guest is honest.
        message: String,
    },
    /// Not all user processes were frozen in time. They run again.
    #[error("could not {operation}: some of machine {id} were still running after {limit:?}; all run again")]
    NotFrozen {
        /// What was being done.
        operation: &'static str,
        /// Whose processes.
        id: WorkspaceId,
        /// The time they had.
        limit: Duration,
    },
    /// The guest's wall clock is wrong, however often it was set. All else is in force.
    #[error(
        "could not {operation}: the wall clock of machine {id} is {off:?} off after it was set {times} times, with \
         round trips of {round_trip:?}: this host is too busy, or the guest's clock cannot be set"
    )]
    Clock {
        /// What was being done.
        operation: &'static str,
        /// Whose clock.
        id: WorkspaceId,
        /// How far it is off, in either direction.
        off: Duration,
        /// What the way there and back took.
        round_trip: Duration,
        /// How often it was set.
        times: u32,
    },
    /// The request cannot be sent, for it is too long. The operation was not begun.
    #[error("could not {operation}: the request cannot be sent")]
    Request {
        /// What was being done.
        operation: &'static str,
        /// Why.
        #[source]
        source: FrameError,
    },
    /// The connection failed on this host.
    #[error("could not {operation}: the connection to machine {id} failed")]
    Connection {
        /// What was being done.
        operation: &'static str,
        /// Whose agent.
        id: WorkspaceId,
        /// How.
        #[source]
        source: io::Error,
    },
    /// The caller's own reader or writer, or this host's random source, failed.
    #[error("could not {operation}: {what} failed on this host")]
    Local {
        /// What was being done.
        operation: &'static str,
        /// What failed.
        what: &'static str,
        /// How.
        #[source]
        source: io::Error,
    },
}

impl GuestError {
    /// The exit status that a program reports for a command that could not be run, as shells and `env(1)` do: 127 if
    /// it was not found, 126 if it cannot be executed, 124 if the time was over, 125 for every failure of ours.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Refused { code: ErrorCode::NotFound, .. } => 127,
            Self::Refused { code: ErrorCode::NotPermitted, .. } => 126,
            Self::Refused { code: ErrorCode::TimedOut, .. } => 124,
            _ => 125,
        }
    }
}

/// How an agent broke the protocol.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    /// Bytes that are no message.
    #[error("it sent what is not a message")]
    Frame(#[source] FrameError),
    /// A message that is none of those due.
    #[error("it sent {got} where that is not due")]
    Unexpected {
        /// The kind of message.
        got: &'static str,
    },
    /// More than was asked for.
    #[error("it sent more than the {limit} {unit} that are due")]
    TooMuch {
        /// What is due at most.
        limit: u64,
        /// Of what.
        unit: &'static str,
    },
    /// An entry of a tree that does not come after the one before it.
    #[error("it sent the path {path:?} out of order")]
    OutOfOrder {
        /// The path, escaped and cut.
        path: String,
    },
    /// A file name that is no single path component, or a path that leads out of its folder.
    #[error("it sent the file name {name:?}")]
    FileName {
        /// The name, cleaned and cut.
        name: String,
    },
}

/// One operation on one machine: what its errors name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) id: WorkspaceId,
    pub(super) operation: &'static str,
}

impl Call {
    pub(super) fn protocol(self, source: ProtocolError) -> GuestError {
        GuestError::Protocol { operation: self.operation, id: self.id, source }
    }

    pub(super) fn unexpected(self, got: &'static str) -> GuestError {
        self.protocol(ProtocolError::Unexpected { got })
    }

    pub(super) fn too_much(self, limit: u64, unit: &'static str) -> GuestError {
        self.protocol(ProtocolError::TooMuch { limit, unit })
    }

    pub(super) fn frame(self, source: FrameError) -> GuestError {
        self.protocol(ProtocolError::Frame(source))
    }

    pub(super) fn request(self, source: FrameError) -> GuestError {
        GuestError::Request { operation: self.operation, source }
    }

    pub(super) fn channel(self, source: ChannelError) -> GuestError {
        GuestError::Channel { operation: self.operation, source }
    }

    pub(super) fn local(self, what: &'static str, source: io::Error) -> GuestError {
        GuestError::Local { operation: self.operation, what, source }
    }

    pub(super) fn timeout(self, after: Duration) -> GuestError {
        GuestError::Timeout { operation: self.operation, id: self.id, after }
    }

    pub(super) fn disconnected(self) -> GuestError {
        GuestError::Disconnected { operation: self.operation, id: self.id }
    }

    pub(super) fn refused(self, code: ErrorCode, message: &str) -> GuestError {
        GuestError::Refused { operation: self.operation, code, message: clean_text(message) }
    }

    pub(super) fn connection(self, source: io::Error) -> GuestError {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, UnexpectedEof};
        match source.kind() {
            BrokenPipe | ConnectionReset | NotConnected | UnexpectedEof => self.disconnected(),
            _ => GuestError::Connection { operation: self.operation, id: self.id, source },
        }
    }
}
