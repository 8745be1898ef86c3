//! System calls that have no safe wrapper, and nothing else. All `unsafe` of the agent is in this folder; what it
//! offers to the rest is safe.

pub(crate) mod ioctl;
pub(crate) mod memory;
pub(crate) mod signal;
pub(crate) mod spawn;
pub(crate) mod vsock;

use std::io;

/// The error of the C call that just failed.
fn last_error() -> rustix::io::Errno {
    rustix::io::Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(rustix::io::Errno::IO)
}
