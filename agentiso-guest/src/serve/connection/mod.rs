//! One channel to the host: frames in, frames out, without ever blocking on the other side.

mod input;
mod output;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use agentiso_guest::frame::{Decoder, FrameError};
use agentiso_guest::hello::{Hello, Nonce};
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;

use self::input::LargeMessage;
use super::sessions::Member;

/// Largest buffer that an idle connection keeps, in bytes.
const KEPT_BYTES: usize = 8 * 1024;

/// Output waiting for the host from which on producers of output pause, in bytes.
pub(crate) const OUTPUT_LIMIT: usize = 128 * 1024;

/// How long a serial port must be without a host before the connection is over. The guest learns that a host came or
/// went later than it gets its data, much later where the kernel's workers hardly get to run: the news that the host
/// before has gone may arrive when the next one's request is being served.
const LOSS_GRACE: Duration = Duration::from_secs(1);

const NO_EVENT: epoll::Event =
    epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };

/// Why a connection is over in the middle of an operation.
#[derive(Debug)]
pub(crate) enum Lost {
    /// The host disconnected, and everything it sent has been read.
    Gone,
    /// A new connection has begun on the same channel.
    Replaced(Hello),
    /// The host sent something that is no message.
    Malformed(FrameError),
    /// A message stayed incomplete.
    Stalled,
    /// Too many connections hold very long messages.
    TooLarge,
    /// The machine is a copy, and the host of this connection is that of the machine it was copied from.
    Detached,
}

/// What is particular to a serial port: while no host is connected, reading answers "end" and `poll` "hang-up", at once
/// and always.
#[derive(Debug)]
struct Port {
    /// An epoll that reports each change once: a host goes, or sends.
    changes: OwnedFd,
    /// Whether it also reports room for output. Without a host there is none, so that this reports that one has come;
    /// at other times it would only wake the thread after each reply.
    watches_room: bool,
    /// Since when no host is connected, as far as the guest knows.
    without_host_since: Option<Instant>,
}

impl Port {
    const CHANGES: epoll::EventFlags = epoll::EventFlags::IN.union(epoll::EventFlags::ET);

    /// Begins or ends to watch for room; what is there already is reported too.
    fn watch_room(&mut self, fd: &OwnedFd, watch: bool) {
        if self.watches_room != watch {
            let flags = if watch { Self::CHANGES | epoll::EventFlags::OUT } else { Self::CHANGES };
            self.watches_room = epoll::modify(&self.changes, fd, NO_EVENT.data, flags).is_ok() && watch;
        }
    }
}

/// A channel with the buffers of the connection on it.
#[derive(Debug)]
pub(crate) struct Connection {
    fd: OwnedFd,
    port: Option<Port>,
    pub(super) decoder: Decoder,
    nonce: Nonce,
    scratch: Vec<u8>,
    out: Vec<u8>,
    /// Bytes at the front of `out` that are written already.
    written: usize,
    /// Since when the message being received is incomplete.
    incomplete_since: Option<Instant>,
    last_input: Instant,
    /// Held while the message being received is very long.
    large: Option<LargeMessage>,
    /// When what is queued may be written at last, if that is to wait for more.
    held_until: Option<Instant>,
    /// While a connection is being served. The last field: the channel is closed when it is dropped.
    member: Option<Member>,
}

