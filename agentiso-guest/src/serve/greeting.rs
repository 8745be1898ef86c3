//! Finding the hello of the next connection, in whatever the channel holds.
//!
//! A socket begins with a connection and ends with it. A serial port only seems to: a host that disconnects and connects
//! again at once may be seen as one continuous stream, in the middle of whose last message another begins. So a channel
//! is in one of three states between connections, see [`Between`].

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use agentiso_guest::frame::{Decoder, Frame, OrHello, Skipped};
use agentiso_guest::hello::{Hello, HelloScanner, begins_with_hello};
use rustix::event::{PollFd, PollFlags, epoll, poll};

use super::connection::{Connection, timeout_until};

/// How long nothing may come before the next byte is taken for the beginning of something.
const QUIET: Duration = Duration::from_millis(50);

/// What is known of the bytes that come next.
#[derive(Debug)]
pub(super) enum Between {
    /// They are a connection's first; only the rest of a hello can be in front of one.
    Fresh(HelloScanner),
    /// They follow a finished operation: whole messages, sealed as its were.
    Framed,
    /// They may be the inside of a message of a connection that is still alive, and so anything, a hello that
    /// someone hid in a file too: only what begins after a pause counts.
    Unknown,
}

/// Why there is no hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoHello {
    /// A socket was closed, or nothing came in time.
    Closed,
    /// Message boundaries are lost: the port must be closed and opened.
    Reset,
}

/// How to wait for a channel.
#[derive(Debug)]
pub(super) enum Waiter {
    /// A socket; without a hello until then it is closed.
    Socket(Instant),
    /// A serial port. While no host is connected, `poll` answers "hang-up" at once, so it is waited for with an
    /// edge-triggered epoll, which wakes when the host connects, disconnects or sends.
    Port(OwnedFd),
}

impl Waiter {
    /// A waiter for an open serial port.
    pub(super) fn port(port: impl AsFd) -> rustix::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let events = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&epoll, port, epoll::EventData::new_u64(0), events)?;
        Ok(Self::Port(epoll))
    }

    fn is_port(&self) -> bool {
        matches!(self, Self::Port(_))
    }

    /// Waits for the channel; returns whether the time was over.
    fn wait(&self, connection: &Connection, until: Option<Instant>) -> bool {
        match self {
            Self::Socket(_) => {
                let mut fds = [PollFd::new(connection, PollFlags::IN)];
                matches!(poll(&mut fds, Some(&timeout_until(until))), Ok(0))
            }
            Self::Port(epoll) => {
                let mut events =
                    [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
                let timeout = until.map(|until| timeout_until(Some(until)));
                matches!(epoll::wait(epoll, &mut events, timeout.as_ref()), Ok(0))
            }
        }
    }
}

/// Waits for the next hello and binds the connection's decoder to it.
///
/// # Errors
/// The socket was closed, or the port must be reset.
pub(super) fn next_hello(
    connection: &mut Connection,
    between: &mut Between,
    waiter: &Waiter,
) -> Result<Hello, NoHello> {
    loop {
        if let Between::Framed = between {
            match skip_to_hello(connection) {
                Ok(Some(hello)) => return Ok(hello),
                Ok(None) => {}
                Err(()) => return Err(NoHello::Reset),
            }
        }
        match connection.read_raw() {
            Ok(Some(0)) if waiter.is_port() => {
                // All of the old connection has been read: what comes next is a new one's.
                *between = Between::Fresh(HelloScanner::new());
                connection.decoder = Decoder::new(connection.nonce());
                connection.release_buffers();
                waiter.wait(connection, None);
            }
            Ok(Some(0)) => return Err(NoHello::Closed),
            Ok(Some(count)) => {
                if let Some(hello) = take(connection, between, count) {
                    return Ok(hello);
                }
            }
            Ok(None) => wait_for_more(connection, between, waiter)?,
            Err(_) if waiter.is_port() => return Err(NoHello::Reset),
            Err(_) => return Err(NoHello::Closed),
        }
    }
}

/// Passes over what is left of a finished operation: input that was under way when it ended.
fn skip_to_hello(connection: &mut Connection) -> Result<Option<Hello>, ()> {
    loop {
        match connection.decoder.next_frame::<OrHello<Skipped>>() {
            Ok(Some(Frame { message: OrHello::Hello(hello), .. })) if hello.hello != connection.nonce() => {
                return Ok(Some(hello));
            }
            Ok(Some(_)) => {}
            Ok(None) => return Ok(None),
            Err(_) => return Err(()),
        }
    }
}

/// Takes `count` bytes that were just read.
fn take(connection: &mut Connection, between: &mut Between, count: usize) -> Option<Hello> {
    let bytes = connection.scratch(count);
    let (hello, rest) = match between {
        Between::Framed => {
            let bytes = bytes.to_vec();
            connection.decoder.feed(&bytes);
            return None;
        }
        Between::Fresh(scanner) => scanner.feed(bytes)?,
        Between::Unknown => return None,
    };
    connection.decoder = Decoder::new(hello.hello);
    connection.decoder.feed(&rest);
    *between = Between::Framed;
    Some(hello)
}

fn wait_for_more(connection: &mut Connection, between: &mut Between, waiter: &Waiter) -> Result<(), NoHello> {
    if let Between::Unknown = between {
        if waiter.wait(connection, Some(Instant::now() + QUIET)) {
            wait_after_pause(connection, between, waiter);
        }
        return Ok(());
    }
    let stall = match between {
        Between::Framed => connection.idle_stall_deadline(),
        _ => None,
    };
    if stall.is_none() && !connection.decoder.is_mid_message() {
        connection.release_buffers();
    }
    let closing = match waiter {
        Waiter::Socket(closing) => Some(*closing),
        Waiter::Port(_) => None,
    };
    let until = [stall, closing].into_iter().flatten().min();
    waiter.wait(connection, until);
    let now = Instant::now();
    if closing.is_some_and(|closing| closing <= now) {
        return Err(NoHello::Closed);
    }
    if stall.is_some_and(|stall| stall <= now) {
        return Err(NoHello::Reset);
    }
    Ok(())
}

/// The stream has paused. If what comes next begins with a hello, it is one.
fn wait_after_pause(connection: &mut Connection, between: &mut Between, waiter: &Waiter) {
    loop {
        match connection.read_raw() {
            Ok(None) => drop(waiter.wait(connection, None)),
            Ok(Some(0)) | Err(_) => return,
            Ok(Some(count)) => {
                let bytes = connection.scratch(count);
                if begins_with_hello(bytes) {
                    let bytes = bytes.to_vec();
                    // Handed on as the beginning of a connection, together with what was read of it.
                    connection.decoder = Decoder::new(connection.nonce());
                    connection.decoder.feed(&bytes);
                    *between = Between::Framed;
                }
                return;
            }
        }
    }
}
