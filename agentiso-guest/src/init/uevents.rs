//! The kernel's announcements of devices.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use crate::serve::timeout_until;

/// The multicast group of the kernel's own announcements.
const KERNEL_GROUP: u32 = 1;
/// Longest announcement, in bytes; the kernel's own limit.
const MAX_BYTES: usize = 2048 + 512;

/// A socket that announcements arrive on, from when it was opened.
#[derive(Debug)]
pub(crate) struct Uevents(OwnedFd);

impl Uevents {
    /// # Errors
    /// The kernel makes no announcements.
    pub(crate) fn open() -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
        Ok(Self(socket))
    }

    /// Takes everything that has arrived; returns whether any of it concerns the subsystem. Where announcements were
    /// lost, any may have.
    pub(crate) fn take_any(&self, subsystem: &str) -> bool {
        let wanted = format!("SUBSYSTEM={subsystem}");
        let mut found = false;
        let mut announcement = [0_u8; MAX_BYTES];
        loop {
            match recv(&self.0, &mut announcement[..], RecvFlags::empty()) {
                Ok((count, _)) => {
                    found |= announcement[..count]
                        .split(|byte| *byte == 0)
                        .any(|field| field == wanted.as_bytes());
                }
                Err(Errno::NOBUFS) => found = true,
                Err(Errno::INTR) => {}
                Err(_) => return found,
            }
        }
    }

    /// Waits until something arrives or the time is over.
    pub(crate) fn wait(&self, until: Instant) {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        let _ = poll(&mut fds, Some(&timeout_until(Some(until))));
    }
}

impl AsFd for Uevents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
