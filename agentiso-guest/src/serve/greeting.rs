//! Finding the hello of the next connection, in whatever the channel holds.
//!
//! A socket begins with a connection and ends with it. A serial port only seems to: a host that disconnects and connects
//! again at once may be seen as one continuous stream, in the middle of whose last message another begins. So a channel
//! is in one of four states between connections, see [`Between`].

use std::time::{Duration, Instant};

use agentiso_guest::frame::{Decoder, Frame, OrHello, Skipped};
use agentiso_guest::hello::{Hello, HelloScanner, begins_with_hello};

use super::connection::Connection;

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
    /// The pause is there. What comes next is a hello, or still unknown.
    Paused,
}

impl Between {
    /// What is known when the host has gone and everything it sent has been read.
    pub(super) fn after_end(was_mid_message: bool) -> Self {
        // News that the host has gone may be late and mean the one before: the rest of a message may still come.
        if was_mid_message { Self::Paused } else { Self::Fresh(HelloScanner::new()) }
    }
}

/// Why there is no hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoHello {
    /// A socket was closed, or nothing came in time.
    Closed,
    /// Message boundaries are lost: the port must be closed and opened.
    Reset,
}

/// Waits for the next hello and binds the connection's decoder to it; until `closing`, if given.
///
/// # Errors
/// The socket was closed, or the port must be reset.
pub(super) fn next_hello(
    connection: &mut Connection,
    between: &mut Between,
    closing: Option<Instant>,
) -> Result<Hello, NoHello> {
    loop {
        if let Between::Framed = between
            && let Some(hello) = skip_to_hello(connection)?
        {
            return Ok(hello);
        }
        match connection.read_raw() {
            Ok(Some(0)) if connection.is_port() => {
                let was_mid_message = connection.forget_input();
                *between = match between {
                    Between::Fresh(_) | Between::Framed => Between::after_end(was_mid_message),
                    Between::Unknown | Between::Paused => Between::Paused,
                };
                connection.release_buffers();
                connection.wait_idle(None);
            }
            Ok(Some(0)) => return Err(NoHello::Closed),
            Ok(Some(count)) => {
                if let Some(hello) = take(connection, between, count) {
                    return Ok(hello);
                }
            }
            Ok(None) => wait_for_more(connection, between, closing)?,
            Err(_) if connection.is_port() => return Err(NoHello::Reset),
            Err(_) => return Err(NoHello::Closed),
        }
    }
}

/// Passes over what is left of a finished operation: input that was under way when it ended.
fn skip_to_hello(connection: &mut Connection) -> Result<Option<Hello>, NoHello> {
    loop {
        match connection.decoder.next_frame::<OrHello<Skipped>>() {
            Ok(Some(Frame { message: OrHello::Hello(hello), .. })) if hello.hello != connection.nonce() => {
                return Ok(Some(hello));
            }
            Ok(Some(_)) => {}
            Ok(None) => return Ok(None),
            Err(_) => return Err(NoHello::Reset),
        }
    }
}

/// Takes `count` bytes that were just read.
fn take(connection: &mut Connection, between: &mut Between, count: usize) -> Option<Hello> {
    let bytes = connection.scratch(count).to_vec();
    match between {
        Between::Framed => {
            connection.decoder.feed(&bytes);
            None
        }
        Between::Fresh(scanner) => {
            let (hello, rest) = scanner.feed(&bytes)?;
            connection.decoder = Decoder::new(hello.hello);
            connection.decoder.feed(&rest);
            *between = Between::Framed;
            Some(hello)
        }
        Between::Paused if begins_with_hello(&bytes) => {
            connection.decoder = Decoder::new(connection.nonce());
            connection.decoder.feed(&bytes);
            *between = Between::Framed;
            None
        }
        Between::Unknown | Between::Paused => {
            *between = Between::Unknown;
            None
        }
    }
}

/// There is nothing to read now.
fn wait_for_more(
    connection: &mut Connection,
    between: &mut Between,
    closing: Option<Instant>,
) -> Result<(), NoHello> {
    let limit = match between {
        Between::Unknown => Some(Instant::now() + QUIET),
        Between::Framed => connection.idle_stall_deadline(),
        Between::Fresh(_) | Between::Paused => None,
    };
    if limit.is_none() {
        connection.release_buffers();
    }
    let last = connection.last_input();
    connection.wait_idle([limit, closing].into_iter().flatten().min());
    let now = Instant::now();
    if closing.is_some_and(|closing| closing <= now) {
        return Err(NoHello::Closed);
    }
    match between {
        Between::Framed if limit.is_some_and(|limit| limit <= now) => Err(NoHello::Reset),
        Between::Unknown if last + QUIET <= now => {
            *between = Between::Paused;
            Ok(())
        }
        _ => Ok(()),
    }
}
