//! The cgroup that user work runs in, and freezing it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use agentiso_guest::hello::Nonce;
use agentiso_guest::message::ErrorCode;
use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use crate::agent::{Agent, retry};
use crate::exec::hang_up_stranded;
use crate::failure::{Failure, Stop};
use crate::serve::Connection;

/// How long a command waits for user processes to be thawed: longer than a fork freezes them, shorter than a host waits.
const FROZEN_LIMIT: Duration = Duration::from_secs(3);

/// How many captures that are over are remembered. Captures of one machine follow each other; the request of a killed
/// host process can be late by as much as the guest is slow, which is less than a few of them take.
const CAPTURES_KEPT: usize = 64;

/// A cgroup v2 folder for everything the agent starts; the agent itself is outside of it.
#[derive(Debug)]
pub(crate) struct UserGroup {
    path: PathBuf,
    folder: OwnedFd,
    /// Starting a process holds it for reading: a process born into a frozen group would stop before it runs its
    /// program, and the thread that starts it with it.
    freeze: RwLock<Freeze>,
    /// Readable while the group is not frozen.
    gate: OwnedFd,
}

/// What the group is frozen for.
#[derive(Debug, Default)]
pub(crate) struct Freeze {
    /// The capture that the group is frozen for, or about to be.
    capture: Option<Nonce>,
    /// The latest captures that were thawed. Whatever is still on its way for one of them comes too late: whoever asked
    /// for it is gone, and nobody would thaw again.
    over: VecDeque<Nonce>,
}

impl UserGroup {
    /// Makes the group at `path`, or takes it over.
    ///
    /// # Errors
    /// There is no cgroup v2 at its parent, or it may not be changed.
    pub(crate) fn create(path: &Path) -> std::io::Result<Self> {
        match std::fs::create_dir(path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let folder = openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let gate = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let group = Self { path: path.to_owned(), folder, freeze: RwLock::default(), gate };
        // A group that an earlier agent left frozen would swallow the first command.
        group.write("cgroup.freeze", "0")?;
        Ok(group)
    }

    /// The group for `--service`: below the group that the agent runs in, wherever cgroup v2 is mounted. `None` where
    /// there is no cgroup v2 to write to.
    pub(crate) fn of_service() -> Option<Self> {
        let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
        let root = mounts.lines().find_map(cgroup2_mount_point)?;
        // The process id keeps two agents of one group apart.
        Self::create(&root.join(own).join(format!("agentiso-user-{}", std::process::id()))).ok()
    }

    /// The folder to be born in, held so that the group does not freeze meanwhile; `None` if it is frozen.
    pub(crate) fn enter(&self) -> Option<Entry<'_>> {
        let freeze = self.freeze.read().unwrap_or_else(PoisonError::into_inner);
        freeze.capture.is_none().then_some(Entry { folder: self.folder.as_fd(), _thawed: freeze })
    }

