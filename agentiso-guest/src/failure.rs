//! How an operation fails: with a kind for programs and a text for people.

use std::io;

use agentiso_guest::message::{ErrorCode, Reply};
use rustix::io::Errno;

use crate::serve::Lost;

/// An operation that failed while its connection is fine. Becomes [`Reply::Error`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// The kind.
    pub(crate) code: ErrorCode,
    /// What was being done, to what, and what went wrong.
    pub(crate) message: String,
}

impl Failure {
    /// A failure of the given kind.
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// A request that is wrong in itself.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Invalid, message)
    }

    /// A system call that failed; the kind follows from its error. `doing` says what was being done, to what.
    pub(crate) fn system(doing: impl std::fmt::Display, error: Errno) -> Self {
        Self::new(code_of(error), format!("{doing}: {}", io::Error::from(error)))
    }

    /// As [`Failure::system`], for errors of the standard library.
    pub(crate) fn io(doing: impl std::fmt::Display, error: &io::Error) -> Self {
        let code = Errno::from_io_error(error).map_or(ErrorCode::Failed, code_of);
        Self::new(code, format!("{doing}: {error}"))
    }
}

impl From<Failure> for Reply {
    fn from(failure: Failure) -> Self {
        Self::Error { code: failure.code, message: failure.message }
    }
}

/// The kind that an error of the system belongs to.
fn code_of(error: Errno) -> ErrorCode {
    match error {
        Errno::NOENT | Errno::NOTDIR | Errno::SRCH | Errno::NODEV | Errno::NXIO => ErrorCode::NotFound,
        Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::NOEXEC => ErrorCode::NotPermitted,
        Errno::EXIST | Errno::BUSY | Errno::TXTBSY | Errno::NOTEMPTY => ErrorCode::Conflict,
        Errno::NOSPC
        | Errno::DQUOT
        | Errno::NOMEM
        | Errno::AGAIN
        | Errno::MFILE
        | Errno::NFILE
        | Errno::TOOBIG
        | Errno::FBIG => ErrorCode::Exhausted,
        Errno::INVAL | Errno::ISDIR | Errno::LOOP | Errno::NAMETOOLONG => ErrorCode::Invalid,
        Errno::TIMEDOUT => ErrorCode::TimedOut,
        _ => ErrorCode::Failed,
    }
}

/// Why an operation has no ordinary reply.
#[derive(Debug)]
pub(crate) enum Stop {
    /// It failed; the connection gets to know.
    Failed(Failure),
    /// The connection is gone; nobody is there to be told.
    Lost(Lost),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Lost> for Stop {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost)
    }
}
