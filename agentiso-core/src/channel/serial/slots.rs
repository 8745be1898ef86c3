use std::{
    fmt::Display,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use agentiso_guest::limits::SERIAL_SLOTS;
use rustix::{
    fs::{AtFlags, FlockOperation, Mode, OFlags},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use tokio::net::UnixStream;

use super::{CONTROL_SLOT, stream::SlotStream};
use crate::channel::{ChannelError, Lane};

/// Clients that may wait in front of one socket. The lock lets one at a time through; the rest is room for those that
/// were killed before QEMU saw them.
const BACKLOG: i32 = 16;

/// Read and write for the owner alone.
const PRIVATE: Mode = Mode::from_raw_mode(0o600);

/// Where the next search begins, see [`search_order`].
static NEXT_START: AtomicU32 = AtomicU32::new(0);

/// The slots that `lane` may use, in the order to try them.
///
/// Control takes the slot kept for it first. The rest begins at another slot in each search of a process, and at
/// another one in each process.
pub(super) fn search_order(lane: Lane) -> Vec<u32> {
    let start = NEXT_START.fetch_add(1, Ordering::Relaxed).wrapping_add(std::process::id());
    let shared = (0..CONTROL_SLOT).map(|step| (start.wrapping_add(step)) % CONTROL_SLOT);
    match lane {
        Lane::Work => shared.collect(),
        Lane::Control => std::iter::once(CONTROL_SLOT).chain(shared).collect(),
    }
}

fn socket_name(slot: u32) -> String {
    format!("s{slot:02}")
}

fn lock_name(slot: u32) -> String {
    format!("s{slot:02}.lock")
}

/// What a search for a free slot found.
pub(super) enum Search {
    /// A slot, and its socket answered.
    Connected(SlotStream),
    /// The machine does not serve its sockets, or they were released.
    NobodyListens,
    /// Every slot has a holder.
    AllTaken,
}

/// The folder that holds a machine's sockets.
///
/// Everything in it is reached through its open descriptor, so that its path may be longer than the 107 bytes of a
/// socket address, and so that all names mean the same folder.
#[derive(Debug)]
pub(super) struct RunDir {
    dir: OwnedFd,
    path: PathBuf,
}

impl RunDir {
    /// Opens a folder that must exist.
    pub(super) fn open(path: &Path) -> Result<Self, ChannelError> {
        Self::open_raw(path).map_err(|errno| io_error("open folder", path.display(), errno))
    }

    /// Opens a folder; `None` if there is none.
    pub(super) fn open_existing(path: &Path) -> Result<Option<Self>, ChannelError> {
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
    pub(super) fn short_path(&self) -> String {
        format!("/proc/self/fd/{}", self.dir.as_raw_fd())
    }

    pub(super) fn display(&self) -> impl Display + '_ {
        self.path.display()
    }

    fn address(&self, slot: u32) -> Result<SocketAddrUnix, Errno> {
        SocketAddrUnix::new(format!("{}/{}", self.short_path(), socket_name(slot)))
    }

    fn error(&self, operation: &'static str, name: &str, errno: Errno) -> ChannelError {
        io_error(operation, self.path.join(name).display(), errno)
    }

    /// Binds every slot's socket and makes its lock file. On failure all of them are removed again.
    pub(super) fn bind_all(&self) -> Result<Vec<OwnedFd>, ChannelError> {
        self.remove_all()?;
        let made = (0..SERIAL_SLOTS).map(|slot| self.bind(slot)).collect::<Result<Vec<_>, _>>();
        if made.is_err()
            && let Err(cleanup) = self.remove_all()
        {
            tracing::warn!(error = %cleanup, "could not remove the sockets of a channel that was not made");
        }
        made
    }

    fn bind(&self, slot: u32) -> Result<OwnedFd, ChannelError> {
        let lock = lock_name(slot);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat(&self.dir, &lock, flags, PRIVATE)
            .map_err(|errno| self.error("make lock file", &lock, errno))?;
        let listen = || {
            let socket = rustix::net::socket_with(
                AddressFamily::UNIX,
                SocketType::STREAM,
                SocketFlags::CLOEXEC,
                None,
            )?;
            // Linux gives the file of a bound socket the mode of the socket: no moment at which others may connect.
            rustix::fs::fchmod(&socket, PRIVATE)?;
            rustix::net::bind(&socket, &self.address(slot)?)?;
            rustix::net::listen(&socket, BACKLOG)?;
            Ok(socket)
        };
        listen().map_err(|errno| self.error("listen on", &socket_name(slot), errno))
    }

    /// Removes every socket and lock file. Those that are gone already are no error; all are tried.
    pub(super) fn remove_all(&self) -> Result<(), ChannelError> {
        let names = (0..SERIAL_SLOTS).flat_map(|slot| [socket_name(slot), lock_name(slot)]);
        let mut failed = None;
        for name in names {
            match rustix::fs::unlinkat(&self.dir, &name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => failed = Some(self.error("remove", &name, errno)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Takes the first free slot and connects to it. Never waits: every call in here is to a local file or socket and
    /// returns at once, so it runs on the caller's thread.
    pub(super) fn search(&self, order: &[u32]) -> Result<Search, ChannelError> {
        for &slot in order {
            let lock = match self.lock(slot) {
                Ok(Lock::Ours(lock)) => lock,
                Ok(Lock::Held) => continue,
                Ok(Lock::Removed) => return Ok(Search::NobodyListens),
                Err(errno) => return Err(self.error("lock", &lock_name(slot), errno)),
            };
            match self.connect(slot) {
                Ok(socket) => return self.hold(slot, lock, socket),
                Err(Errno::NOENT | Errno::CONNREFUSED) => return Ok(Search::NobodyListens),
                // Its backlog is full of clients that were killed: QEMU has not looked at this one for long.
                Err(Errno::AGAIN) => {}
                Err(errno) => return Err(self.error("connect to", &socket_name(slot), errno)),
            }
        }
        Ok(Search::AllTaken)
    }

    fn lock(&self, slot: u32) -> Result<Lock, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let lock = match rustix::fs::openat(&self.dir, lock_name(slot), flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(Lock::Removed),
            opened => opened?,
        };
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(Lock::Held),
            locked => locked?,
        }
        // Between open and lock the channel may have been released and made again: then this is the lock of a file
        // that nobody else will ever find.
        let removed = rustix::fs::fstat(&lock)?.st_nlink == 0;
        Ok(if removed { Lock::Removed } else { Lock::Ours(lock) })
    }

    /// Makes a stream of a locked and connected slot. Only now is its bell taken: a slot that was merely looked at
    /// rings for nobody, or waiters would keep each other awake.
    fn hold(&self, slot: u32, lock: OwnedFd, socket: OwnedFd) -> Result<Search, ChannelError> {
        let name = lock_name(slot);
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let bell = match rustix::fs::openat(&self.dir, &name, flags, Mode::empty()) {
            Ok(bell) => bell,
            Err(Errno::NOENT) => return Ok(Search::NobodyListens),
            Err(errno) => return Err(self.error("open", &name, errno)),
        };
        let socket = UnixStream::from_std(StdUnixStream::from(socket))
            .map_err(|source| ChannelError::Io { operation: "wait on", object: socket_name(slot), source })?;
        Ok(Search::Connected(SlotStream::new(socket, SlotLock { _lock: lock, _bell: bell })))
    }

    fn connect(&self, slot: u32) -> Result<OwnedFd, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &self.address(slot)?)?;
        Ok(socket)
    }
}

enum Lock {
    Ours(OwnedFd),
    Held,
    /// The lock file was removed: the channel was released.
    Removed,
}

/// A slot that is ours until this is dropped.
#[derive(Debug)]
pub(super) struct SlotLock {
    // Fields are dropped in this order: the lock is free when the bell rings.
    _lock: OwnedFd,
    /// The same file, open for writing. Only holders have it so; closing it tells those who wait (`waiting.rs`).
    _bell: OwnedFd,
}

fn io_error(operation: &'static str, object: impl Display, errno: Errno) -> ChannelError {
    ChannelError::Io { operation, object: object.to_string(), source: errno.into() }
}
