//! A command in a guest, joined to our standard streams, our signals and our terminal.

use std::{io, time::Duration};

use agentiso_core::channel::client::{
    DEFAULT_MAX_OUTPUT_BYTES, ExecEvent, ExecEvents, ExecInput, ExecSpec, Exit, GuestClient, GuestError,
};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

use crate::{
    error::CliError,
    exit::SIGHUP,
    signals::Signals,
    stdio::{self, StdinChunks},
    terminal::{self, RawMode},
};

/// Signals and sizes that wait to be sent while the command does not take its input. One more is dropped: it would
/// say nothing new.
const WAITING_CONTROLS: usize = 16;

/// Runs a command to its end.
///
/// The first signal that asks us to end goes to the command; the next one, and the loss of our terminal, ends the
/// connection, and with it the command.
pub(crate) async fn run(
    guest: &GuestClient,
    spec: ExecSpec,
    signals: &mut Signals,
    output: &mut impl Output,
) -> Result<Exit, CliError> {
    let (is_tty, timeout, wants_stdin) = (spec.tty.is_some(), spec.timeout, spec.stdin);
    let stream = signals.unless(async { Ok(guest.exec(spec).await?) }).await?;
    let (input, mut events) = stream.split();
    let _raw = if is_tty && wants_stdin {
        RawMode::enter().map_err(|source| CliError::local("could not set up the terminal", source))?
    } else {
        None
    };
    let resized = if is_tty {
        let listen = signal(SignalKind::window_change());
        Some(listen.map_err(|source| CliError::local("could not listen for signals", source))?)
    } else {
        None
    };
    let (controls, waiting) = mpsc::channel(WAITING_CONTROLS);
    let stdin = wants_stdin.then(stdio::stdin_chunks);
    tokio::select! {
        exit = receive(&mut events, timeout, output) => exit,
        interrupted = pass_on(signals, resized, controls) => Err(interrupted),
        never = send(input, stdin, waiting) => match never {},
    }
}

/// Where a command's output goes.
pub(crate) trait Output {
    /// Takes bytes of its standard output.
    async fn stdout(&mut self, bytes: Vec<u8>) -> Result<(), CliError>;
    /// Takes bytes of its standard error.
    async fn stderr(&mut self, bytes: Vec<u8>) -> Result<(), CliError>;
}

async fn receive(
    events: &mut ExecEvents,
    timeout: Option<Duration>,
    output: &mut impl Output,
) -> Result<Exit, CliError> {
    let mut is_started = false;
    loop {
        match events.next().await {
            Ok(Some(ExecEvent::Started { .. })) => is_started = true,
            Ok(Some(ExecEvent::Stdout(bytes))) => output.stdout(bytes).await?,
            Ok(Some(ExecEvent::Stderr(bytes))) => output.stderr(bytes).await?,
            Ok(Some(ExecEvent::Exited(exit))) => return Ok(exit),
            // The guest did not say itself that the time was over.
            Err(GuestError::Timeout { .. }) if is_started && timeout.is_some() => return Ok(Exit::TimedOut),
            Err(error) => return Err(error.into()),
            // Only after `Exited`, which ends the loop.
            Ok(None) => return Ok(Exit::TimedOut),
        }
    }
}

enum Control {
    Signal(u8),
    Resize,
}

/// Hands the first signal on. Returns when it is time to give up.
async fn pass_on(
    signals: &mut Signals,
    mut resized: Option<Signal>,
    controls: mpsc::Sender<Control>,
) -> CliError {
    let mut is_second = false;
    loop {
        tokio::select! {
            signal = signals.next() => {
                if is_second || signal == SIGHUP {
                    return CliError::Interrupted { signal };
                }
                is_second = true;
                let _ = controls.try_send(Control::Signal(signal));
            }
            () = size_changes(&mut resized) => {
                let _ = controls.try_send(Control::Resize);
            }
        }
    }
}

async fn size_changes(resized: &mut Option<Signal>) {
    let change = match resized {
        Some(resized) => resized.recv().await,
        None => None,
    };
    if change.is_none() {
        std::future::pending().await
    }
}

