//! What goes to the host.

use std::time::{Duration, Instant};

use agentiso_guest::frame::{encode, encode_plain};
use agentiso_guest::hello::Welcome;
use agentiso_guest::message::{Input, Reply};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::{Connection, Lost, OUTPUT_LIMIT, timeout_until};

impl Connection {
    /// Lets what is queued wait for more: until more is asked to be written, or `limit` is over. Each write is an exit
    /// from a virtual machine, and each read of the host's a system call.
    pub(crate) fn hold(&mut self, limit: Duration) {
        self.held_until = Some(Instant::now() + limit);
    }

    /// What is queued waits no longer.
    pub(crate) fn let_go(&mut self) {
        self.held_until = None;
    }

    /// Bytes that wait to be written.
    pub(crate) fn pending(&self) -> usize {
        self.out.len() - self.written
    }

    /// Queues a welcome.
    pub(in crate::serve) fn send_welcome(&mut self, welcome: &Welcome) {
        // A welcome is far below the limit and made of strings and numbers: it can always be encoded.
        let encoded = encode_plain(&mut self.out, welcome);
        debug_assert!(encoded.is_ok());
    }

    /// Queues a reply; nothing is written before the next wait or flush.
    pub(crate) fn send(&mut self, reply: &Reply) {
        self.send_with(reply, &[]);
    }

    /// Queues a reply with its payload, which is as long as the reply says.
    pub(crate) fn send_with(&mut self, reply: &Reply, payload: &[u8]) {
        if let Err(error) = encode(&mut self.out, reply, payload, self.nonce) {
            // Replies are built within the limits; should one not be, the host is told instead of left waiting.
            let text = format!("the reply could not be sent: {error}");
            let failed = Reply::Error { code: agentiso_guest::message::ErrorCode::Failed, message: text };
            let encoded = encode(&mut self.out, &failed, &[], self.nonce);
            debug_assert!(encoded.is_ok());
        }
    }

    /// Queues a piece of data and waits while too much is queued.
    ///
    /// # Errors
    /// The connection is lost.
    pub(crate) fn send_data(&mut self, bytes: &[u8]) -> Result<(), Lost> {
        let payload = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.send_with(&Reply::Data { payload }, bytes);
        self.write_down_to(OUTPUT_LIMIT)
    }

    /// Writes everything that is queued.
    ///
    /// # Errors
    /// The connection is lost.
    pub(crate) fn flush(&mut self) -> Result<(), Lost> {
        self.write_down_to(0)
    }

    /// Writes until no more than `limit` bytes are queued.
    fn write_down_to(&mut self, limit: usize) -> Result<(), Lost> {
        self.write_some()?;
        while self.pending() > limit {
            // Input is read meanwhile, so that a new connection on the same channel is noticed.
            while self.next_message::<Input>()?.is_some() {}
            self.poll_once(true, [], None)?;
        }
        Ok(())
    }

    /// Writes what is queued as far as that goes without waiting, until `deadline`; errors do not matter.
    pub(crate) fn flush_until(&mut self, deadline: Instant) {
        while self.write_some().is_ok() && self.pending() > 0 && Instant::now() < deadline {
            let mut fds = [PollFd::new(&self.fd, PollFlags::OUT)];
            let _ = poll(&mut fds, Some(&timeout_until(Some(deadline))));
        }
    }

    /// Says any bytes, without reading anything meanwhile. False once the host has gone.
    #[cfg(feature = "hostile")]
    pub(in crate::serve) fn say(&mut self, bytes: &[u8]) -> bool {
        const LOOK_AGAIN: Duration = Duration::from_millis(100);
        self.out.extend_from_slice(bytes);
        while self.pending() > 0 {
            if self.write_some().is_err() || self.host_has_gone() {
                return false;
            }
            self.flush_until(Instant::now() + LOOK_AGAIN);
        }
        true
    }

    /// Writes what can be written now.
    pub(super) fn write_some(&mut self) -> Result<(), Lost> {
        while self.written < self.out.len() {
            match rustix::io::write(&self.fd, &self.out[self.written..]) {
                Ok(count) => self.written += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return Err(Lost::Gone),
            }
        }
        if self.written == self.out.len() {
            self.out.clear();
            self.written = 0;
        } else if self.written > OUTPUT_LIMIT {
            self.out.drain(..self.written);
            self.written = 0;
        }
        Ok(())
    }
}
