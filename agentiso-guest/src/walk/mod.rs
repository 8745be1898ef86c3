//! Everything below a folder, in order, and what its files contain.
//!
//! User processes may change the tree while it is walked, and may do so to mislead: every folder is opened from where
//! the walk began, below it, through no symbolic link and no mount.

mod hash;
mod names;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use agentiso_guest::limits::{MAX_ENTRIES_PER_REPLY, MAX_PATH_BYTES, TREE_REPLY_BYTES};
use agentiso_guest::message::{ErrorCode, Reply};
use agentiso_guest::tree::{FileTime, RawPath, TreeEntry, TreeKind};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Statx, StatxAttributes, StatxFlags, StatxTimestamp,
    openat, openat2, readlinkat, statx,
};
use rustix::io::Errno;

pub(crate) use hash::hash;
use names::Names;

use crate::failure::{Failure, Stop};
use crate::serve::Connection;

/// Folders that are kept open; those above are opened again when the walk comes back to them.
const OPEN_FOLDERS: usize = 32;

/// What was modified less than this many seconds before the walk began may have been modified again within the same
/// tick of its clock: file systems store times in steps of up to two seconds.
const TIME_DOUBT: i64 = 2;

/// How often opening is tried again when a rename came in between.
const OPEN_TRIES: u32 = 100;

/// A path of a request: absolute, not too long, without a NUL.
fn check_path(path: &RawPath) -> Result<&[u8], Failure> {
    let bytes = path.as_bytes();
    if !bytes.starts_with(b"/") {
        return Err(Failure::invalid(format!("the path \"{path}\" is not absolute")));
    }
    if bytes.len() > MAX_PATH_BYTES {
        let length = bytes.len();
        return Err(Failure::invalid(format!("the path is {length} bytes long, more than {MAX_PATH_BYTES}")));
    }
    if bytes.contains(&0) {
        return Err(Failure::invalid("the path contains a NUL"));
    }
    Ok(bytes)
}

/// Opens where a walk begins, without access to what it holds.
fn open_root(path: &RawPath) -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(CWD, check_path(path)?, flags, Mode::empty())
        .map_err(|error| Failure::system(format_args!("opening {path}"), error))
}

/// Opens a file or folder below `root` for reading, without leaving a trace in its access time where that is allowed.
fn open_below(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags =
        flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let mut untraced = OFlags::NOATIME;
    let mut tries = 0;
    loop {
        match openat2(root, path, flags | untraced, Mode::empty(), resolve) {
            // Only the owner of a file and root may do without.
            Err(Errno::PERM) if !untraced.is_empty() => untraced = OFlags::empty(),
            // Something was renamed while the path was looked up.
            Err(Errno::AGAIN) if tries < OPEN_TRIES => tries += 1,
            Err(Errno::INTR) => {}
            opened => return opened,
        }
    }
}

/// Opens a folder below `root`, or `root` itself, to be listed.
fn open_folder(root: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    open_below(root.as_fd(), if path.is_empty() { b"." } else { path }, OFlags::DIRECTORY)
}

/// What is at `name` in `folder`, or the folder itself if that is empty.
fn look_at(folder: BorrowedFd<'_>, name: &[u8]) -> Result<Statx, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    statx(folder, name, flags, StatxFlags::BASIC_STATS)
}

