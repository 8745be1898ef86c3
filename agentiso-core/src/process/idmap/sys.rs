//! A user namespace without a process, and the kernel call that no safe crate offers.

use std::{
    ffi::{c_int, c_long, c_ulong},
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
};

/// Of linux/mount.h.
const MOUNT_ATTR_RDONLY: u64 = 0x1;
const MOUNT_ATTR_NOSUID: u64 = 0x2;
const MOUNT_ATTR_NODEV: u64 = 0x4;
const MOUNT_ATTR_NOEXEC: u64 = 0x8;
const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;

/// `struct mount_attr` of linux/mount.h in its first version.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Makes a detached mount read-only and lets it show owners through a user namespace.
pub(super) fn map_owners(mount: BorrowedFd<'_>, namespace: &File) -> io::Result<()> {
    let attributes = MountAttributes {
        set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC | MOUNT_ATTR_IDMAP,
        clear: 0,
        propagation: 0,
        user_namespace: u64::from(namespace.as_raw_fd().cast_unsigned()),
    };
    // SAFETY: a descriptor that is open while borrowed, an empty string with its NUL, and a pointer to a local of the
    // given size, which the kernel only reads.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A process that only waits to be killed, in a user namespace of its own. It dies with the thread that made it.
pub(super) struct Waiting {
    pub(super) pid: u32,
    pub(super) pidfd: OwnedFd,
}

/// Makes such a process.
pub(super) fn wait_in_new_user_namespace() -> io::Result<Waiting> {
    // SAFETY: no pointers.
    let parent = unsafe { libc::getpid() };
    // SAFETY: sigset_t is plain bits, for which all zero is valid; sigfillset and pthread_sigmask get valid pointers
    // to locals.
    let before = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        // No handler of ours may run in the child: it could write to descriptors that both share.
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        before
    };
    let mut pidfd: c_int = -1;
    // The table of descriptors is shared, for a copy would keep locks of other threads held for a moment longer.
    let flags = c_long::from(libc::CLONE_NEWUSER | libc::CLONE_FILES | libc::CLONE_PIDFD | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and with a null stack this is fork(): the child has a copy of this thread's memory and
    // goes on on its copy of this stack. With CLONE_PIDFD the kernel writes the descriptor to the third argument,
    // which points to a local. The child calls only `wait_to_be_killed`, which is written for the state that other
    // threads may have left behind: it neither allocates nor locks nor unwinds, and never returns.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            flags,
            ptr::null::<u8>(),
            &raw mut pidfd,
            ptr::null::<u8>(),
            0 as c_ulong,
        )
    };
    let failure = io::Error::last_os_error();
    if pid == 0 {
        wait_to_be_killed(parent);
    }
    // SAFETY: `before` was filled in above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut()) };
    let Ok(pid) = u32::try_from(pid) else { return Err(failure) };
    // SAFETY: the kernel has just opened this descriptor for us; nobody else knows of it.
    Ok(Waiting { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
}

/// In the child.
fn wait_to_be_killed(parent: libc::pid_t) -> ! {
    // SAFETY: no pointers; plain system calls through libc's wrappers, which are allowed after fork. _exit does not
    // run handlers that were meant for the parent.
    unsafe {
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as c_ulong) < 0 || libc::getppid() != parent {
            // The parent died before it could take this process with it.
            libc::_exit(127);
        }
        loop {
            // Every signal is blocked but the one that kills.
            libc::pause();
        }
    }
}

#[cfg(test)]
pub(super) mod mapped {
    //! Files in memory, for looking at what is shared.

    use std::{fs::File, io, os::fd::AsRawFd, ptr};

    /// A private, readable mapping of the beginning of a file, all of it read once.
    pub(in super::super) struct Mapped {
        pub(in super::super) address: usize,
        bytes: usize,
    }

    impl Mapped {
        pub(in super::super) fn new(file: &File, bytes: usize) -> io::Result<Self> {
            // SAFETY: the kernel chooses the address, so nothing of ours is replaced.
            let address = unsafe {
                let (protection, flags) = (libc::PROT_READ, libc::MAP_PRIVATE | libc::MAP_POPULATE);
                libc::mmap(ptr::null_mut(), bytes, protection, flags, file.as_raw_fd(), 0)
            };
            if address == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            Ok(Self { address: address.addr(), bytes })
        }
    }

    impl Drop for Mapped {
        fn drop(&mut self) {
            // SAFETY: the mapping was made by `new`, is of this size, and no reference into it was ever given out.
            unsafe { libc::munmap(ptr::with_exposed_provenance_mut(self.address), self.bytes) };
        }
    }
}
