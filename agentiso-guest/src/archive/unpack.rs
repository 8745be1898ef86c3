//! Writes the entries of a tar stream below a folder, and nowhere else: the kernel resolves every path inside of it
//! (`openat2` with `RESOLVE_IN_ROOT`), symbolic links of the same stream included, and the last component is never
//! followed.

use std::ffi::CString;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use agentiso_guest::limits::MAX_PATH_BYTES;
use agentiso_guest::message::ErrorCode;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags, chownat,
    fchmod, fchown, fsetxattr, linkat, makedev, mkdirat, mknodat, openat, openat2, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::Errno;

use super::tar_stream::{Entry, Kind, TarStream, broken};
use crate::failure::Failure;

/// Bytes copied at once.
const COPY_BYTES: usize = 64 * 1024;
/// How often a lookup is repeated that a rename elsewhere in the system disturbed.
const LOOKUP_TRIES: usize = 128;
/// Permission bits that entries keep when owners are not preserved: all but set-user and set-group.
const PLAIN_MODE: u32 = 0o1777;

/// Unpacks a whole archive below `folder`, which is made if missing.
///
/// With `preserve`, entries below a mount point inside the folder are left out: an image's `/dev` and `/proc` are the
/// running kernel's.
///
/// # Errors
/// The archive is damaged, or an entry cannot be written or would lie outside. Earlier entries stay.
pub(super) fn unpack(source: &mut impl Read, folder: &Path, preserve: bool) -> Result<(), Failure> {
    std::fs::create_dir_all(folder)
        .map_err(|error| Failure::io(format!("making the folder {}", folder.display()), &error))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, folder, flags, Mode::empty())
        .map_err(|error| Failure::system(format!("opening the folder {}", folder.display()), error))?;
    let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    if preserve {
        resolve |= ResolveFlags::NO_XDEV;
    }
    let mut unpacker =
        Unpacker { root, resolve, preserve, parent: None, folders: Vec::new(), buffer: Vec::new() };
    let mut stream = TarStream::new(source);
    while let Some(entry) = stream.next_entry()? {
        unpacker.write(&entry, &mut stream.data())?;
    }
    unpacker.leave_folders(b"");
    Ok(())
}

struct Unpacker {
    root: OwnedFd,
    resolve: ResolveFlags,
    preserve: bool,
    /// The folder of the entry before: most often the next one's too.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Folders on the way to the entry before, with the times that they get once nothing more is written in them.
    folders: Vec<(Vec<u8>, i64)>,
    buffer: Vec<u8>,
}

/// Why one entry is not written.
enum Skip {
    /// It lies behind a mount point.
    MountPoint,
    Failed(Errno),
}

impl From<Errno> for Skip {
    fn from(error: Errno) -> Self {
        if error == Errno::XDEV { Self::MountPoint } else { Self::Failed(error) }
    }
}

/// Whose it is to be.
fn owner(entry: &Entry) -> Result<(Uid, Gid), Errno> {
    let (uid, gid) = entry.uid.zip(entry.gid).ok_or(Errno::INVAL)?;
    Ok((Uid::from_raw(uid), Gid::from_raw(gid)))
}

impl Unpacker {
    fn write(&mut self, entry: &Entry, data: &mut impl Read) -> Result<(), Failure> {
        let path = inside(&entry.path).map_err(|why| refused(entry, why))?;
        let link = match entry.kind {
            Kind::HardLink => inside(&entry.link).map_err(|why| refused(entry, why))?,
            _ => Vec::new(),
        };
        if !self.preserve && matches!(entry.kind, Kind::CharacterDevice | Kind::BlockDevice) {
            return Err(refused(entry, "it is a device node, which only an image may bring"));
        }
        if self.preserve && owner(entry).is_err() {
            return Err(refused(entry, "its owner or group is no number that one can have"));
        }
        self.leave_folders(&path);
        let written = match entry.kind {
            Kind::File => return self.write_file(entry, &path, data),
            Kind::Directory => self.write_folder(entry, &path),
            Kind::Symlink => self.write_symlink(entry, &path),
            Kind::HardLink => self.write_hard_link(&link, &path),
            Kind::CharacterDevice | Kind::BlockDevice | Kind::Fifo => self.write_node(entry, &path),
        };
        tolerate(written, entry)
    }

