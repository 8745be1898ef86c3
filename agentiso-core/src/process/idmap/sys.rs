//! A user namespace without a process, and the kernel call that no safe crate offers.

use std::{
    ffi::c_ulong,
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use crate::process::sys::fork;

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
    // The table of descriptors is shared, for a copy would keep locks of other threads held for a moment longer.
    let flags = libc::CLONE_NEWUSER | libc::CLONE_FILES;
    // SAFETY: `wait_to_be_killed` makes plain system calls alone: it neither allocates nor locks nor unwinds.
    let (pid, pidfd) = unsafe { fork(flags, || wait_to_be_killed(parent)) }?;
    Ok(Waiting { pid, pidfd })
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
