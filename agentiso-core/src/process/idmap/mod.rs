//! Files of root's that one machine's user id can open, and no other.
//!
//! QEMU opens the file that RAM is a mapping of by `/proc/self/fd/N`, which checks the file's mode again. A file that
//! several machines map, each under a user id of its own, would so have to be readable by everyone. Instead each gets
//! a descriptor of its own on the file through a mount of its own, which shows root's file as owned by the machine's
//! user id (an idmapped mount, Linux 5.12). The mount is never attached anywhere: it is reached through the descriptor
//! alone and goes with it. The pages of the file are shared all the same, for it is the same file.

mod sys;

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::Path,
};

use rustix::{
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
    process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid},
};

use crate::types::MachineUid;

/// Root's user and group id on the host's disk.
const ON_DISK: u32 = 0;

/// What a file that no mount can be made for is changed to: readable by whoever reaches it.
const READABLE_BY_ALL: u32 = 0o444;

/// Opens a file, read-only, for a machine: as [`open_as`] does if it will run under a user id of its own.
///
/// Where that cannot be done, the file is made readable by all users, who can then reach it only through the folders
/// above it: those must be closed to them. [`is_supported`] tells so beforehand.
pub(crate) fn open_for(path: &Path, uid: Option<MachineUid>) -> io::Result<File> {
    let Some(uid) = uid else { return open_file(path) };
    if let Some(opened) = open_as(path, uid)? {
        return Ok(opened.into());
    }
    let file = open_file(path)?;
    if file.metadata()?.permissions().mode() & READABLE_BY_ALL != READABLE_BY_ALL {
        file.set_permissions(PermissionsExt::from_mode(READABLE_BY_ALL))?;
    }
    Ok(file)
}

/// Opens a file of root's, read-only, so that a process that runs under this user and group id can open it once more
/// by the descriptor, though its mode gives it to root alone. No one can write through the descriptor, root included.
///
/// `None` if the kernel, the file system or the rights of this process do not allow that. Takes about a millisecond.
pub(crate) fn open_as(path: &Path, uid: MachineUid) -> io::Result<Option<OwnedFd>> {
    let file = open_file(path)?;
    match mount_for(&file, uid).and_then(|mount| reopen(&mount)) {
        Ok(opened) => Ok(Some(opened)),
        Err(error) if is_not_possible(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether files in a folder can be opened for one user id alone. Takes about a millisecond.
pub(crate) fn is_supported(folder: &Path) -> bool {
    File::open(folder).is_ok_and(|folder| mount_for(&folder, MachineUid(MachineUid::FIRST)).is_ok())
}

fn open_file(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"))
    }
}

/// A mount of this file or folder alone, attached nowhere, in which what is root's belongs to that user.
fn mount_for(file: &File, uid: MachineUid) -> io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = open_tree(file, "", flags)?;
    sys::map_owners(mount.as_fd(), &user_namespace(uid)?)?;
    Ok(mount)
}

/// The descriptor of a mount only names it. What is opened by it keeps the mount in use after the descriptor is closed.
fn reopen(mount: &OwnedFd) -> io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/self/fd/{}", mount.as_raw_fd()))?.into())
}

/// A user namespace in which root stands for that user.
fn user_namespace(uid: MachineUid) -> io::Result<File> {
    let waiting = sys::wait_in_new_user_namespace()?;
    let made = make_maps(waiting.pid, uid);
    // ESRCH would mean that it is gone already. It is ours to collect, so the number is still its own above.
    let _ = pidfd_send_signal(&waiting.pidfd, Signal::KILL);
    collect(&waiting.pidfd)?;
    made
}

fn make_maps(pid: u32, MachineUid(uid): MachineUid) -> io::Result<File> {
    let folder = format!("/proc/{pid}");
    for map in ["uid_map", "gid_map"] {
        std::fs::write(format!("{folder}/{map}"), format!("{ON_DISK} {uid} 1\n"))?;
    }
    File::open(format!("{folder}/ns/user"))
}

fn collect(pidfd: &OwnedFd) -> io::Result<()> {
    loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            // Whoever ignores SIGCHLD has its children collected by the kernel.
            Ok(_) | Err(Errno::CHILD) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether a failure says that this cannot be done here, as opposed to that it went wrong.
fn is_not_possible(error: &io::Error) -> bool {
    let reasons = [
        // No such call; no such attribute, or a file system without it; not root, or in a container.
        Errno::NOSYS,
        Errno::INVAL,
        Errno::OPNOTSUPP,
        Errno::PERM,
        Errno::ACCESS,
        // User namespaces are switched off.
        Errno::NOSPC,
        Errno::USERS,
    ];
    reasons.iter().any(|reason| error.raw_os_error() == Some(reason.raw_os_error()))
}

#[cfg(test)]
mod tests;
