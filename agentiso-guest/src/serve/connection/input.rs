//! What comes from the host.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use agentiso_guest::frame::{Decoder, Frame, Message, OrHello};
use agentiso_guest::limits::STALLED_MESSAGE_MS;
use agentiso_guest::message::{Input, Request};
use rustix::io::Errno;

use super::{Connection, Lost};

/// Bytes read at once from a socket.
const SOCKET_READ_BYTES: usize = 32 * 1024;
/// Bytes read at once from a virtio-serial port, which never gives more than a page.
const PORT_READ_BYTES: usize = 4096;

/// How long a message may stay incomplete when what came last is a complete hello.
const INTERRUPTED_MESSAGE: Duration = Duration::from_millis(250);

/// Buffered input above which a connection needs one of few permits, in bytes.
const LARGE_MESSAGE: usize = 2 * 1024 * 1024;
/// Connections that may hold a large message at once: what the agent holds is bounded, whatever clients send.
const LARGE_MESSAGES: usize = 2;
static LARGE_HELD: AtomicUsize = AtomicUsize::new(0);

/// A permit for a large message, given back when it is dropped.
#[derive(Debug)]
pub(super) struct LargeMessage(());

impl LargeMessage {
    fn permit() -> Option<Self> {
        if LARGE_HELD.fetch_add(1, Ordering::AcqRel) >= LARGE_MESSAGES {
            LARGE_HELD.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Self(()))
    }
}

impl Drop for LargeMessage {
    fn drop(&mut self) {
        LARGE_HELD.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Connection {
    /// The next message, if all of it has arrived.
    ///
    /// # Errors
    /// A new connection has begun, or the message is malformed.
    pub(crate) fn next_message<M: Message>(&mut self) -> Result<Option<Frame<M>>, Lost> {
        loop {
            let frame = self.decoder.next_frame::<OrHello<M>>().map_err(Lost::Malformed)?;
            match frame {
                None => {
                    self.note_incomplete();
                    return Ok(None);
                }
                Some(Frame { message: OrHello::Message(message), payload }) => {
                    self.incomplete_since = None;
                    return Ok(Some(Frame { message, payload }));
                }
                // The same hello, sent again before the welcome arrived.
                Some(Frame { message: OrHello::Hello(hello), .. }) if hello.hello == self.nonce => {
                    self.incomplete_since = None;
                }
                Some(Frame { message: OrHello::Hello(hello), .. }) => return Err(Lost::Replaced(hello)),
            }
        }
    }

    /// Waits for the request.
    ///
    /// # Errors
    /// The connection is lost.
    pub(in crate::serve) fn receive_request(&mut self) -> Result<Request, Lost> {
        loop {
            if let Some(frame) = self.next_message::<Request>()? {
                return Ok(frame.message);
            }
            self.wait(true, [], None)?;
        }
    }

    /// Waits for the next input.
    ///
    /// # Errors
    /// The connection is lost.
    pub(crate) fn receive_input(&mut self) -> Result<Frame<Input>, Lost> {
        loop {
            if let Some(frame) = self.next_message::<Input>()? {
                return Ok(frame);
            }
            self.wait(true, [], None)?;
        }
    }

    pub(super) fn note_incomplete(&mut self) {
        if !self.decoder.is_mid_message() {
            self.incomplete_since = None;
            self.large = None;
        } else if self.incomplete_since.is_none() {
            self.incomplete_since = Some(Instant::now());
        }
    }

    /// When the message being received has been incomplete for too long.
    pub(in crate::serve) fn stall_deadline(&self) -> Option<Instant> {
        let since = self.incomplete_since?;
        if self.decoder.is_interrupted_by_hello() {
            return Some(self.last_input + INTERRUPTED_MESSAGE);
        }
        Some(since + Duration::from_millis(STALLED_MESSAGE_MS))
    }

    /// As [`Connection::stall_deadline`], between two connections.
    pub(in crate::serve) fn idle_stall_deadline(&mut self) -> Option<Instant> {
        self.note_incomplete();
        self.stall_deadline()
    }

    /// Drops what was received of a connection that is gone; returns whether it ended in the middle of a message.
    pub(in crate::serve) fn forget_input(&mut self) -> bool {
        let was_mid_message = self.decoder.is_mid_message();
        self.decoder = Decoder::new(self.nonce);
        self.note_incomplete();
        was_mid_message
    }

    /// Reads once without waiting. Returns whether something came.
    ///
    /// # Errors
    /// The host is gone, or sends too much.
    pub(super) fn read_some(&mut self) -> Result<bool, Lost> {
        match self.read_raw() {
            Ok(Some(0)) => match &mut self.port {
                None => Err(Lost::Gone),
                Some(port) => {
                    port.without_host_since.get_or_insert_with(Instant::now);
                    Ok(false)
                }
            },
            Ok(Some(count)) => {
                self.note_host();
                self.decoder.feed(&self.scratch[..count]);
                if self.decoder.buffered() > LARGE_MESSAGE && self.large.is_none() {
                    self.large = Some(LargeMessage::permit().ok_or(Lost::TooLarge)?);
                }
                Ok(true)
            }
            Ok(None) => {
                self.note_host();
                Ok(false)
            }
            Err(_) => Err(Lost::Gone),
        }
    }

    /// Reads once into the scratch buffer: how many bytes, 0 at the end, `None` if there is nothing now.
    pub(in crate::serve) fn read_raw(&mut self) -> Result<Option<usize>, Errno> {
        let most = if self.is_port() { PORT_READ_BYTES } else { SOCKET_READ_BYTES };
        self.scratch.resize(most, 0);
        match rustix::io::read(&self.fd, &mut self.scratch[..]) {
            Ok(count) => {
                self.last_input = Instant::now();
                Ok(Some(count))
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// When something was read last.
    pub(crate) fn last_input(&self) -> Instant {
        self.last_input
    }

    /// What [`Connection::read_raw`] has read.
    pub(in crate::serve) fn scratch(&self, count: usize) -> &[u8] {
        &self.scratch[..count]
    }
}
