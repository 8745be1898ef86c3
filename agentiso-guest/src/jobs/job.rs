//! One background job: its process, the newest of its output, and who waits for news of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use agentiso_guest::limits::{JOB_OUTPUT_BYTES, MAX_PAYLOAD_SIZE};
use agentiso_guest::message::{ErrorCode, Exit, Reply};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, ioctl_fionread};
use rustix::termios::tcgetpgrp;

use super::Kept;
use crate::agent::lock;
use crate::exec::{SIGKILL, TERMINAL_REST, collect};
use crate::failure::Failure;
use crate::serve::Connection;
use crate::sys::signal::signal_group;
use crate::sys::spawn::Spawned;

const _: () = assert!(JOB_OUTPUT_BYTES <= MAX_PAYLOAD_SIZE as usize, "what is kept fits into one payload");

/// Most bytes of the command's text in a description.
const COMMAND_BYTES: usize = 256;

/// Which of a job's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Its place in an array of both.
    pub(crate) fn index(self) -> usize {
        match self {
            Self::Stdout => 0,
            Self::Stderr => 1,
        }
    }

    /// Queues a piece of the stream.
    pub(crate) fn send(self, connection: &mut Connection, bytes: &[u8]) {
        let payload = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let reply = match self {
            Self::Stdout => Reply::Stdout { payload },
            Self::Stderr => Reply::Stderr { payload },
        };
        connection.send_with(&reply, bytes);
    }
}

#[derive(Debug, Default)]
struct State {
    streams: [Kept; 2],
    exit: Option<Exit>,
    /// Its time was over before it ended.
    timed_out: bool,
    watchers: Vec<Weak<OwnedFd>>,
}

/// A job. Shared by the table, the keeper and the sessions that watch it.
#[derive(Debug)]
pub(crate) struct Job {
    id: u64,
    child: Spawned,
    /// A terminal is both of them, and stands as the first.
    pipes: [Option<OwnedFd>; 2],
    is_terminal: bool,
    command: String,
    state: Mutex<State>,
}

/// A command that began with a connection, and goes on without it.
#[derive(Debug)]
pub(crate) struct Orphan {
    pub(crate) child: Spawned,
    /// Our ends of its output pipes, or the terminal and nothing.
    pub(crate) pipes: [Option<OwnedFd>; 2],
    pub(crate) is_terminal: bool,
    pub(crate) argv: Vec<String>,
    /// What it printed until now.
    pub(crate) streams: [Kept; 2],
    /// Set if it has ended and been collected.
    pub(crate) exit: Option<Exit>,
    /// When its process group is to be killed.
    pub(crate) deadline: Option<Instant>,
    /// Whether that has happened.
    pub(crate) timed_out: bool,
    /// Input that it has not read yet, and where to write it.
    pub(crate) input: Option<(OwnedFd, Vec<u8>)>,
}

impl Job {
    pub(super) fn new(id: u64, child: Spawned, pipes: [OwnedFd; 2], argv: &[String]) -> Self {
        let pipes = pipes.map(Some);
        Self { id, child, pipes, is_terminal: false, command: describe(argv), state: Mutex::default() }
    }

    /// A job of a command that runs already.
    pub(super) fn adopt(id: u64, orphan: Orphan) -> Self {
        let Orphan { child, pipes, is_terminal, argv, streams, exit, timed_out, .. } = orphan;
        let state = Mutex::new(State { streams, exit: None, timed_out, watchers: Vec::new() });
        let job = Self { id, child, pipes, is_terminal, command: describe(&argv), state };
        if let Some(exit) = exit {
            job.end(&mut lock(&job.state), exit, &mut [0; 4096]);
        }
        job
    }

    pub(crate) fn child(&self) -> &Spawned {
        &self.child
    }

    pub(super) fn is_running(&self) -> bool {
        lock(&self.state).exit.is_none()
    }

    /// How it ended, once everything it printed before its end is kept.
    pub(super) fn completed(&self) -> Option<Exit> {
        lock(&self.state).exit
    }

    pub(super) fn is_complete(&self) -> bool {
        self.completed().is_some()
    }

    pub(super) fn describe(&self) -> agentiso_guest::message::Job {
        self.describe_state(&lock(&self.state))
    }

    fn describe_state(&self, state: &State) -> agentiso_guest::message::Job {
        agentiso_guest::message::Job {
            id: self.id,
            pid: self.child.pid.as_raw_nonzero().get().unsigned_abs(),
            command: self.command.clone(),
            exit: state.exit,
            stdout_bytes: state.streams[0].total(),
            stderr_bytes: state.streams[1].total(),
        }
    }

