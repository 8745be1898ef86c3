//! Which device a volume is.
//!
//! The kernel numbers volumes as they come: /dev/zd0, /dev/zd16, ... Names by dataset (/dev/zvol/...) are links that
//! udev makes, where it runs, and some time later. So the devices themselves are asked, newest first, and when the
//! volume is none of them yet, the next announcement of a device by the kernel is waited for. A number can be used
//! again for another volume, so an answer is only good while the volume is there and nobody destroys it.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, bind,
        netlink::{KOBJECT_UEVENT, SocketAddrNetlink},
        recv, socket_with,
    },
};

use super::sys;

/// The multicast group of the kernel's own announcements.
const KERNEL_GROUP: u32 = 1;

/// How long the kernel may refuse to open a device because it manages pools at this moment.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);

/// The kernel's own error number for a call that should be begun anew; it is not meant to be seen, but is.
const ERESTARTSYS: i32 = 512;

/// What devices were found to be, by their number in the order of appearance, which is never used again. The name of
/// one can only change by `zfs rename`, so it is asked again when it counts.
static KNOWN: LazyLock<Mutex<HashMap<u64, String>>> = LazyLock::new(Mutex::default);

/// A volume's device as sysfs shows it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    /// Number in the order of appearance; 0 with kernels before 5.15, which do not count.
    sequence: u64,
    /// `zd16`.
    name: String,
}

impl Candidate {
    fn path(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }

    fn is(&self, volume: &str) -> io::Result<bool> {
        let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if self.sequence != 0 && known().get(&self.sequence).is_some_and(|name| name != volume) {
            return Ok(false);
        }
        let name = match open(&self.path()).and_then(sys::volume_name) {
            Ok(name) => name,
            // It went, or its node is still to come.
            Err(error) if is_absent(&error) => return Ok(false),
            Err(error) => return Err(error),
        };
        let found = name == volume;
        if self.sequence != 0 {
            known().insert(self.sequence, name);
        }
        Ok(found)
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENXIO | libc::ENODEV))
}

/// Opens a device for a question. The kernel refuses while it is busy with pools.
fn open(path: &Path) -> io::Result<File> {
    let until = Instant::now() + OPEN_PATIENCE;
    loop {
        match File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path) {
            // The kernel itself has waited a second before it says this.
            Err(error) if error.raw_os_error() == Some(ERESTARTSYS) && Instant::now() < until => {}
            other => return other,
        }
    }
}

/// The devices of volumes, the newest first.
fn candidates() -> io::Result<Vec<Candidate>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        let is_volume =
            name.strip_prefix("zd").is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
        if is_volume {
            let sequence = fs::read_to_string(format!("/sys/block/{name}/diskseq"));
            let sequence = sequence.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
            found.push(Candidate { sequence, name });
        }
    }
    found.sort_by(|a, b| b.cmp(a));
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.retain(|sequence, _| found.iter().any(|candidate| candidate.sequence == *sequence));
    Ok(found)
}

fn look(volume: &str) -> io::Result<Option<PathBuf>> {
    // Where udev runs, there is a link; it may be of an earlier volume with that name.
    let linked = fs::canonicalize(Path::new("/dev/zvol").join(volume));
    let hint = linked.ok().and_then(|path| path.file_name()?.to_str().map(str::to_owned));
    let mut candidates = candidates()?;
    candidates.sort_by_key(|candidate| Some(&candidate.name) != hint.as_ref());
    for candidate in candidates {
        if candidate.is(volume)? {
            return Ok(Some(candidate.path()));
        }
    }
    Ok(None)
}

/// The device that a volume is; waits for it.
///
/// # Errors
/// It did not appear in time.
pub(super) fn find(volume: &str, until: Instant) -> io::Result<PathBuf> {
    if let Some(path) = look(volume)? {
        return Ok(path);
    }
    // Before looking again, so that none is missed.
    let announcements = Announcements::open()?;
    // One of them may have got this name since it was asked.
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner).clear();
    loop {
        if let Some(path) = look(volume)? {
            return Ok(path);
        }
        if !announcements.wait(until)? {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "no device appeared for the volume {volume}: check that `zfs get volmode {volume}` says dev, and \
                     that /sys/module/zfs/parameters/zvol_inhibit_dev is 0"
                ),
            ));
        }
    }
}

/// Tells when somebody closes a volume's device, from when this was made.
#[derive(Debug)]
pub(super) struct Closings(OwnedFd);

impl Closings {
    /// Watches; `None` if the volume has no device, and gets none in time.
    pub(super) fn watch(volume: &str, until: Instant) -> io::Result<Option<Self>> {
        let path = match find(volume, until) {
            Ok(path) => path,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(None),
            Err(error) => return Err(error),
        };
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let closing = inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::CLOSE_NOWRITE;
        match inotify::add_watch(&watch, &path, closing) {
            Ok(_) => Ok(Some(Self(watch))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for one; false if there was none in time.
    pub(super) fn wait(&self, until: Instant) -> io::Result<bool> {
        if !wait_readable(&self.0, until)? {
            return Ok(false);
        }
        let mut events = [0_u8; 4096];
        loop {
            match rustix::io::read(&self.0, &mut events) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The kernel's announcements of devices, from when it was opened.
struct Announcements(OwnedFd);

impl Announcements {
    fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
        Ok(Self(socket))
    }

    /// Waits until there are some, and takes them; false if there were none in time.
    fn wait(&self, until: Instant) -> io::Result<bool> {
        if !wait_readable(&self.0, until)? {
            return Ok(false);
        }
        // What they say does not matter: everything is looked at again. Lost ones (NOBUFS) are as good as any.
        let mut announcement = [0_u8; 4096];
        loop {
            match recv(&self.0, &mut announcement[..], RecvFlags::empty()) {
                Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Whether there is something to read before the time is over.
fn wait_readable(fd: &OwnedFd, until: Instant) -> io::Result<bool> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
