//! One thread that looks after everything that outlives its connection: output of background jobs, output of children that
//! outlive their command (read and thrown away, so that they never die of SIGPIPE), commands whose connection was
//! lost.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;

use crate::agent::{lock, start_thread};
use crate::exec::{SIGHUP, collect, kill_group};
use crate::jobs::{Job, Stream};
use crate::serve::timeout_until;
use crate::sys::signal::signal_group;
use crate::sys::spawn::Spawned;

/// Most pipes of surviving children that are kept open. A child whose pipe no longer fits gets SIGPIPE when it prints.
const MAX_SURVIVORS: usize = 16_384;
/// Bytes read from a pipe at once.
const READ_BYTES: usize = 32 * 1024;
/// Events taken at once.
const EVENTS: usize = 16;
/// The token of the eventfd.
const WAKE: u64 = 0;

/// Something to look after.
#[derive(Debug)]
enum Charge {
    /// Read and throw away.
    Drain(OwnedFd),
    /// Read for a job.
    JobOutput(Arc<Job>, Stream),
    /// Wait for a job's end.
    JobEnd(Arc<Job>),
    /// Kill a job then, if it still runs.
    JobDeadline(Arc<Job>, Instant),
    /// Write this to a command's input, then close it. The number says how many bytes are written.
    Feed(OwnedFd, Vec<u8>, usize),
    /// A killed command to be collected.
    Collect(Spawned),
    /// A command that has had SIGHUP, and gets SIGKILL then. It is not collected before: until then the number of its
    /// process group cannot become another's.
    HangUp(Spawned, Instant),
}

#[derive(Debug)]
struct Shared {
    arrivals: Mutex<Vec<Charge>>,
    wake: OwnedFd,
}

/// Hands things over to the thread.
#[derive(Debug)]
pub(crate) struct Keeper {
    shared: Arc<Shared>,
}

impl Keeper {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system is out of threads or descriptors.
    pub(crate) fn start() -> std::io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared { arrivals: Mutex::new(Vec::new()), wake });
        let rounds = Rounds::new(Arc::clone(&shared))?;
        start_thread("keeper", move || rounds.run())?;
        Ok(Self { shared })
    }

    /// Reads a pipe to its end and throws away what comes.
    pub(crate) fn drain(&self, pipe: OwnedFd) {
        self.hand_over(Charge::Drain(pipe));
    }

    /// Sends SIGHUP to a command's process group now, and SIGKILL after `grace`.
    pub(crate) fn hang_up(&self, child: Spawned, grace: Duration) {
        signal_group(child.pid, SIGHUP);
        self.hand_over(Charge::HangUp(child, Instant::now() + grace));
    }

    /// Keeps a job's output and notes its end.
    pub(crate) fn keep_job(&self, job: &Arc<Job>) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if job.pipe(stream).is_some() {
                self.hand_over(Charge::JobOutput(Arc::clone(job), stream));
            }
        }
        self.hand_over(Charge::JobEnd(Arc::clone(job)));
    }

    /// Collects a killed process once it has ended.
    pub(crate) fn collect(&self, child: Spawned) {
        self.hand_over(Charge::Collect(child));
    }

    /// Ends a job at its deadline, as its connection would have.
    pub(crate) fn end_job_at(&self, job: &Arc<Job>, deadline: Instant) {
        self.hand_over(Charge::JobDeadline(Arc::clone(job), deadline));
    }

    /// Writes what a command has not read yet of its input, and ends it.
    pub(crate) fn feed(&self, input: OwnedFd, bytes: Vec<u8>) {
        self.hand_over(Charge::Feed(input, bytes, 0));
    }

    fn hand_over(&self, charge: Charge) {
        lock(&self.shared.arrivals).push(charge);
        // Adding one to an eventfd fails only when it is readable already.
        let _ = rustix::io::write(&self.shared.wake, &1_u64.to_ne_bytes());
    }
}

/// The thread's own state.
#[derive(Debug)]
struct Rounds {
    shared: Arc<Shared>,
    epoll: OwnedFd,
    charges: HashMap<u64, Charge>,
    next_token: u64,
    survivors: usize,
    buffer: Vec<u8>,
}