    /// Keeps the group frozen for as long as the guard lives; `None` if it is not.
    pub(crate) fn stay_frozen(&self) -> Option<RwLockReadGuard<'_, Freeze>> {
        Some(self.freeze.read().unwrap_or_else(PoisonError::into_inner))
            .filter(|freeze| freeze.capture.is_some())
    }

    /// Moves a process into the group; it freezes with it.
    pub(crate) fn take_in(&self, process: i32) -> Result<(), Errno> {
        self.write("cgroup.procs", &process.to_string())
    }

    /// Where a group of that name beside this one is.
    pub(crate) fn sibling(&self, name: &str) -> PathBuf {
        let own = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.path.with_file_name(format!("{own}-{name}"))
    }

    /// The group's state, and how to wait for its changes.
    ///
    /// # Errors
    /// The system is out of descriptors.
    pub(crate) fn events(&self) -> Result<GroupEvents, Errno> {
        openat(&self.folder, "cgroup.events", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map(GroupEvents)
    }

    /// Lets the group run, whatever it did before.
    pub(crate) fn thaw(&self) -> Result<(), Errno> {
        self.thaw_now(&mut self.freeze.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn thaw_now(&self, freeze: &mut Freeze) -> Result<(), Errno> {
        self.write("cgroup.freeze", "0")?;
        if freeze.capture.take().is_some() {
            // Adding one to an eventfd fails only when it is readable already.
            let _ = rustix::io::write(&self.gate, &1_u64.to_ne_bytes());
        }
        Ok(())
    }

    /// Lets the group run, and no more be frozen for that capture.
    fn end_capture(&self, capture: Nonce) -> Result<(), Errno> {
        let mut freeze = self.freeze.write().unwrap_or_else(PoisonError::into_inner);
        if !freeze.over.contains(&capture) {
            if freeze.over.len() == CAPTURES_KEPT {
                freeze.over.pop_front();
            }
            freeze.over.push_back(capture);
        }
        self.thaw_now(&mut freeze)
    }

    /// Lets the group run if that capture is what it is frozen for.
    fn thaw_after(&self, capture: Nonce) {
        let mut freeze = self.freeze.write().unwrap_or_else(PoisonError::into_inner);
        if freeze.capture == Some(capture) {
            // The write that froze it worked through the same folder.
            let _ = self.thaw_now(&mut freeze);
        }
    }

    fn is_frozen_for(&self, capture: Nonce) -> bool {
        self.freeze.read().unwrap_or_else(PoisonError::into_inner).capture == Some(capture)
    }

    /// Kills everything in the group.
    pub(crate) fn kill(&self) -> Result<(), Errno> {
        self.write("cgroup.kill", "1")
    }

    /// Removes the group once it is empty.
    pub(crate) fn remove(&self) {
        // What is not empty stays; it holds nothing but itself.
        let _ = std::fs::remove_dir(&self.path);
    }

    /// The processes in the group.
    pub(crate) fn processes(&self) -> Vec<i32> {
        self.read("cgroup.procs")
            .map(|text| text.lines().filter_map(|line| line.parse().ok()).collect())
            .unwrap_or_default()
    }

    /// Begins to freeze the group, unless that capture is over: it is not frozen for it then.
    fn begin_freeze(&self, capture: Nonce) -> Result<(), Errno> {
        let mut freeze = self.freeze.write().unwrap_or_else(PoisonError::into_inner);
        if freeze.over.contains(&capture) {
            return Ok(());
        }
        self.write("cgroup.freeze", "1")?;
        freeze.capture = Some(capture);
        // Nothing there to read: it was frozen already.
        let _ = rustix::io::read(&self.gate, &mut [0; 8]);
        Ok(())
    }

    fn read(&self, name: &str) -> Result<String, Errno> {
        let file = openat(&self.folder, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        std::io::read_to_string(std::fs::File::from(file)).map_err(|_| Errno::IO)
    }

    fn write(&self, name: &str, value: &str) -> Result<(), Errno> {
        let file = openat(&self.folder, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        retry(|| rustix::io::write(&file, value.as_bytes())).map(drop)
    }
}

/// `cgroup.events` of a group. Polls as exceptional (POLLPRI) when something changed since it was last read.
pub(crate) struct GroupEvents(OwnedFd);

impl GroupEvents {
    /// Whether all processes of the group are frozen.
    pub(crate) fn is_frozen(&self) -> Result<bool, Errno> {
        self.has("frozen 1")
    }

    /// Whether any process is in the group.
    pub(crate) fn is_populated(&self) -> Result<bool, Errno> {
        self.has("populated 1")
    }

    fn has(&self, wanted: &str) -> Result<bool, Errno> {
        // Two short lines. Reading this very descriptor is what makes it wait for the next change.
        let mut text = [0_u8; 256];
        let count = retry(|| rustix::io::pread(&self.0, &mut text[..], 0))?;
        Ok(text[..count].split(|byte| *byte == b'\n').any(|line| line == wanted.as_bytes()))
    }
}

impl AsFd for GroupEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Leave to start a process in the group, see [`UserGroup::enter`].
pub(crate) struct Entry<'a> {
    /// The group's folder.
    pub(crate) folder: BorrowedFd<'a>,
    _thawed: RwLockReadGuard<'a, Freeze>,
}

fn cgroup2_mount_point(line: &str) -> Option<PathBuf> {
    let (before, after) = line.split_once(" - ")?;
    after.starts_with("cgroup2 ").then(|| before.split(' ').nth(4).map(PathBuf::from)).flatten()
}

/// Freezes user processes and waits until all are.
///
/// # Errors
/// There is no cgroup v2, the capture is over, or not all are frozen after `timeout_ms`: they are thawed again then. They
/// are thawed as well if the connection is lost meanwhile.
pub(crate) fn freeze(
    agent: &Agent,
    connection: &mut Connection,
    capture: Nonce,
    timeout_ms: u64,
) -> Result<(), Stop> {
    let group = group_of(agent)?;
    let failed = |error| Failure::system("freezing user processes", error);
    let deadline = Instant::now() + Duration::from_millis(timeout_ms).min(Duration::from_secs(86_400));
    let events = group.events().map_err(failed)?;
    let thaw_on_failure = ThawOnFailure(Some((group, capture)));
    group.begin_freeze(capture).map_err(failed)?;
    loop {
        if !group.is_frozen_for(capture) {
            let text = "freezing user processes: they were thawed already; begin anew";
            return Err(Failure::new(ErrorCode::Conflict, text).into());
        }
        if events.is_frozen().map_err(failed)? {
            break;
        }
        if Instant::now() >= deadline {
            return Err(Failure::new(
                ErrorCode::TimedOut,
                format!("freezing user processes: not all were frozen after {timeout_ms} ms; they run again"),
            )
            .into());
        }
        while connection.next_message::<agentiso_guest::message::Input>()?.is_some() {}
        connection.wait(true, [Some((events.as_fd(), PollFlags::PRI))], Some(deadline))?;
    }
    thaw_on_failure.keep();
    Ok(())
}

/// Lets user processes run again, and refuses to freeze them for that capture from now on.
///
/// # Errors
/// There is no cgroup v2.
pub(crate) fn thaw(agent: &Agent, capture: Nonce) -> Result<(), Failure> {
    let thawed = group_of(agent)?.end_capture(capture);
    hang_up_stranded(agent);
    thawed.map_err(|error| Failure::system("thawing user processes", error))
}

/// Leave to start a command; `None` where there is no cgroup v2. While user processes are frozen this waits: a machine that
/// is being forked is frozen for a moment, of which a command that comes in it should notice no more than that.
///
/// # Errors
/// User processes stay frozen, or the connection is lost.
pub(crate) fn enter<'a>(agent: &'a Agent, connection: &mut Connection) -> Result<Option<Entry<'a>>, Stop> {
    let Some(group) = &agent.group else { return Ok(None) };
    let mut deadline = None;
    loop {
        if let Some(entry) = group.enter() {
            return Ok(Some(entry));
        }
        let deadline = *deadline.get_or_insert_with(|| Instant::now() + FROZEN_LIMIT);
        if Instant::now() >= deadline {
            let text = "starting a command: user processes are frozen; thaw them first";
            return Err(Failure::new(ErrorCode::Conflict, text).into());
        }
        // Input for the command stays where it is; that the connection is lost is noticed.
        connection.wait(false, [Some((group.gate.as_fd(), PollFlags::IN))], Some(deadline))?;
    }
}

fn group_of(agent: &Agent) -> Result<&UserGroup, Failure> {
    agent.group.as_ref().ok_or_else(|| {
        Failure::new(
            ErrorCode::NotPermitted,
            "freezing and thawing need cgroup v2, which this agent may not use here",
        )
    })
}

/// Thaws when dropped what was frozen for a capture, unless told to keep the freeze.
struct ThawOnFailure<'a>(Option<(&'a UserGroup, Nonce)>);

impl ThawOnFailure<'_> {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for ThawOnFailure<'_> {
    fn drop(&mut self) {
        if let Some((group, capture)) = self.0 {
            group.thaw_after(capture);
        }
    }
}
