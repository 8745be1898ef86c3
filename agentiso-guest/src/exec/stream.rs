//! The life of a streamed command: one loop over connection, pipes and process that never blocks on any of them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use agentiso_guest::frame::Frame;
use agentiso_guest::message::{Exit, Input};
use rustix::event::PollFlags;
use rustix::io::{Errno, ioctl_fionread};
use rustix::termios::tcgetpgrp;

use super::{SIGKILL, collect, kill_group, resize};
use crate::jobs::{Kept, Orphan, Stream};
use crate::serve::{Connection, Lost, OUTPUT_LIMIT};
use crate::sys::signal::signal_group;
use crate::sys::spawn::Spawned;

/// Bytes read from a pipe at once.
const READ_BYTES: usize = 32 * 1024;
/// Input waiting for the command above which no more is taken from the connection, in bytes.
const INPUT_LIMIT: usize = 256 * 1024;
/// Most bytes taken from a terminal after its command ended, in bytes; more than a terminal ever holds.
pub(crate) const TERMINAL_REST: usize = 256 * 1024;
/// How long the news that a command has started may wait for what comes next, to be sent together: a short command is then
/// answered at once.
const OPENING_HOLD: Duration = Duration::from_millis(5);
/// What ends the input of a terminal.
const END_OF_TRANSMISSION: u8 = 4;

/// Our end of an output pipe, or of a terminal.
#[derive(Debug)]
pub(super) struct Output {
    fd: OwnedFd,
    stream: Stream,
    /// Bytes still to be read after the command ended.
    rest: Option<usize>,
}

impl Output {
    pub(super) fn new(fd: OwnedFd, stream: Stream) -> Self {
        Self { fd, stream, rest: None }
    }
}

/// The standard streams of a running command.
#[derive(Debug)]
pub(super) struct Streams {
    /// Where input goes; a terminal's is its output descriptor.
    input: Option<OwnedFd>,
    waiting: Vec<u8>,
    input_ended: bool,
    outputs: [Option<Output>; 2],
    is_terminal: bool,
    takes_input: bool,
    buffer: Vec<u8>,
    /// The newest of what was printed, should the command have to go on without its connection.
    kept: [Kept; 2],
    exit: Option<Exit>,
    timed_out: bool,
}

impl Streams {
    pub(super) fn of_pipes(input: Option<OwnedFd>, outputs: [Option<Output>; 2]) -> Self {
        Self {
            takes_input: input.is_some(),
            input,
            waiting: Vec::new(),
            input_ended: false,
            outputs,
            is_terminal: false,
            buffer: Vec::new(),
            kept: Default::default(),
            exit: None,
            timed_out: false,
        }
    }

    pub(super) fn of_terminal(master: OwnedFd, takes_input: bool) -> Self {
        let output = Output::new(master, Stream::Stdout);
        Self { is_terminal: true, takes_input, ..Self::of_pipes(None, [Some(output), None]) }
    }

    /// The pipes that children of the command still have open; a terminal is closed instead.
    pub(super) fn into_survivors(self) -> impl Iterator<Item = OwnedFd> {
        let outputs = if self.is_terminal { [None, None] } else { self.outputs };
        // What the command printed has been read. A byte that comes now is a child's, and not kept.
        let has_writer = |pipe: &OwnedFd| !matches!(rustix::io::read(pipe, &mut [0; 1][..]), Ok(0));
        outputs.into_iter().flatten().map(|output| output.fd).filter(has_writer)
    }

    /// The command as it goes on without its connection. What it was sent it still gets, and then the end of its input;
    /// a terminal stays open.
    pub(super) fn into_orphan(
        mut self,
        child: Spawned,
        argv: &[String],
        deadline: Option<Instant>,
    ) -> Orphan {
        let input = if self.waiting.is_empty() {
            None
        } else {
            // A terminal that cannot be opened twice loses what was typed ahead, no more.
            self.input_fd().and_then(|fd| fd.try_clone_to_owned().ok())
        };
        let waiting = std::mem::take(&mut self.waiting);
        Orphan {
            child,
            pipes: self.outputs.map(|output| output.map(|output| output.fd)),
            is_terminal: self.is_terminal,
            argv: argv.to_vec(),
            streams: self.kept,
            exit: self.exit,
            deadline: deadline.filter(|_| self.exit.is_none() && !self.timed_out),
            timed_out: self.timed_out,
            input: input.map(|fd| (fd, waiting)),
        }
    }