impl Connection {
    /// Wraps a non-blocking serial port.
    ///
    /// # Errors
    /// The system is out of descriptors.
    pub(super) fn on_port(fd: OwnedFd) -> Result<Self, Errno> {
        let changes = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&changes, &fd, NO_EVENT.data, Port::CHANGES)?;
        let mut connection = Self::on_socket(fd);
        connection.port = Some(Port { changes, watches_room: false, without_host_since: None });
        Ok(connection)
    }

    /// Wraps a non-blocking socket.
    pub(super) fn on_socket(fd: OwnedFd) -> Self {
        let nobody = Nonce::from_bytes([0; 16]);
        Self {
            fd,
            port: None,
            decoder: Decoder::new(nobody),
            nonce: nobody,
            scratch: Vec::new(),
            out: Vec::new(),
            written: 0,
            incomplete_since: None,
            last_input: Instant::now(),
            large: None,
            held_until: None,
            member: None,
        }
    }

    pub(super) fn nonce(&self) -> Nonce {
        self.nonce
    }

    /// Begins a connection at a message boundary: what was to be sent on the one before is forgotten.
    pub(super) fn begin(&mut self, nonce: Nonce, member: Member) {
        self.member = Some(member);
        self.held_until = None;
        self.nonce = nonce;
        self.decoder.rebind(nonce);
        self.out.clear();
        self.written = 0;
        self.incomplete_since = None;
        self.note_host();
    }

    /// The connection was served to its end.
    pub(super) fn end(&mut self) {
        self.member = None;
    }

    /// This connection's part in its era.
    pub(crate) fn member(&mut self) -> &mut Option<Member> {
        &mut self.member
    }

    /// Gives memory back; for a connection with nothing to do. Small buffers stay for the next operation.
    pub(super) fn release_buffers(&mut self) {
        for buffer in [&mut self.scratch, &mut self.out] {
            if buffer.capacity() > KEPT_BYTES {
                *buffer = Vec::new();
            }
        }
        self.out.clear();
        self.written = 0;
    }

    /// Whether the other end is closed, as far as the guest knows.
    pub(super) fn host_has_gone(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::empty())];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
            && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
    }

    /// Writes what is possible, then waits until there is input, room for output, something of `others`, or the deadline
    /// comes. Without `want_input`, only the loss of the connection is noticed of what the host does. Returns what
    /// `others` are ready for. May return early; the caller looks at what it waits for and calls again.
    ///
    /// # Errors
    /// The connection is lost.
    pub(crate) fn wait<const N: usize>(
        &mut self,
        want_input: bool,
        others: [Option<(BorrowedFd<'_>, PollFlags)>; N],
        deadline: Option<Instant>,
    ) -> Result<[PollFlags; N], Lost> {
        let before = self.pending();
        if let Some(held_until) = self.held_until {
            if Instant::now() < held_until {
                let until = deadline.map_or(held_until, |deadline| deadline.min(held_until));
                return self.poll_once(want_input, others, Some(until));
            }
            self.held_until = None;
        }
        self.write_some()?;
        // A caller that pauses because so much is queued must get to know that there is room again.
        let has_room = before >= OUTPUT_LIMIT && self.pending() < before;
        self.poll_once(want_input, others, if has_room { Some(Instant::now()) } else { deadline })
    }

    /// One `poll`, and reading or writing where it says so.
    fn poll_once<const N: usize>(
        &mut self,
        want_input: bool,
        others: [Option<(BorrowedFd<'_>, PollFlags)>; N],
        deadline: Option<Instant>,
    ) -> Result<[PollFlags; N], Lost> {
        if !want_input {
            self.incomplete_since = None;
        }
        let stall = self.stall_deadline();
        let alone_since = self.port.as_ref().and_then(|port| port.without_host_since);
        let loss = alone_since.map(|since| since + LOSS_GRACE);
        if let Some(port) = self.port.as_mut().filter(|_| loss.is_some()) {
            port.watch_room(&self.fd, true);
        }
        let until = [deadline, stall, loss].into_iter().flatten().min();
        let mut events = PollFlags::empty();
        if want_input {
            events |= PollFlags::IN | PollFlags::RDHUP;
        }
        if self.pending() > 0 && self.held_until.is_none() {
            events |= PollFlags::OUT;
        }
        let (mine, is_over, theirs) = {
            let own = match &self.port {
                Some(port) if loss.is_some() => PollFd::new(&port.changes, PollFlags::IN),
                _ => PollFd::new(&self.fd, events),
            };
            let mut fds = Vec::with_capacity(N + 2);
            fds.push(own);
            fds.push(match &self.member {
                Some(member) => PollFd::new(member, PollFlags::IN),
                None => PollFd::new(&self.fd, PollFlags::empty()),
            });
            // A descriptor that is not waited for stands in as "nothing" on our own, its answer is not looked at.
            fds.extend(others.iter().map(|other| match other {
                Some((fd, events)) => PollFd::from_borrowed_fd(*fd, *events),
                None => PollFd::new(&self.fd, PollFlags::empty()),
            }));
            match poll(&mut fds, until.map(|until| timeout_until(Some(until))).as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return Err(Lost::Gone),
            }
            let mut ready = [PollFlags::empty(); N];
            for ((ready, other), fd) in ready.iter_mut().zip(&others).zip(&fds[2..]) {
                if other.is_some() {
                    *ready = fd.revents();
                }
            }
            let is_over = self.member.is_some() && !fds[1].revents().is_empty();
            (fds[0].revents(), is_over, ready)
        };
        if is_over {
            return Err(Lost::Detached);
        }
        if let Some(loss) = loss {
            self.take_changes();
            if !self.read_some()? && loss <= Instant::now() && self.is_without_host() {
                return Err(Lost::Gone);
            }
            self.write_some()?;
        } else if mine.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR | PollFlags::RDHUP) {
            self.read_some()?;
        } else if stall.is_some_and(|stall| stall <= Instant::now()) {
            return Err(Lost::Stalled);
        }
        if mine.contains(PollFlags::OUT) {
            self.write_some()?;
        }
        Ok(theirs)
    }

    pub(super) fn is_port(&self) -> bool {
        self.port.is_some()
    }

    fn is_without_host(&self) -> bool {
        self.port.as_ref().is_some_and(|port| port.without_host_since.is_some())
    }

    /// Makes the port's epoll wait for the next change. What changed is seen by reading and writing.
    fn take_changes(&self) {
        if let Some(port) = &self.port {
            let _ = epoll::wait(&port.changes, &mut [NO_EVENT], Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        }
    }

    /// After a hello: waits until the guest knows of the host that sent it, since nothing can be written before; false
    /// if that host does not seem to be there.
    pub(super) fn wait_for_host(&mut self) -> bool {
        let deadline = Instant::now() + LOSS_GRACE;
        loop {
            let has_gone = self.host_has_gone();
            let Some(port) = &mut self.port else { return true };
            port.watch_room(&self.fd, has_gone);
            if !has_gone {
                return true;
            }
            if deadline <= Instant::now() {
                // Whatever is read later is not of this host's first words.
                while matches!(self.read_some(), Ok(true)) {}
                return false;
            }
            self.wait_idle(Some(deadline));
        }
    }

    /// Between connections: waits until there is input, or until the time is over. May return early.
    pub(super) fn wait_idle(&self, until: Option<Instant>) {
        let timeout = until.map(|until| timeout_until(Some(until)));
        // An interrupted wait is an early return.
        let _ = match &self.port {
            Some(port) => epoll::wait(&port.changes, &mut [NO_EVENT], timeout.as_ref()),
            None => poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], timeout.as_ref()),
        };
    }

    fn note_host(&mut self) {
        if let Some(port) = &mut self.port {
            port.without_host_since = None;
            port.watch_room(&self.fd, false);
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The time that is left, rounded up to whole milliseconds so that a wait never ends too early; a day if there is no
/// deadline.
pub(crate) fn timeout_until(deadline: Option<Instant>) -> Timespec {
    const DAY: Duration = Duration::from_secs(86_400);
    let left = deadline.map_or(DAY, |deadline| deadline.saturating_duration_since(Instant::now()).min(DAY));
    let left = left + Duration::from_micros(1);
    Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    }
}
