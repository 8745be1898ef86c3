//! The two things that safe wrappers do not offer: taking over inherited descriptors and loading a seccomp filter.

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use rustix::io::FdFlags;

/// Takes over the descriptor of that number, which whoever started this process left open for it, and marks it
/// close-on-exec.
///
/// Must be called before this process opens anything, and once per number.
///
/// # Errors
/// There is no such descriptor.
pub(super) fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl(F_GETFD) takes any integer, touches no memory and changes nothing.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::other(format!("descriptor {number} was not passed")));
    }
    // SAFETY: The descriptor is open, as just seen. Nothing else in this process owns it: it was opened before exec,
    // and by this function's contract nothing has been opened since and the number is taken over once.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&descriptor, FdFlags::CLOEXEC)?;
    Ok(descriptor)
}

/// Loads a seccomp filter for this thread and every thread it will start.
///
/// # Errors
/// The kernel refuses the program, or no_new_privs is not set.
pub(super) fn load_seccomp(program: &[libc::sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    // SAFETY: `program` points to `len` initialised instructions that outlive the call; the kernel copies them and
    // does not write to them (the field is `*mut` only because the C struct has no const).
    let outcome = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0_usize, &raw const program)
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives this thread a network of its own, empty but for a loopback device that is down.
///
/// # Errors
/// This thread may not (it takes root).
#[cfg(test)]
pub(super) fn unshare_network() -> io::Result<()> {
    // SAFETY: unshare(CLONE_NEWNET) changes which network this one thread sees. It closes no descriptor and shares
    // or unshares no memory, so nothing that safe code relies on changes.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
