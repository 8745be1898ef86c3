use std::{borrow::Cow, time::Duration};

use agentiso_guest::message::Exit;
use tokio::io::AsyncWriteExt;

use super::{ExecEvent, ExecInput, ExecSpec, GuestClient, GuestError, exit_status};

/// How long a collected command may take unless its spec says otherwise.
pub const DEFAULT_EXEC_TIMEOUT: Duration = Duration::from_secs(120);

/// How much of each stream is collected unless asked otherwise, in bytes.
pub const DEFAULT_MAX_OUTPUT_BYTES: usize = 256 * 1024;

/// How to collect a command's output.
#[derive(Clone, Debug)]
pub struct CollectOptions {
    /// How much of each stream to keep, in bytes. The rest is read and counted.
    pub max_output_bytes: usize,
    /// The command's whole standard input; it reads from /dev/null if none.
    pub stdin: Option<Vec<u8>>,
}

impl Default for CollectOptions {
    fn default() -> Self {
        Self { max_output_bytes: DEFAULT_MAX_OUTPUT_BYTES, stdin: None }
    }
}

/// What a command printed and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// How it ended.
    pub exit: Exit,
    /// Its standard output; ends with `[TRUNCATED: N bytes total, showing first M bytes]` if it was longer than asked
    /// for.
    pub stdout: Vec<u8>,
    /// Its standard error, likewise.
    pub stderr: Vec<u8>,
    /// Bytes that it wrote to standard output.
    pub stdout_bytes: u64,
    /// Bytes that it wrote to standard error.
    pub stderr_bytes: u64,
}

impl ExecOutput {
    /// The exit status that a shell reports for it, see [`exit_status`].
    pub fn exit_code(&self) -> u8 {
        exit_status(self.exit)
    }

    /// Whether it ended with status 0.
    pub fn success(&self) -> bool {
        self.exit == Exit::Code(0)
    }

    /// Its standard output as text; bytes that are not UTF-8 become U+FFFD.
    pub fn stdout_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stdout)
    }

    /// Its standard error as text; bytes that are not UTF-8 become U+FFFD.
    pub fn stderr_text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.stderr)
    }
}

impl GuestClient {
    /// Runs a command to its end and collects what it prints; 120 s unless the spec has a timeout.
    ///
    /// A command whose time is over gives [`Exit::TimedOut`] and what it had printed, also if the guest did not say
    /// so itself within 5 s more.
    ///
    /// # Errors
    /// See [`GuestError`]. The output so far is then lost.
    pub async fn exec_collect(
        &self,
        spec: ExecSpec,
        options: CollectOptions,
    ) -> Result<ExecOutput, GuestError> {
        self.exec_observed(spec, options, |_| {}).await
    }

    /// As [`GuestClient::exec_collect`], and shows each event to `observe` as it comes, output that is not kept included.
    ///
    /// # Errors
    /// As [`GuestClient::exec_collect`].
    pub async fn exec_observed(
        &self,
        mut spec: ExecSpec,
        options: CollectOptions,
        mut observe: impl FnMut(&ExecEvent),
    ) -> Result<ExecOutput, GuestError> {
        spec.timeout.get_or_insert(DEFAULT_EXEC_TIMEOUT);
        spec.stdin = options.stdin.is_some();
        let (input, mut events) = self.exec(spec).await?.split();
        let feeding = feed(input, options.stdin.unwrap_or_default());
        tokio::pin!(feeding);
        let mut is_feeding = true;
        let mut is_started = false;
        let mut stdout = Capture::new(options.max_output_bytes);
        let mut stderr = Capture::new(options.max_output_bytes);
        let exit = loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = &mut feeding, if is_feeding => {
                    is_feeding = false;
                    continue;
                }
            };
            if let Ok(Some(event)) = &event {
                observe(event);
            }
            match event {
                Ok(Some(ExecEvent::Started { .. })) => is_started = true,
                Ok(Some(ExecEvent::Stdout(bytes))) => stdout.take(&bytes),
                Ok(Some(ExecEvent::Stderr(bytes))) => stderr.take(&bytes),
                Ok(Some(ExecEvent::Exited(exit))) => break exit,
                Err(GuestError::Timeout { .. }) if is_started => break Exit::TimedOut,
                Err(error) => return Err(error),
                // Only after `Exited`, which ends the loop.
                Ok(None) => {
                    return Err(GuestError::Disconnected { operation: "run a command", id: self.record.id });
                }
            }
        };
        Ok(ExecOutput {
            exit,
            stdout_bytes: stdout.total,
            stderr_bytes: stderr.total,
            stdout: stdout.finish(),
            stderr: stderr.finish(),
        })
    }
}

/// Writes the whole input and its end. A command that does not read all of it is no error: how it ends says enough.
async fn feed(mut input: ExecInput, bytes: Vec<u8>) {
    let sent = match input.write_all(&bytes).await {
        Ok(()) => input.shutdown().await,
        Err(error) => Err(error),
    };
    if let Err(error) = sent {
        tracing::debug!(%error, "the command did not take all of its input");
    }
}

/// The beginning of a stream, and how long it was.
struct Capture {
    limit: usize,
    kept: Vec<u8>,
    total: u64,
}

impl Capture {
    fn new(limit: usize) -> Self {
        Self { limit, kept: Vec::new(), total: 0 }
    }

    fn take(&mut self, bytes: &[u8]) {
        self.total = self.total.saturating_add(bytes.len() as u64);
        let room = self.limit - self.kept.len();
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn finish(mut self) -> Vec<u8> {
        let shown = self.kept.len();
        if self.total > shown as u64 {
            let note = format!("[TRUNCATED: {} bytes total, showing first {shown} bytes]", self.total);
            self.kept.extend_from_slice(note.as_bytes());
        }
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(limit: usize, bytes: &[u8]) -> String {
        let mut capture = Capture::new(limit);
        capture.take(bytes);
        String::from_utf8(capture.finish()).unwrap()
    }

    #[test]
    fn output_at_the_limit_is_whole_and_one_more_byte_is_told() {
        assert_eq!(capture(4, b""), "");
        assert_eq!(capture(4, b"abcd"), "abcd");
        assert_eq!(capture(4, b"abcde"), "abcd[TRUNCATED: 5 bytes total, showing first 4 bytes]");
        assert_eq!(capture(0, b"abcde"), "[TRUNCATED: 5 bytes total, showing first 0 bytes]");
    }
}
