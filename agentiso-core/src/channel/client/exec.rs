use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use agentiso_guest::{
    frame::Frame,
    message::{Command, Exit, Input, Reply, Request, TtySize},
};
use tokio::{
    io::AsyncWrite,
    time::{Instant, timeout_at},
};

use super::{
    EXEC_GRACE, GuestClient, SHORT_REPLY,
    error::{Call, GuestError},
    millis,
    secret::Guarded,
    session::{InputWriter, ReplyReader, Session, kind, payload_length},
};

/// Bytes of standard input in one message.
const STDIN_CHUNK: usize = 64 * 1024;

/// A command to run, and how.
#[derive(Clone, Debug, Default)]
pub struct ExecSpec {
    /// What to run.
    pub command: Command,
    /// Whether standard input will be written; otherwise the command reads from /dev/null.
    pub stdin: bool,
    /// A terminal of this size instead of pipes; all output is then standard output.
    pub tty: Option<TtySize>,
    /// The process group is killed after this long (guest time).
    pub timeout: Option<Duration>,
}

impl ExecSpec {
    /// A text that `/bin/sh -c` runs.
    pub fn shell(text: impl Into<String>) -> Self {
        Self::program(["/bin/sh".to_owned(), "-c".to_owned(), text.into()])
    }

    /// A program and its arguments, without a shell.
    pub fn program<T: Into<String>>(argv: impl IntoIterator<Item = T>) -> Self {
        let argv = argv.into_iter().map(Into::into).collect();
        Self { command: Command { argv, ..Command::default() }, ..Self::default() }
    }

    /// One more environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.command.env.insert(name.into(), value.into());
        self
    }

    /// The folder to start in, an absolute path.
    #[must_use]
    pub fn workdir(mut self, path: impl Into<String>) -> Self {
        self.command.workdir = Some(path.into());
        self
    }

    /// Standard input will be written.
    #[must_use]
    pub fn stdin(mut self) -> Self {
        self.stdin = true;
        self
    }

    /// A terminal instead of pipes.
    #[must_use]
    pub fn tty(mut self, size: TtySize) -> Self {
        self.tty = Some(size);
        self
    }

    /// How long it may take.
    #[must_use]
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }
}

/// What a running command does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEvent {
    /// It runs.
    Started {
        /// Its process id in the guest.
        pid: u32,
    },
    /// It wrote to standard output; at most 1 MiB.
    Stdout(Vec<u8>),
    /// It wrote to standard error; at most 1 MiB.
    Stderr(Vec<u8>),
    /// It ended. The last event.
    Exited(Exit),
}

/// The exit status that a shell reports for it: its own, 128 + the signal's number, or 124 if its time was over.
pub fn exit_status(exit: Exit) -> u8 {
    match exit {
        Exit::Code(code) => code,
        Exit::Signal(signal) => 128_u8.saturating_add(signal),
        Exit::TimedOut => 124,
    }
}

impl GuestClient {
    /// Runs a command and streams what it does. It is sent to the guest at most once.
    ///
    /// Dropping the stream closes the connection: the command's process group gets SIGHUP, then SIGKILL.
    ///
    /// # Errors
    /// See [`GuestError`]. That a program does not exist is told by the stream.
    pub async fn exec(&self, spec: ExecSpec) -> Result<ExecStream, GuestError> {
        let ExecSpec { command, stdin, tty, timeout } = spec;
        let request = Guarded(Request::Exec { command, stdin, tty, timeout_ms: timeout.map(millis) });
        let session = self.open("run a command", &request.0, SHORT_REPLY).await?;
        Ok(ExecStream::new(session, timeout.map(|timeout| timeout + EXEC_GRACE), stdin))
    }

    /// Streams a running background job as [`GuestClient::exec`] does, beginning with the output that the agent kept.
    /// Dropping the stream leaves the job alone.
    ///
    /// # Errors
    /// See [`GuestError`]. That there is no such job is told by the stream.
    pub async fn job_attach(&self, job: u64) -> Result<ExecStream, GuestError> {
        let session =
            self.open("attach to a background job", &Request::JobAttach { job }, SHORT_REPLY).await?;
        Ok(ExecStream::new(session, None, false))
    }
}

/// A running command. Dropping it closes the connection.
pub struct ExecStream {
    input: ExecInput,
    events: ExecEvents,
}

impl ExecStream {
    fn new(session: Session, limit: Option<Duration>, stdin: bool) -> Self {
        let Session { replies, inputs, .. } = session;
        let input = ExecInput { call: replies.call(), inputs, accepts_stdin: stdin };
        let deadline = limit.map(|limit| (Instant::now() + limit, limit));
        Self { input, events: ExecEvents { replies, deadline, stage: Stage::Begun } }
    }

    /// The next event; `None` after [`ExecEvent::Exited`]. See [`ExecEvents::next`].
    ///
    /// # Errors
    /// See [`ExecEvents::next`].
    pub async fn next(&mut self) -> Result<Option<ExecEvent>, GuestError> {
        self.events.next().await
    }

