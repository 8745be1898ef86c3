//! A client of QEMU's machine protocol (QMP): lines of JSON over a unix socket.
//!
//! One command at a time, each with an id and a time limit. Whatever could make a later reply answer an earlier
//! command (a timeout, a cancelled command, a reply to something else, a line that is no message) ends the connection
//! for good: a broken client answers [`QmpError::Broken`] and the caller connects anew. QEMU is not trusted: a guest
//! may have broken into it, so lines and queues are bounded.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::UnixStream,
    time::timeout,
};

/// Longest line, in bytes. The longest real one lists the block nodes: about 1 KiB for each layer of a disk.
const MAX_LINE_BYTES: usize = 1024 * 1024;

/// Events that are kept until someone asks for them; older ones are dropped.
const MAX_EVENTS: usize = 64;

/// Bytes asked of the socket at a time.
const READ_BYTES: usize = 16 * 1024;

/// A connection to one QEMU.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: UnixStream,
    unread: Vec<u8>,
    next_id: u64,
    events: VecDeque<Event>,
    usable: bool,
}

/// Something that happened in QEMU.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Event {
    /// Which, as in `STOP`.
    pub(super) event: String,
    /// Its particulars.
    #[serde(default)]
    pub(super) data: Value,
}

#[derive(Deserialize)]
struct Reply {
    id: Option<Value>,
    #[serde(rename = "return")]
    success: Option<Value>,
    error: Option<Failure>,
}

#[derive(Deserialize)]
struct Failure {
    class: String,
    desc: String,
}

impl Qmp {
    /// Takes a connected socket and waits for QEMU's greeting, which comes when QEMU has built the machine.
    pub(super) async fn greet(stream: UnixStream, limit: Duration) -> Result<Self, QmpError> {
        let mut qmp = Self { stream, unread: Vec::new(), next_id: 1, events: VecDeque::new(), usable: true };
        let greeting = timeout(limit, async {
            loop {
                let value: Value = parse("greeting", &qmp.line("greeting").await?)?;
                // An event of a moment ago, still meant for whoever was connected before us.
                if value.get("event").is_none() {
                    return Ok::<_, QmpError>(value);
                }
            }
        });
        let greeting = greeting.await.map_err(|_| QmpError::Timeout { command: "greeting", limit })??;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::Malformed { command: "greeting", reason: "no QMP in it".to_owned() });
        }
        let _: Value = qmp.execute("qmp_capabilities", json!({}), limit).await?;
        Ok(qmp)
    }

    /// Runs a command and returns what it returned.
    pub(super) async fn execute<T: DeserializeOwned>(
        &mut self,
        command: &'static str,
        arguments: Value,
        limit: Duration,
    ) -> Result<T, QmpError> {
        self.run(command, arguments, None, limit).await
    }

    /// Runs a command that takes a descriptor with it.
    pub(super) async fn execute_with_fd<T: DeserializeOwned>(
        &mut self,
        command: &'static str,
        arguments: Value,
        fd: BorrowedFd<'_>,
        limit: Duration,
    ) -> Result<T, QmpError> {
        self.run(command, arguments, Some(fd), limit).await
    }

    /// The next event, one that has arrived with an earlier reply first. Waits for it.
    pub(super) async fn event(&mut self, wanted: &'static str, limit: Duration) -> Result<Event, QmpError> {
        if let Some(event) = self.events.pop_front() {
            return Ok(event);
        }
        if !std::mem::replace(&mut self.usable, false) {
            return Err(QmpError::Broken { command: wanted });
        }
        let line = timeout(limit, self.line(wanted))
            .await
            .map_err(|_| QmpError::Timeout { command: wanted, limit })??;
        let event = parse(wanted, &line)?;
        self.usable = true;
        Ok(event)
    }

    /// The socket, for another process to go on with. What was received and not asked for is lost.
    pub(super) fn into_socket(self) -> io::Result<OwnedFd> {
        let stream = self.stream.into_std()?;
        stream.set_nonblocking(false)?;
        Ok(stream.into())
    }

    /// Waits for the next event that a caller wants, those that have arrived already included. Others are dropped.
    pub(super) async fn wait_event(
        &mut self,
        command: &'static str,
        wanted: impl Fn(&Event) -> bool,
        limit: Duration,
    ) -> Result<Event, QmpError> {
        if !std::mem::replace(&mut self.usable, false) {
            return Err(QmpError::Broken { command });
        }
        let event = timeout(limit, async {
            loop {
                while let Some(event) = self.events.pop_front() {
                    if wanted(&event) {
                        return Ok(event);
                    }
                }
                let line = self.line(command).await?;
                let value = parse(command, &line)?;
                let event = serde_json::from_value(value)
                    .map_err(|error| QmpError::Malformed { command, reason: error.to_string() })?;
                self.events.push_back(event);
            }
        });
        let event = event.await.map_err(|_| QmpError::Timeout { command, limit })??;
        self.usable = true;
        Ok(event)
    }

    async fn run<T: DeserializeOwned>(
        &mut self,
        command: &'static str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
        limit: Duration,
    ) -> Result<T, QmpError> {
        if !std::mem::replace(&mut self.usable, false) {
            return Err(QmpError::Broken { command });
        }
        // From here on any way out but a matching reply, cancellation included, leaves the connection unusable.
        let reply = timeout(limit, self.exchange(command, arguments, fd))
            .await
            .map_err(|_| QmpError::Timeout { command, limit })??;
        self.usable = true;
        match reply {
            Reply { error: Some(Failure { class, desc }), .. } => {
                Err(QmpError::Refused { command, class: shorten(&class), description: shorten(&desc) })
            }
            Reply { success, .. } => serde_json::from_value(success.unwrap_or_default())
                .map_err(|error| QmpError::Malformed { command, reason: error.to_string() }),
        }
    }

    async fn exchange(
        &mut self,
        command: &'static str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Reply, QmpError> {
        let id = self.next_id;
        self.next_id += 1;
        let mut message = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        message.push('\n');
        self.send(message.as_bytes(), fd).await.map_err(|source| QmpError::Io { command, source })?;
        loop {
            let line = self.line(command).await?;
            let value: Value = parse(command, &line)?;
            if value.get("event").is_some() {
                let event = serde_json::from_value(value)
                    .map_err(|error| QmpError::Malformed { command, reason: error.to_string() })?;
                if self.events.len() == MAX_EVENTS {
                    self.events.pop_front();
                }
                self.events.push_back(event);
                continue;
            }
            let reply: Reply = serde_json::from_value(value)
                .map_err(|error| QmpError::Malformed { command, reason: error.to_string() })?;
            if reply.id != Some(Value::from(id)) {
                return Err(QmpError::WrongReply { command });
            }
            if reply.success.is_some() == reply.error.is_some() {
                let reason = "neither a result nor an error, or both".to_owned();
                return Err(QmpError::Malformed { command, reason });
            }
            return Ok(reply);
        }
    }

    async fn send(&mut self, mut message: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        if let Some(fd) = fd {
            let sent = self
                .stream
                .async_io(Interest::WRITABLE, || send_with_fd(self.stream.as_fd(), message, fd))
                .await?;
            message = message.get(sent..).unwrap_or_default();
        }
        self.stream.write_all(message).await
    }

    /// The next line, without its end.
    async fn line(&mut self, command: &'static str) -> Result<Vec<u8>, QmpError> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.unread[searched..].iter().position(|&byte| byte == b'\n') {
                let rest = self.unread.split_off(searched + end + 1);
                let mut line = std::mem::replace(&mut self.unread, rest);
                line.pop();
                return Ok(line);
            }
            searched = self.unread.len();
            if searched >= MAX_LINE_BYTES {
                return Err(QmpError::TooLong { command });
            }
            self.unread.reserve(READ_BYTES);
            let most = u64::try_from(READ_BYTES).unwrap_or(u64::MAX);
            match (&mut self.stream).take(most).read_buf(&mut self.unread).await {
                Ok(0) => return Err(QmpError::Closed { command }),
                Ok(_) => {}
                Err(source) => return Err(QmpError::Io { command, source }),
            }
        }
    }
}