    fn write_file(&mut self, entry: &Entry, path: &[u8], data: &mut impl Read) -> Result<(), Failure> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let created =
            self.replacing(path, |parent, name| openat(parent, name, flags, Mode::RUSR | Mode::WUSR));
        let file = match created {
            Ok(file) => file,
            Err(skip) => return tolerate(Err(skip), entry),
        };
        let mut file = std::fs::File::from(file);
        self.buffer.resize(COPY_BYTES, 0);
        loop {
            let count = data.read(&mut self.buffer).map_err(|error| broken(&error))?;
            if count == 0 {
                break;
            }
            file.write_all(&self.buffer[..count])
                .map_err(|error| Failure::io(format!("unpacking {}", entry.name()), &error))?;
        }
        tolerate(self.finish(entry, file.as_fd()).map_err(Skip::Failed), entry)
    }

    fn write_folder(&mut self, entry: &Entry, path: &[u8]) -> Result<(), Skip> {
        let existed = match split(path) {
            None => true,
            Some((parent, name)) => {
                let parent = self.open_parent(parent)?;
                match mkdirat(parent, &name, Mode::RWXU) {
                    Ok(()) => false,
                    Err(Errno::EXIST) => true,
                    Err(error) => return Err(error.into()),
                }
            }
        };
        // Opened by its path from the root: what exists may also be a link to a folder inside of it.
        let folder = match self.open_folder(path, OFlags::RDONLY) {
            Err(Errno::NOTDIR) => {
                let flags = Mode::RWXU;
                self.replacing(path, |parent, name| mkdirat(parent, name, flags))?;
                self.open_folder(path, OFlags::RDONLY)?
            }
            other => other?,
        };
        if existed && !self.preserve {
            return Ok(());
        }
        self.finish(entry, folder.as_fd())?;
        self.folders.push((path.to_vec(), entry.modified));
        Ok(())
    }

    fn write_symlink(&mut self, entry: &Entry, path: &[u8]) -> Result<(), Skip> {
        let target = CString::new(entry.link.clone()).map_err(|_| Errno::INVAL)?;
        self.replacing(path, |parent, name| symlinkat(&target, parent, name))?;
        self.finish_name(entry, path)
    }

    fn write_hard_link(&mut self, target: &[u8], path: &[u8]) -> Result<(), Skip> {
        if target == path {
            return Ok(());
        }
        let (folder, name) = split(target).ok_or(Errno::ISDIR)?;
        let folder = self.open_folder(folder, OFlags::PATH)?;
        self.replacing(path, |parent, new| linkat(&folder, &name, parent, new, AtFlags::empty()))
    }

    fn write_node(&mut self, entry: &Entry, path: &[u8]) -> Result<(), Skip> {
        let kind = match entry.kind {
            Kind::CharacterDevice => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let device = makedev(entry.device.0, entry.device.1);
        let mode = Mode::from_raw_mode(self.mode_of(entry));
        self.replacing(path, |parent, name| mknodat(parent, name, kind, mode, device))?;
        self.finish_name(entry, path)?;
        let Some((parent, name)) = split(path) else { return Ok(()) };
        let parent = self.open_parent(parent)?;
        // The name was made by us just now and is no link; without this the process's umask would tell.
        Ok(rustix::fs::chmodat(parent, &name, mode, AtFlags::empty())?)
    }

    /// Creates a name, in place of what has it, unless that is a folder.
    fn replacing<T>(
        &mut self,
        path: &[u8],
        create: impl Fn(BorrowedFd<'_>, &CString) -> Result<T, Errno>,
    ) -> Result<T, Skip> {
        let (parent, name) = split(path).ok_or(Errno::ISDIR)?;
        let parent = self.open_parent(parent)?;
        match create(parent, &name) {
            Err(Errno::EXIST) => {
                unlinkat(parent, &name, AtFlags::empty())?;
                Ok(create(parent, &name)?)
            }
            other => Ok(other?),
        }
    }

    /// Owner, mode, attributes and time of an open file or folder.
    fn finish(&self, entry: &Entry, file: BorrowedFd<'_>) -> Result<(), Errno> {
        if self.preserve {
            let (uid, gid) = owner(entry)?;
            fchown(file, Some(uid), Some(gid))?;
        }
        fchmod(file, Mode::from_raw_mode(self.mode_of(entry)))?;
        if self.preserve {
            for (name, value) in &entry.xattrs {
                let name = CString::new(name.clone()).map_err(|_| Errno::INVAL)?;
                fsetxattr(file, &name, value, XattrFlags::empty())?;
            }
        }
        rustix::fs::futimens(file, &times(entry.modified))
    }

    /// Owner and time of what cannot be opened.
    fn finish_name(&mut self, entry: &Entry, path: &[u8]) -> Result<(), Skip> {
        let Some((parent, name)) = split(path) else { return Ok(()) };
        let preserve = self.preserve;
        let parent = self.open_parent(parent)?;
        if preserve {
            let (uid, gid) = owner(entry)?;
            chownat(parent, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(utimensat(parent, &name, &times(entry.modified), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn mode_of(&self, entry: &Entry) -> u32 {
        if self.preserve { entry.mode } else { entry.mode & PLAIN_MODE }
    }

    /// The folder of the next entry, made if missing.
    fn open_parent(&mut self, path: &[u8]) -> Result<BorrowedFd<'_>, Errno> {
        if path.is_empty() {
            return Ok(self.root.as_fd());
        }
        if self.parent.as_ref().is_none_or(|(open, _)| open != path) {
            let folder = match self.open_folder(path, OFlags::PATH) {
                Err(Errno::NOENT) => {
                    self.make_folders(path)?;
                    self.open_folder(path, OFlags::PATH)?
                }
                other => other?,
            };
            self.parent = Some((path.to_vec(), folder));
        }
        self.parent.as_ref().map(|(_, folder)| folder.as_fd()).ok_or(Errno::NOENT)
    }

    fn make_folders(&self, path: &[u8]) -> Result<(), Errno> {
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in ends.chain([path.len()]) {
            let Some((parent, name)) = split(&path[..end]) else { continue };
            let parent = self.open_folder(parent, OFlags::PATH)?;
            match mkdirat(&parent, &name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Opens a folder below the root; the kernel keeps the lookup inside.
    fn open_folder(&self, path: &[u8], access: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = access | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut result = Err(Errno::AGAIN);
        for _ in 0..LOOKUP_TRIES {
            result = openat2(&self.root, path, flags, Mode::empty(), self.resolve);
            if !matches!(result, Err(Errno::AGAIN | Errno::INTR)) {
                break;
            }
        }
        result
    }

    /// Sets the times of folders that `next` is not in: archives list a folder right before what is in it.
    fn leave_folders(&mut self, next: &[u8]) {
        while let Some((folder, modified)) = self.folders.last() {
            let inside = next
                .strip_prefix(folder.as_slice())
                .is_some_and(|rest| folder.is_empty() || rest.starts_with(b"/"));
            if inside && !next.is_empty() {
                return;
            }
            if let Ok(open) = self.open_folder(folder, OFlags::RDONLY) {
                // A time that could not be set is no reason to fail: the file system may not keep any.
                let _ = rustix::fs::futimens(&open, &times(*modified));
            }
            self.folders.pop();
        }
    }
}

/// A path of the archive as one below the root: no leading slashes, no empty or `.` components.
fn inside(path: &[u8]) -> Result<Vec<u8>, &'static str> {
    if path.len() > MAX_PATH_BYTES {
        return Err("its path is too long");
    }
    if path.contains(&0) {
        return Err("its path contains a NUL");
    }
    let mut clean = Vec::with_capacity(path.len());
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err("its path contains '..'"),
            name => {
                if !clean.is_empty() {
                    clean.push(b'/');
                }
                clean.extend_from_slice(name);
            }
        }
    }
    Ok(clean)
}

/// The folder and the name of a clean path; `None` for the root itself.
fn split(path: &[u8]) -> Option<(&[u8], CString)> {
    let (folder, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&path[..0], path),
    };
    (!name.is_empty()).then(|| CString::new(name).ok()).flatten().map(|name| (folder, name))
}

fn times(modified: i64) -> Timestamps {
    let time = Timespec { tv_sec: modified, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

fn tolerate(written: Result<(), Skip>, entry: &Entry) -> Result<(), Failure> {
    match written {
        Ok(()) | Err(Skip::MountPoint) => Ok(()),
        Err(Skip::Failed(error)) => Err(Failure::system(format!("unpacking {}", entry.name()), error)),
    }
}

fn refused(entry: &Entry, why: &str) -> Failure {
    Failure::new(ErrorCode::Invalid, format!("unpacking {}: refused, {why}", entry.name()))
}
