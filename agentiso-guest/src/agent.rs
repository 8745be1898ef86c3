//! What all sessions share.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::environment::Environment;
use crate::exec::Stranded;
use crate::freezer::UserGroup;
use crate::jobs::Jobs;
use crate::keeper::Keeper;
use crate::serve::Sessions;

/// Stack of each thread, in bytes: no thread recurses, and what it never touches costs nothing.
const THREAD_STACK_BYTES: usize = 256 * 1024;

/// Open files that the agent itself may have.
const OPEN_FILES: u64 = 65_536;

/// The agent's state, shared by all its threads.
#[derive(Debug)]
pub(crate) struct Agent {
    /// Variables that every command gets.
    pub(crate) environment: Environment,
    /// Background jobs.
    pub(crate) jobs: Jobs,
    /// Commands that lost their connection while user processes were frozen.
    pub(crate) stranded: Stranded,
    /// Looks after what outlives its connection.
    pub(crate) keeper: Keeper,
    /// Where user work runs, if the system has cgroup v2.
    pub(crate) group: Option<UserGroup>,
    /// Which connections there are.
    pub(crate) sessions: Sessions,
    /// Connections being served.
    pub(crate) served: AtomicUsize,
    /// /dev/null, the standard input of commands without one.
    pub(crate) null: OwnedFd,
    /// Limits of open files that commands get.
    pub(crate) open_files: Option<(u64, u64)>,
    /// Whether commands must have their out-of-memory score set back.
    pub(crate) reset_oom_score: bool,
    ending: AtomicBool,
    refuses_shutdown: AtomicBool,
    /// Readable when someone asked for a shutdown, see [`Agent::shutdown_grace`].
    pub(crate) shutdown_wanted: OwnedFd,
    grace: Mutex<Duration>,
}

impl Agent {
    /// The state at start: no variables, no jobs, user work in `group`.
    ///
    /// # Errors
    /// The system is out of descriptors or threads, or has no /dev/null.
    pub(crate) fn new(group: Option<UserGroup>) -> std::io::Result<Self> {
        let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self {
            environment: Environment::default(),
            jobs: Jobs::default(),
            stranded: Stranded::default(),
            keeper: Keeper::start()?,
            group,
            sessions: Sessions::new()?,
            served: AtomicUsize::new(0),
            null,
            open_files: raise_open_files(),
            reset_oom_score: shield_from_oom_killer(),
            ending: AtomicBool::new(false),
            refuses_shutdown: AtomicBool::new(false),
            shutdown_wanted: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            grace: Mutex::new(Duration::ZERO),
        })
    }

    /// Whether the machine is shutting down.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Acquire)
    }

    /// From now on the system cannot be shut down by request: who serves a socket of its own is not a machine of the
    /// host that asks.
    pub(crate) fn refuse_shutdown(&self) {
        self.refuses_shutdown.store(true, Ordering::Release);
    }

    /// Whether the system may be shut down by request.
    pub(crate) fn may_shut_down(&self) -> bool {
        !self.refuses_shutdown.load(Ordering::Acquire)
    }

    /// Asks the main thread to end everything; user processes have `grace` between SIGTERM and SIGKILL. Further
    /// requests are refused from now on.
    pub(crate) fn shut_down(&self, grace: Duration) {
        *lock(&self.grace) = grace;
        self.ending.store(true, Ordering::Release);
        // Adding one to an eventfd fails only when it is readable already.
        let _ = rustix::io::write(&self.shutdown_wanted, &1_u64.to_ne_bytes());
    }

    /// How long user processes have in the shutdown that was asked for.
    pub(crate) fn shutdown_grace(&self) -> Duration {
        *lock(&self.grace)
    }
}

/// Locks; what a panicking holder left behind is still whole, for no lock here is held across a change in steps.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a thread that lives as long as the agent.
///
/// # Errors
/// The system has no room for another thread.
pub(crate) fn start_thread(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).stack_size(THREAD_STACK_BYTES).spawn(body).map(drop)
}

/// Allows the agent many open files and returns the limits before, which are for commands.
fn raise_open_files() -> Option<(u64, u64)> {
    let before = getrlimit(Resource::Nofile);
    let (soft, hard) = (before.current?, before.maximum?);
    let wanted = Rlimit { current: Some(OPEN_FILES), maximum: Some(hard.max(OPEN_FILES)) };
    let within = Rlimit { current: Some(hard.min(OPEN_FILES)), maximum: Some(hard) };
    (setrlimit(Resource::Nofile, wanted).is_ok() || setrlimit(Resource::Nofile, within).is_ok())
        .then_some((soft, hard))
}

/// Keeps the out-of-memory killer away from the agent. Returns whether that worked, and so whether what the agent
/// starts must be exposed again.
fn shield_from_oom_killer() -> bool {
    std::fs::write("/proc/self/oom_score_adj", "-1000").is_ok()
}

/// Retries a call that a signal, or the freezer, interrupted.
pub(crate) fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}