    /// Streams until the command has ended and what it had printed by then is queued. At the deadline its process group
    /// is killed.
    ///
    /// # Errors
    /// The connection is lost.
    pub(super) fn run(
        &mut self,
        connection: &mut Connection,
        child: &Spawned,
        deadline: Option<Instant>,
    ) -> Result<Exit, Lost> {
        connection.hold(OPENING_HOLD);
        loop {
            while self.waiting.len() < INPUT_LIMIT
                && let Some(frame) = connection.next_message::<Input>()?
            {
                self.take_input(frame, self.exit.is_none().then_some(child));
            }
            self.write_input();
            if let Some(exit) = self.exit
                && self.outputs.iter().flatten().all(|output| output.rest == Some(0))
            {
                return Ok(if self.timed_out { Exit::TimedOut } else { exit });
            }
            let want_input = self.waiting.len() < INPUT_LIMIT;
            let want_output = connection.pending() < OUTPUT_LIMIT;
            let others = [
                self.output_fd(0, want_output),
                self.output_fd(1, want_output),
                (!self.waiting.is_empty()).then(|| self.input_fd()).flatten().map(|fd| (fd, PollFlags::OUT)),
                self.exit.is_none().then(|| (child.pidfd.as_fd(), PollFlags::IN)),
            ];
            let until = deadline.filter(|_| self.exit.is_none() && !self.timed_out);
            let [stdout, stderr, _, ended] = connection.wait(want_input, others, until)?;
            if self.exit.is_none()
                && !self.timed_out
                && deadline.is_some_and(|deadline| deadline <= Instant::now())
            {
                self.timed_out = true;
                self.kill(child);
            }
            if !ended.is_empty() {
                self.exit = collect(child);
                if self.exit.is_some() {
                    self.note_rest();
                }
            }
            for (index, ready) in [stdout, stderr].into_iter().enumerate() {
                if !ready.is_empty() || (self.exit.is_some() && want_output) {
                    self.read_output(index, connection);
                }
            }
        }
    }

    fn output_fd(&self, index: usize, wanted: bool) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let output = self.outputs[index].as_ref().filter(|output| wanted && output.rest != Some(0))?;
        Some((output.fd.as_fd(), PollFlags::IN))
    }

    fn input_fd(&self) -> Option<BorrowedFd<'_>> {
        if self.is_terminal {
            return self.outputs[0].as_ref().map(|output| output.fd.as_fd());
        }
        self.input.as_ref().map(AsFd::as_fd)
    }

    fn take_input(&mut self, frame: Frame<Input>, running: Option<&Spawned>) {
        match frame.message {
            Input::Stdin { .. } if self.takes_input && !self.input_ended && self.input_fd().is_some() => {
                self.waiting.extend_from_slice(&frame.payload);
            }
            Input::StdinEnd if self.takes_input && !self.input_ended => {
                if self.is_terminal {
                    self.waiting.push(END_OF_TRANSMISSION);
                }
                self.input_ended = true;
            }
            Input::Resize { size } if self.is_terminal => {
                if let Some(terminal) = self.input_fd() {
                    // A terminal that is gone has no size.
                    let _ = resize(terminal, size);
                }
            }
            Input::Signal { signal: signal @ 1..=64 } => {
                // Once the command is collected, the number of its process group may become another's.
                if let Some(child) = running {
                    signal_group(child.pid, signal);
                }
            }
            // Input for a stream that the command does not have, or has closed.
            _ => {}
        }
    }

    fn write_input(&mut self) {
        let mut written = 0;
        while let Some(fd) = self.input_fd()
            && written < self.waiting.len()
        {
            match rustix::io::write(fd, &self.waiting[written..]) {
                Ok(count) => written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    // The command reads no more.
                    self.input = None;
                    written = self.waiting.len();
                }
            }
        }
        self.waiting.drain(..written);
        if self.waiting.is_empty() && self.input_ended {
            self.input = None;
        }
    }

    fn kill(&self, child: &Spawned) {
        if let Some(terminal) = self.input_fd().filter(|_| self.is_terminal)
            && let Ok(foreground) = tcgetpgrp(terminal)
        {
            signal_group(foreground, SIGKILL);
        }
        kill_group(child);
    }

    /// The command has ended: what it printed is in its pipes, what comes later is not its own.
    fn note_rest(&mut self) {
        for output in self.outputs.iter_mut().flatten() {
            output.rest = Some(if self.is_terminal {
                TERMINAL_REST
            } else {
                ioctl_fionread(&output.fd).ok().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0)
            });
        }
        self.waiting.clear();
        self.input = None;
    }

    fn read_output(&mut self, index: usize, connection: &mut Connection) {
        let Some(output) = self.outputs[index].as_mut() else { return };
        self.buffer.resize(READ_BYTES, 0);
        let most = output.rest.unwrap_or(READ_BYTES).min(READ_BYTES);
        if most == 0 {
            return;
        }
        match rustix::io::read(&output.fd, &mut self.buffer[..most]) {
            Ok(count @ 1..) => {
                output.stream.send(connection, &self.buffer[..count]);
                connection.let_go();
                self.kept[output.stream.index()].append(&self.buffer[..count]);
                if let Some(rest) = &mut output.rest {
                    *rest -= count;
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                if output.rest.is_some() {
                    output.rest = Some(0);
                }
            }
            // End of the pipe; a terminal that nobody has open any more is an I/O error.
            Ok(_) | Err(_) => self.outputs[index] = None,
        }
    }
}