fn send_with_fd(socket: BorrowedFd<'_>, message: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    Ok(sendmsg(socket, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

fn parse<T: DeserializeOwned>(command: &'static str, line: &[u8]) -> Result<T, QmpError> {
    serde_json::from_slice(line).map_err(|error| QmpError::Malformed { command, reason: error.to_string() })
}

/// QEMU's texts go to people and logs: at most 300 characters, none of them a control character.
fn shorten(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

/// Why QEMU did not do as it was told.
#[derive(Debug, thiserror::Error)]
pub(super) enum QmpError {
    /// The socket.
    #[error("QEMU's control socket failed during {command}")]
    Io {
        /// The command.
        command: &'static str,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The other end is gone.
    #[error("QEMU closed its control socket during {command}")]
    Closed {
        /// The command.
        command: &'static str,
    },
    /// No reply.
    #[error("QEMU did not answer {command} within {limit:?}")]
    Timeout {
        /// The command.
        command: &'static str,
        /// The time it had.
        limit: Duration,
    },
    /// A line beyond all bounds.
    #[error("QEMU answered {command} with a line of more than {MAX_LINE_BYTES} bytes")]
    TooLong {
        /// The command.
        command: &'static str,
    },
    /// Not QMP.
    #[error("QEMU's answer to {command} makes no sense: {reason}")]
    Malformed {
        /// The command.
        command: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A reply to something else.
    #[error("QEMU answered something else than {command}")]
    WrongReply {
        /// The command.
        command: &'static str,
    },
    /// QEMU refused.
    #[error("QEMU refused {command}: {description} ({class})")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's class of error.
        class: String,
        /// QEMU's words.
        description: String,
    },
    /// An earlier command failed or was cancelled.
    #[error("the connection to QEMU is no longer usable for {command}: an earlier command failed on it")]
    Broken {
        /// The command.
        command: &'static str,
    },
}

#[cfg(test)]
#[path = "qmp_tests.rs"]
mod tests;