/// Sends an entry for `path` and for all below it on the same file system, in order.
///
/// # Errors
/// It is not there, or not on the root file system and `root_file_system` asks for that; something cannot be read; a
/// path is too long, a folder too large; or the connection is lost.
pub(crate) fn walk(connection: &mut Connection, path: &RawPath, root_file_system: bool) -> Result<(), Stop> {
    let root = open_root(path)?;
    let failed = |error| Failure::system(format_args!("looking at {path}"), error);
    let start = look_at(root.as_fd(), b"").map_err(failed)?;
    if root_file_system {
        let slash = statx(CWD, "/", AtFlags::empty(), StatxFlags::BASIC_STATS).map_err(failed)?;
        if (slash.stx_dev_major, slash.stx_dev_minor) != (start.stx_dev_major, start.stx_dev_minor) {
            let text = format!("{path} is not on the root file system: something is mounted there");
            return Err(Failure::invalid(text).into());
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let mut walker = Walker {
        connection,
        root,
        start: path,
        fresh_since: i64::try_from(now).unwrap_or(i64::MAX) - TIME_DOUBT,
        path: Vec::new(),
        levels: Vec::new(),
        batch: Vec::new(),
        batch_bytes: 0,
    };
    walker.send(&start, None)?;
    if FileType::from_raw_mode(start.stx_mode.into()) == FileType::Directory {
        walker.enter()?;
    }
    while walker.step()? {}
    walker.flush()
}

/// One folder on the way from where the walk began to where it is.
struct Level {
    /// Open while the walk is near.
    folder: Option<OwnedFd>,
    /// What is still to come, the next one last.
    names: Names,
    /// Bytes of its path.
    length: usize,
}

struct Walker<'a> {
    connection: &'a mut Connection,
    root: OwnedFd,
    /// Where the walk began, for errors.
    start: &'a RawPath,
    fresh_since: i64,
    /// What is being looked at, seen from the root.
    path: Vec<u8>,
    levels: Vec<Level>,
    batch: Vec<TreeEntry>,
    batch_bytes: usize,
}

impl Walker<'_> {
    /// Goes on by one entry. `false` at the end.
    fn step(&mut self) -> Result<bool, Stop> {
        let Some(level) = self.levels.last_mut() else { return Ok(false) };
        self.path.truncate(level.length);
        let Some(name) = level.names.pop() else {
            self.levels.pop();
            return Ok(true);
        };
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(&name);
        if self.path.len() > MAX_PATH_BYTES {
            let text = format!("the path {} is longer than {MAX_PATH_BYTES} bytes", self.shown());
            return Err(Failure::new(ErrorCode::Exhausted, text).into());
        }
        let folder = match &mut level.folder {
            Some(folder) => folder,
            closed => match open_folder(&self.root, &self.path[..level.length]) {
                Ok(opened) => closed.insert(opened),
                // The folder went away: so did the rest of it.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {
                    self.levels.pop();
                    return Ok(true);
                }
                Err(error) => return Err(self.failed("opening the folder of", error).into()),
            },
        };
        let status = match look_at(folder.as_fd(), &name) {
            Ok(status) => status,
            Err(Errno::NOENT) => return Ok(true),
            Err(error) => return Err(self.failed("looking at", error).into()),
        };
        let file_type = FileType::from_raw_mode(status.stx_mode.into());
        let mut target = None;
        if file_type == FileType::Symlink {
            match readlinkat(&*folder, &*name, Vec::new()) {
                Ok(text) => target = Some(RawPath::new(text.into_bytes())),
                Err(Errno::NOENT | Errno::INVAL) => return Ok(true),
                Err(error) => return Err(self.failed("following", error).into()),
            }
        }
        self.send(&status, target)?;
        if file_type == FileType::Directory && !is_mount(&status) {
            self.enter()?;
        }
        Ok(true)
    }

    /// Goes into the folder that is being looked at.
    fn enter(&mut self) -> Result<(), Stop> {
        let opened = open_folder(&self.root, &self.path);
        let folder = match opened {
            Ok(folder) => folder,
            // No folder any more, or something was mounted on it.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(()),
            Err(error) => return Err(self.failed("opening", error).into()),
        };
        let names = Names::read(&folder).map_err(|error| match error {
            names::Error::Read(error) => self.failed("listing", error),
            names::Error::TooLarge => Failure::new(
                ErrorCode::Exhausted,
                format!("the folder {} holds too many names to be sorted in memory", self.shown()),
            ),
        })?;
        if let Some(far) = self.levels.len().checked_sub(OPEN_FOLDERS) {
            self.levels[far].folder = None;
        }
        self.levels.push(Level { folder: Some(folder), names, length: self.path.len() });
        Ok(())
    }

    /// Queues an entry for what is being looked at.
    fn send(&mut self, status: &Statx, target: Option<RawPath>) -> Result<(), Stop> {
        let entry = describe(RawPath::new(self.path.clone()), status, target, self.fresh_since);
        // The root of the walk may well be where something is mounted: then it is that which is walked.
        let kind = if self.path.is_empty() { kind_of(status) } else { entry.kind };
        self.batch_bytes += self.path.len() + entry.target.as_ref().map_or(0, |to| to.as_bytes().len());
        self.batch.push(TreeEntry { kind, ..entry });
        if self.batch.len() >= MAX_ENTRIES_PER_REPLY || self.batch_bytes >= TREE_REPLY_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Stop> {
        if !self.batch.is_empty() {
            self.connection.send(&Reply::Tree { entries: std::mem::take(&mut self.batch) });
            self.batch_bytes = 0;
            self.connection.flush()?;
        }
        Ok(())
    }

    fn shown(&self) -> RawPath {
        let start = self.start.as_bytes().strip_suffix(b"/").unwrap_or(self.start.as_bytes());
        RawPath::new([start, b"/", &self.path].concat())
    }

    fn failed(&self, doing: &str, error: Errno) -> Failure {
        Failure::system(format_args!("{doing} {}", self.shown()), error)
    }
}

/// Whether something is mounted there.
fn is_mount(status: &Statx) -> bool {
    status.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
}

fn kind_of(status: &Statx) -> TreeKind {
    match FileType::from_raw_mode(status.stx_mode.into()) {
        FileType::Directory => TreeKind::Directory,
        FileType::Symlink => TreeKind::Symlink,
        FileType::BlockDevice => TreeKind::Block,
        FileType::CharacterDevice => TreeKind::Character,
        FileType::Fifo => TreeKind::Fifo,
        FileType::Socket => TreeKind::Socket,
        _ => TreeKind::File,
    }
}

fn describe(path: RawPath, status: &Statx, target: Option<RawPath>, fresh_since: i64) -> TreeEntry {
    let time = |time: StatxTimestamp| FileTime(time.tv_sec, time.tv_nsec);
    let kind = if is_mount(status) { TreeKind::Mount } else { kind_of(status) };
    TreeEntry {
        path,
        kind,
        size: status.stx_size,
        mode: u32::from(status.stx_mode) & 0o7777,
        uid: status.stx_uid,
        gid: status.stx_gid,
        modified: time(status.stx_mtime),
        changed: time(status.stx_ctime),
        fresh: status.stx_mtime.tv_sec >= fresh_since,
        target,
        device: matches!(kind, TreeKind::Block | TreeKind::Character)
            .then_some((status.stx_rdev_major, status.stx_rdev_minor)),
    }
}