impl Rounds {
    fn new(shared: Arc<Shared>) -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &shared.wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        let charges = HashMap::new();
        Ok(Self { shared, epoll, charges, next_token: WAKE + 1, survivors: 0, buffer: vec![0; READ_BYTES] })
    }

    fn run(mut self) {
        let nothing =
            epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(WAKE) };
        let mut events = [nothing; EVENTS];
        loop {
            let timeout = self.next_deadline().map(|deadline| timeout_until(Some(deadline)));
            // An interrupted wait has no events.
            let count = epoll::wait(&self.epoll, &mut events, timeout.as_ref()).unwrap_or(0);
            for event in &events[..count] {
                match event.data.u64() {
                    WAKE => self.take_arrivals(),
                    token => self.attend(token),
                }
            }
            self.kill_overdue();
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.charges.values().filter_map(Charge::deadline).min()
    }

    fn take_arrivals(&mut self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.shared.wake, &mut count);
        let arrivals = std::mem::take(&mut *lock(&self.shared.arrivals));
        for charge in arrivals {
            if matches!(charge, Charge::Drain(_)) {
                if self.survivors >= MAX_SURVIVORS {
                    continue;
                }
                self.survivors += 1;
            }
            self.add(charge);
        }
    }

    fn add(&mut self, charge: Charge) {
        let token = self.next_token;
        self.next_token += 1;
        if let Some(fd) = charge.waits_for() {
            let added = epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), charge.events());
            // Only a system without memory refuses; what is dropped here is closed.
            if added.is_err() {
                return;
            }
        }
        self.charges.insert(token, charge);
    }

    /// Does what the event asks for; drops the charge, and with it the descriptor, when there is no more to come.
    fn attend(&mut self, token: u64) {
        let Some(charge) = self.charges.get_mut(&token) else { return };
        let is_over = match charge {
            Charge::Drain(pipe) => read(pipe, &mut self.buffer) == Some(0),
            Charge::JobOutput(job, stream) => job.read_output(*stream, &mut self.buffer),
            Charge::JobEnd(job) => job.note_end(&mut self.buffer),
            Charge::Collect(child) => collect(child).is_some(),
            Charge::Feed(input, bytes, written) => write(input, bytes, written),
            Charge::HangUp(..) | Charge::JobDeadline(..) => false,
        };
        if is_over {
            let charge = self.charges.remove(&token);
            if matches!(charge, Some(Charge::Drain(_))) {
                self.survivors -= 1;
            }
            if let Some(fd) = charge.as_ref().and_then(Charge::waits_for) {
                // A descriptor shared with someone else (a job's) is not gone by being dropped here.
                let _ = epoll::delete(&self.epoll, fd);
            }
        }
    }

    fn kill_overdue(&mut self) {
        let now = Instant::now();
        let overdue =
            self.charges.extract_if(|_, charge| charge.deadline().is_some_and(|deadline| deadline <= now));
        for charge in overdue.map(|(_, charge)| charge).collect::<Vec<_>>() {
            match charge {
                Charge::HangUp(child, _) => {
                    kill_group(&child);
                    self.add(Charge::Collect(child));
                }
                Charge::JobDeadline(job, _) => job.expire(),
                _ => {}
            }
        }
    }
}

impl Charge {
    fn waits_for(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Drain(pipe) => Some(pipe.as_fd()),
            Self::JobOutput(job, stream) => job.pipe(*stream).map(AsFd::as_fd),
            Self::Feed(input, ..) => Some(input.as_fd()),
            Self::JobEnd(job) => Some(job.child().pidfd.as_fd()),
            Self::Collect(child) => Some(child.pidfd.as_fd()),
            Self::HangUp(..) | Self::JobDeadline(..) => None,
        }
    }

    fn events(&self) -> epoll::EventFlags {
        if matches!(self, Self::Feed(..)) { epoll::EventFlags::OUT } else { epoll::EventFlags::IN }
    }

    fn deadline(&self) -> Option<Instant> {
        match self {
            Self::HangUp(_, deadline) | Self::JobDeadline(_, deadline) => Some(*deadline),
            _ => None,
        }
    }
}

/// Reads once: how many bytes, 0 at the end, `None` if there is nothing now.
fn read(pipe: &OwnedFd, buffer: &mut [u8]) -> Option<usize> {
    match rustix::io::read(pipe, buffer) {
        Ok(count) => Some(count),
        Err(Errno::AGAIN | Errno::INTR) => None,
        Err(_) => Some(0),
    }
}

/// Writes what can be written now; returns whether there is no more to do.
fn write(input: &OwnedFd, bytes: &[u8], written: &mut usize) -> bool {
    match rustix::io::write(input, &bytes[*written..]) {
        Ok(count) => {
            *written += count;
            *written == bytes.len()
        }
        Err(Errno::AGAIN | Errno::INTR) => false,
        // The command reads no more.
        Err(_) => true,
    }
}
