//! Signals: blocked in every thread, read from a descriptor by one.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::Pid;

use super::last_error;

/// What the main thread waits for.
const WATCHED: [libc::c_int; 4] = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGPWR];

/// A signal that arrived, as far as the agent cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// A child ended.
    Child,
    /// Someone asks the agent to end.
    End,
}

/// Blocks, in this thread and all it starts, what is watched and SIGPIPE (a broken pipe is then an error of the
/// write), gives every signal its default disposition, and returns a descriptor that watched signals are read from.
/// To be called before another thread exists.
///
/// The disposition of SIGPIPE stays the default, so that a started command needs nothing but its mask reset.
///
/// # Errors
/// The system is out of descriptors.
pub(crate) fn take_over() -> Result<OwnedFd, Errno> {
    for signal in 1..=64_i64 {
        // The kernel's sigaction, not the C library's, which leaves out the signals that it keeps for itself.
        let default = [0_u64; 4];
        // SAFETY: all zero is "default disposition, no flags, empty mask", 32 bytes as the kernel reads them; the old one
        // is not asked for. For signals that cannot be changed the call fails and changes nothing.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                8_usize,
            )
        };
    }
    let mut blocked = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set that it is given; the others change an initialised one. All numbers
    // are valid signals. signalfd copies the set. A descriptor it returns is new and owned by nobody else.
    unsafe {
        libc::sigemptyset(blocked.as_mut_ptr());
        for signal in WATCHED {
            libc::sigaddset(blocked.as_mut_ptr(), signal);
        }
        let fd = libc::signalfd(-1, blocked.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 {
            return Err(last_error());
        }
        libc::sigaddset(blocked.as_mut_ptr(), libc::SIGPIPE);
        libc::pthread_sigmask(libc::SIG_SETMASK, blocked.as_ptr(), std::ptr::null_mut());
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Keeps descriptors that the agent was started with from what it starts. To be called before another thread exists.
pub(crate) fn keep_inherited_descriptors_private() {
    const FIRST: libc::c_uint = 3;
    // SAFETY: with this flag the call closes nothing; it only marks descriptors as closed by execve.
    unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// The next signal that has arrived, if any.
pub(crate) fn next(signals: &OwnedFd) -> Option<Arrived> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: the buffer is as long as the size says; the kernel writes whole records or nothing.
    let read = unsafe { libc::read(signals.as_raw_fd(), info.as_mut_ptr().cast(), size) };
    if usize::try_from(read) != Ok(size) {
        return None;
    }
    // SAFETY: the kernel has just filled all of it.
    let signal = unsafe { info.assume_init() }.ssi_signo;
    Some(if signal == libc::SIGCHLD.unsigned_abs() { Arrived::Child } else { Arrived::End })
}

/// Sends a signal, by number, to a process group. A group that is gone is no error.
pub(crate) fn signal_group(group: Pid, signal: u8) {
    // SAFETY: kill only takes integers. A group id above 1 is never "every process".
    unsafe { libc::kill(-group.as_raw_nonzero().get(), libc::c_int::from(signal)) };
}

/// Sends a signal to every process but this one (and, for process 1, kernel threads).
pub(crate) fn signal_everyone(signal: libc::c_int) {
    // SAFETY: kill only takes integers.
    unsafe { libc::kill(-1, signal) };
}

/// Reaps one ended child that the calling thread inherited, if there is one. As process 1, orphans become children
/// of the main thread, while a command that a session started stays that session's thread's: this never takes the
/// status of a command away from who waits for it.
pub(crate) fn reap_inherited() -> bool {
    let mut status = 0;
    // SAFETY: waitpid writes one integer through the pointer. __WNOTHREAD limits it to children of this thread.
    unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WNOTHREAD) > 0 }
}
