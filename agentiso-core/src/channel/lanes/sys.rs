use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Lets the runtime say when a non-blocking descriptor can be read.
///
/// # Errors
/// The runtime could not register it.
pub(super) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: registering asks that the descriptor stays open and the same until the `AsyncFd` is dropped. An
    // `OwnedFd` returns the same open descriptor for its whole life, it moves into the `AsyncFd` here, and callers
    // only borrow it from there, never mutably (`drain` in waiting.rs is the only one), so nobody can close or
    // replace it before.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}