    /// What the command can be sent.
    pub fn input(&mut self) -> &mut ExecInput {
        &mut self.input
    }

    /// Both directions apart, to be used at once. The connection is closed when [`ExecEvents`] is dropped.
    pub fn split(self) -> (ExecInput, ExecEvents) {
        (self.input, self.events)
    }
}

impl std::fmt::Debug for ExecStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecStream").field("events", &self.events).finish_non_exhaustive()
    }
}

/// What a running command does, as it happens. Dropping it closes the connection.
///
/// Holds one message at a time. What is not taken stays in the guest, whose command then waits.
pub struct ExecEvents {
    replies: ReplyReader,
    /// When this host gives up, and the limit that led to it.
    deadline: Option<(Instant, Duration)>,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Begun,
    Started,
    Over,
}

impl ExecEvents {
    /// The next event; `None` after [`ExecEvent::Exited`], and after an error. Cancelled: no event is lost.
    ///
    /// # Errors
    /// See [`GuestError`]; a command with a timeout is given up 5 s after it. A program that does not exist or cannot
    /// run is [`GuestError::Refused`].
    pub async fn next(&mut self) -> Result<Option<ExecEvent>, GuestError> {
        if self.stage == Stage::Over {
            return Ok(None);
        }
        let call = self.replies.call();
        let frame = match self.deadline {
            None => self.replies.next().await,
            Some((at, limit)) => {
                timeout_at(at, self.replies.next()).await.unwrap_or(Err(call.timeout(limit)))
            }
        };
        let event = frame.and_then(|frame| self.event(call, frame));
        if matches!(event, Err(_) | Ok(ExecEvent::Exited(_))) {
            self.stage = Stage::Over;
        }
        if matches!(event, Ok(ExecEvent::Exited(_))) {
            self.replies.release();
        }
        event.map(Some)
    }

    fn event(&mut self, call: Call, frame: Frame<Reply>) -> Result<ExecEvent, GuestError> {
        match frame.message {
            Reply::Started { pid } if self.stage == Stage::Begun => {
                self.stage = Stage::Started;
                Ok(ExecEvent::Started { pid })
            }
            Reply::Stdout { .. } if !frame.payload.is_empty() => Ok(ExecEvent::Stdout(frame.payload)),
            Reply::Stderr { .. } if !frame.payload.is_empty() => Ok(ExecEvent::Stderr(frame.payload)),
            Reply::Exited { exit } => Ok(ExecEvent::Exited(exit)),
            other => Err(call.unexpected(kind(&other))),
        }
    }
}

impl std::fmt::Debug for ExecEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecEvents").field("stage", &self.stage).finish_non_exhaustive()
    }
}

/// What a running command can be sent: standard input (as [`AsyncWrite`]), signals, another terminal size.
///
/// Everything goes one way and in order. A command that does not read its input holds up all that comes behind it;
/// a call that is cancelled while it waits has sent all or nothing. Dropping this sends nothing; the end of the
/// input is sent by `shutdown()`.
pub struct ExecInput {
    call: Call,
    inputs: InputWriter,
    accepts_stdin: bool,
}

impl std::fmt::Debug for ExecInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecInput").field("accepts_stdin", &self.accepts_stdin).finish_non_exhaustive()
    }
}

impl ExecInput {
    /// Sends a signal (1-64) to the command's process group.
    ///
    /// # Errors
    /// The connection is closed: the command has ended.
    pub async fn signal(&mut self, signal: u8) -> Result<(), GuestError> {
        self.inputs.send(&Input::Signal { signal }, &[]).await
    }

    /// Tells the command's terminal its new size.
    ///
    /// # Errors
    /// The connection is closed: the command has ended.
    pub async fn resize(&mut self, size: TtySize) -> Result<(), GuestError> {
        self.inputs.send(&Input::Resize { size }, &[]).await
    }

    fn put(&mut self, input: &Input, payload: &[u8]) -> io::Result<()> {
        self.inputs.put(input, payload).map_err(io::Error::other)
    }
}

impl AsyncWrite for ExecInput {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !self.accepts_stdin {
            let text = format!("could not {}: its standard input was not asked for", self.call.operation);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, text)));
        }
        ready!(self.inputs.poll_drain(cx))?;
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let chunk = &bytes[..bytes.len().min(STDIN_CHUNK)];
        self.put(&Input::Stdin { payload: payload_length(chunk) }, chunk)?;
        // The chunk is taken. What of it cannot be written now is written by the next call.
        match self.inputs.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(chunk.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inputs.poll_drain(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.inputs.poll_drain(cx))?;
        if self.accepts_stdin {
            self.accepts_stdin = false;
            self.put(&Input::StdinEnd, &[])?;
        }
        self.inputs.poll_drain(cx)
    }
}
