//! One background job: its process, the newest of its output, and who waits for news of it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, Weak};

use agentiso_guest::limits::{JOB_OUTPUT_BYTES, MAX_PAYLOAD_SIZE};
use agentiso_guest::message::{ErrorCode, Exit, Reply};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{Errno, ioctl_fionread};

use crate::agent::lock;
use crate::exec::collect;
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

/// The newest bytes of a stream.
#[derive(Debug, Default)]
struct Kept {
    bytes: VecDeque<u8>,
    /// Bytes that ever came.
    total: u64,
}

impl Kept {
    fn append(&mut self, news: &[u8]) {
        self.total += news.len() as u64;
        let news = &news[news.len().saturating_sub(JOB_OUTPUT_BYTES)..];
        let excess = (self.bytes.len() + news.len()).saturating_sub(JOB_OUTPUT_BYTES);
        self.bytes.drain(..excess);
        self.bytes.extend(news);
    }

    /// Takes what came after the first `seen` bytes and is still kept, and moves `seen` to the end.
    fn after(&self, seen: &mut u64) -> Option<Vec<u8>> {
        let unseen = usize::try_from(self.total - *seen).unwrap_or(usize::MAX).min(self.bytes.len());
        *seen = self.total;
        (unseen > 0).then(|| self.bytes.range(self.bytes.len() - unseen..).copied().collect())
    }
}

#[derive(Debug, Default)]
struct State {
    streams: [Kept; 2],
    exit: Option<Exit>,
    watchers: Vec<Weak<OwnedFd>>,
}

/// A job. Shared by the table, the keeper and the sessions that watch it.
#[derive(Debug)]
pub(crate) struct Job {
    id: u64,
    child: Spawned,
    pipes: [OwnedFd; 2],
    command: String,
    state: Mutex<State>,
}

impl Job {
    pub(super) fn new(id: u64, child: Spawned, pipes: [OwnedFd; 2], argv: &[String]) -> Self {
        let mut command = argv.join(" ");
        let mut end = COMMAND_BYTES.min(command.len());
        while !command.is_char_boundary(end) {
            end -= 1;
        }
        command.truncate(end);
        Self { id, child, pipes, command, state: Mutex::default() }
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
            stdout_bytes: state.streams[0].total,
            stderr_bytes: state.streams[1].total,
        }
    }

    /// Its description and what is kept of both streams, all of one moment.
    pub(super) fn snapshot(&self) -> (agentiso_guest::message::Job, Vec<u8>, Vec<u8>) {
        let state = lock(&self.state);
        let [stdout, stderr] = &state.streams;
        (
            self.describe_state(&state),
            stdout.bytes.iter().copied().collect(),
            stderr.bytes.iter().copied().collect(),
        )
    }

    pub(super) fn output_after(&self, stream: Stream, seen: &mut u64) -> Option<Vec<u8>> {
        lock(&self.state).streams[stream.index()].after(seen)
    }

    pub(super) fn has_output_after(&self, stream: Stream, seen: u64) -> bool {
        lock(&self.state).streams[stream.index()].total > seen
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

    /// Our end of an output pipe.
    pub(crate) fn pipe(&self, stream: Stream) -> &OwnedFd {
        &self.pipes[stream.index()]
    }

    /// Reads at most `buffer`'s length from an output pipe and keeps it; returns whether the pipe has ended.
    pub(crate) fn read_output(&self, stream: Stream, buffer: &mut [u8]) -> bool {
        let mut state = lock(&self.state);
        match rustix::io::read(self.pipe(stream), &mut *buffer) {
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
        let Some(exit) = collect(&self.child) else { return false };
        for stream in [Stream::Stdout, Stream::Stderr] {
            // What is in the pipe now; children that outlive the job may print on and on.
            let mut rest =
                ioctl_fionread(self.pipe(stream)).ok().and_then(|bytes| usize::try_from(bytes).ok());
            while let Some(most @ 1..) = rest.map(|rest| rest.min(buffer.len()))
                && let Ok(count @ 1..) = rustix::io::read(self.pipe(stream), &mut buffer[..most])
            {
                state.streams[stream.index()].append(&buffer[..count]);
                rest = rest.map(|rest| rest - count);
            }
        }
        state.exit = Some(exit);
        notify(&mut state);
        true
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