    /// Its description and what is kept of both streams, all of one moment.
    pub(super) fn snapshot(&self) -> (agentiso_guest::message::Job, Vec<u8>, Vec<u8>) {
        let state = lock(&self.state);
        let [stdout, stderr] = &state.streams;
        (self.describe_state(&state), stdout.all(), stderr.all())
    }

    pub(super) fn output_after(&self, stream: Stream, seen: &mut u64) -> Option<Vec<u8>> {
        lock(&self.state).streams[stream.index()].after(seen)
    }

    pub(super) fn has_output_after(&self, stream: Stream, seen: u64) -> bool {
        lock(&self.state).streams[stream.index()].total() > seen
    }

    /// Sends a signal to the process group, unless the job has ended: its number may be another's by then.
    pub(super) fn signal(&self, signal: u8) -> Result<(), Failure> {
        // The job is collected under this lock.
        let state = lock(&self.state);
        if state.exit.is_some() {
            return Err(Failure::new(ErrorCode::Conflict, format!("job {} has ended already", self.id)));
        }
        signal_group(self.child.pid, signal);
        Ok(())
    }

    /// Its time is over: kills its process group, and who is in front on its terminal.
    pub(crate) fn expire(&self) {
        let mut state = lock(&self.state);
        if state.exit.is_some() {
            return;
        }
        state.timed_out = true;
        if let Some(terminal) = self.pipe(Stream::Stdout).filter(|_| self.is_terminal)
            && let Ok(foreground) = tcgetpgrp(terminal)
        {
            signal_group(foreground, SIGKILL);
        }
        signal_group(self.child.pid, SIGKILL);
    }

    /// Our end of an output pipe, if it has one.
    pub(crate) fn pipe(&self, stream: Stream) -> Option<&OwnedFd> {
        self.pipes[stream.index()].as_ref()
    }

    /// Reads at most `buffer`'s length from an output pipe and keeps it; returns whether the pipe has ended.
    pub(crate) fn read_output(&self, stream: Stream, buffer: &mut [u8]) -> bool {
        let Some(pipe) = self.pipe(stream) else { return true };
        let mut state = lock(&self.state);
        match rustix::io::read(pipe, &mut *buffer) {
            Ok(0) => true,
            Ok(count) => {
                state.streams[stream.index()].append(&buffer[..count]);
                notify(&mut state);
                false
            }
            Err(Errno::AGAIN | Errno::INTR) => false,
            Err(_) => true,
        }
    }

    /// Collects the job if it has ended, and keeps what it printed before; returns whether it has ended.
    pub(crate) fn note_end(&self, buffer: &mut [u8]) -> bool {
        let mut state = lock(&self.state);
        if state.exit.is_some() {
            return true;
        }
        let Some(exit) = collect(&self.child) else { return false };
        self.end(&mut state, exit, buffer);
        true
    }

    fn end(&self, state: &mut State, exit: Exit, buffer: &mut [u8]) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let Some(pipe) = self.pipe(stream) else { continue };
            // What is in the pipe now; children that outlive the job may print on and on.
            let mut rest = if self.is_terminal {
                TERMINAL_REST
            } else {
                ioctl_fionread(pipe).ok().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0)
            };
            while let most @ 1.. = rest.min(buffer.len())
                && let Ok(count @ 1..) = rustix::io::read(pipe, &mut buffer[..most])
            {
                state.streams[stream.index()].append(&buffer[..count]);
                rest -= count;
            }
        }
        state.exit = Some(if state.timed_out { Exit::TimedOut } else { exit });
        notify(state);
    }

    /// Asks for news: the descriptor becomes readable with each piece of output, and at the end.
    pub(super) fn watch(&self) -> Result<Watch, Failure> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Failure::system(format!("watching job {}", self.id), error))?;
        let event = Arc::new(event);
        lock(&self.state).watchers.push(Arc::downgrade(&event));
        Ok(Watch(event))
    }
}

/// A command in words for people.
fn describe(argv: &[String]) -> String {
    let mut command = argv.join(" ");
    let mut end = COMMAND_BYTES.min(command.len());
    while !command.is_char_boundary(end) {
        end -= 1;
    }
    command.truncate(end);
    command
}

fn notify(state: &mut State) {
    state.watchers.retain(|watcher| {
        let Some(event) = watcher.upgrade() else { return false };
        // Adding one to an eventfd fails only when it is readable already.
        let _ = rustix::io::write(&*event, &1_u64.to_ne_bytes());
        true
    });
}

/// Readable when a job has news.
#[derive(Debug)]
pub(super) struct Watch(Arc<OwnedFd>);

impl Watch {
    /// Waits for the next news from now on.
    pub(super) fn clear(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&*self.0, &mut count);
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
