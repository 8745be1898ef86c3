//! The one folder of this host that files are copied from and to.
//!
//! Every path is resolved by the kernel below the folder's open descriptor (`openat2`), without following any symbolic
//! link, and what is checked is the descriptor that came out of it: there is no moment between check and use.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};

use crate::failure::Failure;

/// No path leads out of the folder, none through a symbolic link or a link of /proc.
const RESOLVE: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// The folder that transfers are confined to.
#[derive(Debug)]
pub(crate) struct TransferFolder {
    path: PathBuf,
    root: OwnedFd,
}

impl TransferFolder {
    /// Opens the folder.
    ///
    /// # Errors
    /// There is no such folder.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&path, flags, Mode::empty())?;
        Ok(Self { path, root })
    }

    /// The part of a path below the folder: a relative path, or an absolute one that begins with the folder's.
    fn below<'a>(&self, given: &'a str) -> Result<&'a Path, Failure> {
        let path = Path::new(given);
        let below = if path.is_absolute() { path.strip_prefix(&self.path).ok() } else { Some(path) };
        let below = below.filter(|below| {
            below.file_name().is_some()
                && below.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
        });
        below.filter(|_| !given.contains('\0') && !given.ends_with('/')).ok_or_else(|| refused(given))
    }

    /// Opens a file in it for reading.
    ///
    /// # Errors
    /// It is not there, no regular file, outside of the folder, behind a symbolic link, or has further names.
    pub(crate) fn open_file(&self, given: &str) -> Result<(File, u64), Failure> {
        let below = self.below(given)?;
        // Without O_NONBLOCK a pipe would wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = rustix::fs::openat2(&self.root, below, flags, Mode::empty(), RESOLVE)
            .map_err(|error| failed("read", given, error))?;
        let stat = rustix::fs::fstat(&file).map_err(|error| failed("read", given, error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Failure::request(
                format!("{given} in the transfer folder is no regular file"),
                "name a file; pack a folder with tar first",
            ));
        }
        if stat.st_nlink != 1 {
            // Its other name may be anywhere, and its content somebody else's secret.
            return Err(Failure::request(
                format!("{given} in the transfer folder has {} hard links", stat.st_nlink),
                "copy it to a file of its own in the transfer folder, and name that",
            ));
        }
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        Ok((File::from(file), size))
    }

    /// Begins to write a file in it, which appears when it is complete.
    ///
    /// # Errors
    /// Its folder is not there, outside of this one, or behind a symbolic link.
    pub(crate) fn create_file(&self, given: &str) -> Result<Incoming, Failure> {
        let below = self.below(given)?;
        let (Some(name), parent) = (below.file_name(), below.parent().unwrap_or(Path::new(""))) else {
            return Err(refused(given));
        };
        let folder = self.open_folder(parent).map_err(|error| failed("write", given, error))?;
        for _ in 0..16 {
            let hidden = hidden_name();
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(&folder, &hidden, flags, Mode::from_raw_mode(0o644)) {
                Ok(file) => {
                    return Ok(Incoming {
                        file: Some(File::from(file)),
                        folder,
                        parent: parent.to_owned(),
                        hidden,
                        name: name.to_owned(),
                        given: given.to_owned(),
                    });
                }
                Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(failed("write", given, error)),
            }
        }
        Err(failed("write", given, rustix::io::Errno::EXIST))
    }

    fn open_folder(&self, below: &Path) -> rustix::io::Result<OwnedFd> {
        let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat2(&self.root, below, flags, Mode::empty(), RESOLVE)
    }
}

/// A name that nobody else uses.
fn hidden_name() -> OsString {
    format!(".agentiso-{:032x}.part", agentiso_core::types::WorkspaceId::random().as_uuid().as_u128()).into()
}

/// A file that is being written under a hidden name. Dropped before it is finished, it goes away.
#[derive(Debug)]
pub(crate) struct Incoming {
    file: Option<File>,
    folder: OwnedFd,
    parent: PathBuf,
    hidden: OsString,
    name: OsString,
    given: String,
}

impl Incoming {
    /// The file to write to. Only once.
    pub(crate) fn take_file(&mut self) -> Option<File> {
        self.file.take()
    }

    /// Gives the file its name, in place of whatever had it.
    ///
    /// # Errors
    /// The folder it is in was moved meanwhile; a folder has that name. The file goes away then.
    pub(crate) fn finish(self, root: &TransferFolder) -> Result<(), Failure> {
        let failed = |error| failed("write", &self.given, error);
        let now = root.open_folder(&self.parent).map_err(failed)?;
        let id = |folder| rustix::fs::fstat(folder).map(|stat| (stat.st_dev, stat.st_ino));
        if id(&now).map_err(failed)? != id(&self.folder).map_err(failed)? {
            return Err(Failure::request(
                format!("the folder of {} in the transfer folder was moved while it was written", self.given),
                "call again when nobody moves it",
            ));
        }
        rustix::fs::renameat(&self.folder, &self.hidden, &self.folder, &self.name).map_err(failed)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // After finish there is no file of that name any more.
        match rustix::fs::unlinkat(&self.folder, &self.hidden, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => {
                tracing::warn!(%error, "could not remove an unfinished file of the transfer folder")
            }
        }
    }
}

fn refused(given: &str) -> Failure {
    Failure::parameter(
        format!("host_path {given:?} is not a file inside the transfer folder"),
        "name it relative to the transfer folder, as in \"input/data.tar\", without any \"..\"",
    )
}

fn failed(operation: &str, given: &str, error: rustix::io::Errno) -> Failure {
    use rustix::io::Errno;
    let error = match error {
        // Out of the folder, and through a symbolic link.
        Errno::XDEV | Errno::LOOP => return refused(given),
        Errno::NOSYS => {
            return Failure::internal(
                "this host's kernel cannot confine file transfers (openat2, Linux 5.6)",
            );
        }
        error => error,
    };
    let next_step = match error {
        Errno::NOENT | Errno::NOTDIR => "check the path: folders are not made by a transfer",
        Errno::ISDIR => "name a file, not a folder",
        Errno::ACCESS | Errno::PERM => "give the server's user access to it, on the host",
        Errno::NOSPC | Errno::DQUOT => "free disk space on the host",
        _ => "check the transfer folder on the host, and call again",
    };
    let reason = io::Error::from(error);
    Failure::request(format!("could not {operation} {given} in the transfer folder: {reason}"), next_step)
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