/// Sends signals, sizes and standard input, as long as the command takes them: how it ends is not our business.
async fn send(
    mut input: ExecInput,
    mut stdin: Option<StdinChunks>,
    mut controls: mpsc::Receiver<Control>,
) -> std::convert::Infallible {
    loop {
        tokio::select! {
            biased;
            Some(control) = controls.recv() => {
                let sent = match control {
                    Control::Signal(signal) => input.signal(signal).await,
                    Control::Resize => input.resize(terminal::size()).await,
                };
                if let Err(error) = sent {
                    tracing::debug!(%error, "the command takes no more signals");
                }
            }
            chunk = next_chunk(&mut stdin) => {
                let sent = match &chunk {
                    Some(bytes) => input.write_all(bytes).await,
                    None => input.shutdown().await,
                };
                if chunk.is_none() || sent.is_err() {
                    stdin = None;
                }
            }
        }
    }
}

/// The next bytes of standard input, `None` at its end; never, if there is none to send.
async fn next_chunk(stdin: &mut Option<StdinChunks>) -> Option<Vec<u8>> {
    match stdin {
        Some(chunks) => match chunks.recv().await {
            Some(Ok(chunk)) => Some(chunk),
            Some(Err(error)) => {
                stdio::say(&format!("agentiso: could not read standard input: {error}"));
                None
            }
            None => None,
        },
        None => std::future::pending().await,
    }
}

/// Our own standard output and standard error.
#[derive(Debug)]
pub(crate) struct Streams {
    stdout: tokio::io::Stdout,
    stderr: tokio::io::Stderr,
}

impl Streams {
    pub(crate) fn new() -> Self {
        Self { stdout: tokio::io::stdout(), stderr: tokio::io::stderr() }
    }
}

impl Output for Streams {
    async fn stdout(&mut self, bytes: Vec<u8>) -> Result<(), CliError> {
        write(&mut self.stdout, &bytes).await.map_err(CliError::stdout)
    }

    async fn stderr(&mut self, bytes: Vec<u8>) -> Result<(), CliError> {
        write(&mut self.stderr, &bytes).await.map_err(|source| match source.kind() {
            io::ErrorKind::BrokenPipe => CliError::BrokenPipe,
            _ => CliError::local("could not write to standard error", source),
        })
    }
}

async fn write(out: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes).await?;
    out.flush().await
}

/// Keeps the beginning of what a command prints, for `--json`.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    stdout: Capture,
    stderr: Capture,
}

#[derive(Debug, Default)]
struct Capture {
    kept: Vec<u8>,
    total: u64,
}

impl Collected {
    /// Standard output and standard error as text, with a note at the end of what is not complete.
    pub(crate) fn into_text(self) -> (String, String) {
        (self.stdout.into_text(), self.stderr.into_text())
    }
}

impl Output for Collected {
    async fn stdout(&mut self, bytes: Vec<u8>) -> Result<(), CliError> {
        self.stdout.take(&bytes);
        Ok(())
    }

    async fn stderr(&mut self, bytes: Vec<u8>) -> Result<(), CliError> {
        self.stderr.take(&bytes);
        Ok(())
    }
}

impl Capture {
    fn take(&mut self, bytes: &[u8]) {
        self.total = self.total.saturating_add(bytes.len() as u64);
        let room = DEFAULT_MAX_OUTPUT_BYTES - self.kept.len();
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn into_text(self) -> String {
        let mut text = String::from_utf8_lossy(&self.kept).into_owned();
        let shown = self.kept.len();
        if self.total > shown as u64 {
            text.push_str(&format!("[TRUNCATED: {} bytes total, showing first {shown} bytes]", self.total));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capture_keeps_the_beginning_and_counts_the_rest() {
        let mut exact = Capture::default();
        exact.take(&vec![b'a'; DEFAULT_MAX_OUTPUT_BYTES]);
        let mut longer = Capture::default();
        longer.take(&vec![b'a'; DEFAULT_MAX_OUTPUT_BYTES - 1]);
        longer.take(b"bc");

        assert_eq!(exact.into_text().len(), DEFAULT_MAX_OUTPUT_BYTES);
        assert!(
            longer.into_text().ends_with("ab[TRUNCATED: 262145 bytes total, showing first 262144 bytes]")
        );
    }
}
