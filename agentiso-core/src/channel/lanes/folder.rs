use std::{
    fmt::Display,
    fs::File,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::{
    fs::{AtFlags, FlockOperation, Mode, OFlags},
    io::Errno,
};

use super::stream::Held;
use crate::channel::{ChannelError, Lane};

/// Read and write for the owner alone.
const PRIVATE: Mode = Mode::from_raw_mode(0o600);

/// Where the next search begins, see [`search_order`].
static NEXT_START: AtomicU32 = AtomicU32::new(0);

/// The lanes of `count` that `lane` may use, in the order to try them.
///
/// Control takes the lane kept for it first. The rest begins at another lane in each search of a process, and at
/// another one in each process.
pub(super) fn search_order(lane: Lane, count: u32) -> Vec<u32> {
    let control = count.saturating_sub(1);
    let start = NEXT_START.fetch_add(1, Ordering::Relaxed).wrapping_add(std::process::id());
    let shared = (0..control).map(|step| (start.wrapping_add(step)) % control);
    match lane {
        Lane::Work => shared.collect(),
        Lane::Control => std::iter::once(control).chain(shared).collect(),
    }
}

fn lock_name(lane: u32) -> String {
    format!("s{lane:02}.lock")
}

/// What a search for a free lane found.
pub(super) enum Search<T> {
    /// A lane, and its connection.
    Connected(Held<T>),
    /// Nobody listens, or the lanes were removed.
    NobodyListens,
    /// Every lane has a holder.
    AllTaken,
}

/// The folder that holds a machine's sockets and lanes.
///
/// Everything in it is reached through its open descriptor, so that its path may be longer than the 107 bytes of a
/// socket address, and so that all names mean the same folder.
#[derive(Debug)]
pub(in crate::channel) struct RunDir {
    dir: OwnedFd,
    path: PathBuf,
}

impl RunDir {
    /// Opens a folder that must exist.
    pub(in crate::channel) fn open(path: &Path) -> Result<Self, ChannelError> {
        Self::open_raw(path).map_err(|errno| io_error("open folder", path.display(), errno))
    }

    /// Opens a folder; `None` if there is none.
    pub(in crate::channel) fn open_existing(path: &Path) -> Result<Option<Self>, ChannelError> {
        match Self::open_raw(path) {
            Ok(run_dir) => Ok(Some(run_dir)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(io_error("open folder", path.display(), errno)),
        }
    }

    fn open_raw(path: &Path) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self { dir, path: path.to_owned() })
    }

    /// A short path to the folder, valid in this process while `self` lives.
    pub(in crate::channel) fn short_path(&self) -> String {
        format!("/proc/self/fd/{}", self.dir.as_raw_fd())
    }

    pub(in crate::channel) fn display(&self) -> impl Display + '_ {
        self.path.display()
    }

    /// What went wrong with a file of it.
    pub(in crate::channel) fn error(
        &self,
        operation: &'static str,
        name: &str,
        errno: Errno,
    ) -> ChannelError {
        io_error(operation, self.path.join(name).display(), errno)
    }

    /// Makes a lane; there must be none of that number.
    pub(in crate::channel) fn make_lane(&self, lane: u32) -> Result<(), ChannelError> {
        self.create(&lock_name(lane)).map(drop)
    }

    /// Makes a file for its owner alone; there must be none of that name.
    pub(in crate::channel) fn create(&self, name: &str) -> Result<File, ChannelError> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let made = rustix::fs::openat(&self.dir, name, flags, PRIVATE);
        made.map(File::from).map_err(|errno| self.error("make file", name, errno))
    }

    /// Opens a file for reading; `None` if there is none.
    pub(in crate::channel) fn open_file(&self, name: &str) -> Result<Option<File>, ChannelError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::openat(&self.dir, name, flags, Mode::empty()) {
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.error("open", name, errno)),
        }
    }

    /// Removes the lanes, and what else has one of these names. What is gone already is no error; all are tried.
    pub(in crate::channel) fn remove_lanes(
        &self,
        count: u32,
        others: impl Iterator<Item = String>,
    ) -> Result<(), ChannelError> {
        let mut failed = None;
        for name in others.chain((0..count).map(lock_name)) {
            match rustix::fs::unlinkat(&self.dir, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => failed = Some(self.error("remove", &name, errno)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Takes the first free lane and connects. Never waits: every call in here is to a local file or socket and
    /// returns at once, so it runs on the caller's thread.
    pub(super) fn search<T>(
        &self,
        order: &[u32],
        connect: &mut impl FnMut(u32) -> Result<T, Errno>,
    ) -> Result<Search<T>, ChannelError> {
        for &lane in order {
            let lock = match self.lock(lane) {
                Ok(Lock::Ours(lock)) => lock,
                Ok(Lock::Held) => continue,
                Ok(Lock::Removed) => return Ok(Search::NobodyListens),
                Err(errno) => return Err(self.error("lock", &lock_name(lane), errno)),
            };
            match connect(lane) {
                Ok(connection) => return self.hold(lane, lock, connection),
                Err(Errno::NOENT | Errno::CONNREFUSED) => return Ok(Search::NobodyListens),
                // Its backlog is full of clients that were killed: nobody has looked at this one for long.
                Err(Errno::AGAIN) => {}
                Err(errno) => return Err(self.error("connect on the lane of", &lock_name(lane), errno)),
            }
        }
        Ok(Search::AllTaken)
    }

    fn lock(&self, lane: u32) -> Result<Lock, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock = match rustix::fs::openat(&self.dir, lock_name(lane), flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(Lock::Removed),
            opened => opened?,
        };
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(Lock::Held),
            locked => locked?,
        }
        // Between open and lock the channel may have been released and made again: then this is the lock of a file
        // that nobody else will ever find.
        Ok(if is_removed(&lock) { Lock::Removed } else { Lock::Ours(lock) })
    }

    /// Holds a lane that is locked and connected. Only now is its bell taken: a lane that was merely looked at rings for
    /// nobody, or waiters would keep each other awake.
    fn hold<T>(&self, lane: u32, lock: OwnedFd, connection: T) -> Result<Search<T>, ChannelError> {
        let name = lock_name(lane);
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let bell = match rustix::fs::openat(&self.dir, &name, flags, Mode::empty()) {
            Ok(bell) => bell,
            Err(Errno::NOENT) => return Ok(Search::NobodyListens),
            Err(errno) => return Err(self.error("open", &name, errno)),
        };
        Ok(Search::Connected(Held::new(connection, LaneLock { lock, _bell: bell })))
    }
}

enum Lock {
    Ours(OwnedFd),
    Held,
    /// The lock file was removed: the channel was released.
    Removed,
}

/// A lane that is ours until this is dropped.
#[derive(Debug)]
pub(super) struct LaneLock {
    // Fields are dropped in this order: the lock is free when the bell rings.
    lock: OwnedFd,
    /// The same file, open for writing. Only holders have it so; closing it tells those who wait (`waiting.rs`).
    _bell: OwnedFd,
}

impl LaneLock {
    /// Whether the lane was not removed since it was taken.
    pub(super) fn is_valid(&self) -> bool {
        !is_removed(&self.lock)
    }
}

fn is_removed(file: &OwnedFd) -> bool {
    // A descriptor of ours can always be asked.
    rustix::fs::fstat(file).is_ok_and(|found| found.st_nlink == 0)
}

fn io_error(operation: &'static str, object: impl Display, errno: Errno) -> ChannelError {
    ChannelError::Io { operation, object: object.to_string(), source: errno.into() }
}
