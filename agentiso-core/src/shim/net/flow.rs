//! One TCP flow: a socket of the host's, a stack towards the machine, and the bytes between them.

use std::{os::fd::OwnedFd, time::Instant};

use rustix::{io::Errno, net::sockopt};
use smoltcp::{
    phy::ChecksumCapabilities,
    socket::tcp::State,
    wire::{Icmpv4DstUnreachable, Ipv4Packet, Ipv4Repr, TcpPacket, TcpRepr},
};

use super::{
    core::{Core, Token},
    replies,
    stack::Stack,
    tcp::{FlowKey, is_own_connection},
};
use crate::types::GuestPort;

/// Times that bytes are moved before other flows get their turn.
const MAX_ROUNDS: usize = 8;

/// Who made the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The machine, to the internet.
    Guest,
    /// The machine, to its name server.
    Resolver,
    /// Someone on the host, through the forward of this port.
    Forward(GuestPort),
}

/// How far a flow has come.
pub(super) enum Stage {
    /// The host connects; the machine's SYN waits.
    Connecting {
        /// The whole packet.
        syn: Vec<u8>,
    },
    /// The stack speaks with the machine.
    Open(Box<Stack>),
}

/// How a flow ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Both sides have closed.
    Closed,
    /// Neither side is told.
    Silent,
    /// Both sides get a reset.
    Reset,
    /// The host could not connect.
    Failed(Errno),
}

/// See the module.
pub(super) struct Flow {
    pub(super) key: FlowKey,
    pub(super) origin: Origin,
    pub(super) host: OwnedFd,
    pub(super) stage: Stage,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// The host's side has sent its last byte.
    host_ended: bool,
    /// The machine has sent its last byte, and the host's side knows.
    guest_ended: bool,
    pub(super) last_active: Instant,
    pub(super) timer: Option<Instant>,
}

/// The host's side failed; whatever the reason, the machine gets a reset.
struct HostFailed;

impl Flow {
    pub(super) fn new(key: FlowKey, origin: Origin, host: OwnedFd, stage: Stage, now: Instant) -> Self {
        Self {
            key,
            origin,
            host,
            stage,
            readable: false,
            writable: false,
            host_ended: false,
            guest_ended: false,
            last_active: now,
            timer: None,
        }
    }

    /// Takes a segment from the machine.
    pub(super) fn segment(
        &mut self,
        core: &mut Core,
        token: Token,
        packet: &[u8],
        segment: &TcpPacket<&[u8]>,
    ) -> Option<Ending> {
        match &mut self.stage {
            // The machine gave up.
            Stage::Connecting { .. } if segment.rst() => Some(Ending::Silent),
            // It asks again, or anew.
            Stage::Connecting { syn } => {
                if segment.syn() {
                    *syn = packet.to_vec();
                }
                None
            }
            Stage::Open(_) => {
                self.last_active = core.now;
                self.pump(core, token, Some(packet))
            }
        }
    }

    /// The host's socket has connected, or failed to.
    pub(super) fn connected(&mut self, core: &mut Core, token: Token, buffer_bytes: usize) -> Option<Ending> {
        let Stage::Connecting { syn } = &mut self.stage else { return None };
        match sockopt::socket_error(&self.host) {
            Ok(Ok(())) => {}
            Ok(Err(error)) | Err(error) => return Some(Ending::Failed(error)),
        }
        match is_own_connection(&self.host) {
            Ok(own) if own && self.origin == Origin::Guest => {
                core.counters.refused += 1;
                return Some(Ending::Failed(Errno::CONNREFUSED));
            }
            Ok(_) => {}
            // Not connected yet: the event was about something else.
            Err(Errno::NOTCONN) => return None,
            Err(error) => return Some(Ending::Failed(error)),
        }
        let syn = std::mem::take(syn);
        let local = (self.key.peer, self.key.peer_port);
        let Some(stack) = Stack::listening(local, buffer_bytes, core.stack_time()) else {
            return Some(Ending::Reset);
        };
        self.stage = Stage::Open(Box::new(stack));
        self.last_active = core.now;
        self.pump(core, token, Some(&syn))
    }

    /// Moves everything that can be moved, starting with a packet from the machine if there is one.
    pub(super) fn pump(
        &mut self,
        core: &mut Core,
        token: Token,
        mut packet: Option<&[u8]>,
    ) -> Option<Ending> {
        let now = core.stack_time();
        let mut more = true;
        for _ in 0..MAX_ROUNDS {
            let Stage::Open(stack) = &mut self.stage else { return None };
            stack.poll(now, packet.take(), &mut core.out);
            match self.move_bytes() {
                Ok(moved) => more = moved,
                Err(HostFailed) => return Some(Ending::Reset),
            }
            if !more {
                break;
            }
            self.last_active = core.now;
        }
        let Stage::Open(stack) = &mut self.stage else { return None };
        let delay = stack.delay(now);
        let sent_all = delay.is_none_or(|delay| delay != smoltcp::time::Duration::ZERO);
        match stack.socket().state() {
            State::Closed if self.host_ended && self.guest_ended => return Some(Ending::Closed),
            State::Closed => return Some(Ending::Reset),
            // All has been said and acknowledged. The stack would only wait for a FIN to come again.
            State::TimeWait if self.guest_ended && sent_all => return Some(Ending::Closed),
            _ => {}
        }
        let due = if more || (!sent_all && !core.out.has_room()) {
            core.come_back(token);
            None
        } else {
            // At least a millisecond, so that a stack that always has something to do is no busy loop.
            delay.map(|delay| {
                core.now + std::time::Duration::from(delay).max(std::time::Duration::from_millis(1))
            })
        };
        // What fired is no longer in the set, but still remembered here.
        let mut held = self.timer.filter(|timer| *timer > core.now);
        core.set_timer(token, &mut held, due);
        self.timer = held;
        None
    }

    /// Moves bytes between socket and stack, and passes on which side has ended. Whether anything was done.
    fn move_bytes(&mut self) -> Result<bool, HostFailed> {
        let Stage::Open(stack) = &mut self.stage else { return Ok(false) };
        let socket = stack.socket();
        let mut moved = false;
        while self.readable && !self.host_ended && socket.can_send() {
            let outcome = socket.send(|space| match rustix::io::read(&self.host, &mut *space) {
                Ok(count) => (count, Ok(count)),
                Err(error) => (0, Err(error)),
            });
            match outcome {
                Ok(Ok(0)) => {
                    self.host_ended = true;
                    socket.close();
                    moved = true;
                }
                Ok(Ok(_)) => moved = true,
                Ok(Err(Errno::INTR)) => {}
                Ok(Err(Errno::AGAIN)) => self.readable = false,
                Ok(Err(_)) => return Err(HostFailed),
                Err(_) => break,
            }
        }
        while self.writable && stack.socket().can_recv() {
            let outcome = stack.receive(|bytes| match super::write_to_peer(&self.host, bytes) {
                Ok(count) => (count, Ok(())),
                Err(error) => (0, Err(error)),
            });
            match outcome {
                Ok(Ok(())) => moved = true,
                Ok(Err(Errno::INTR)) => {}
                Ok(Err(Errno::AGAIN)) => self.writable = false,
                Ok(Err(_)) => return Err(HostFailed),
                Err(_) => break,
            }
        }
        let socket = stack.socket();
        let guest_said_all =
            matches!(socket.state(), State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
        if guest_said_all && !self.guest_ended && socket.recv_queue() == 0 {
            self.guest_ended = true;
            rustix::net::shutdown(&self.host, rustix::net::Shutdown::Write).map_err(|_| HostFailed)?;
        }
        Ok(moved)
    }

    /// Tells both sides how it ended.
    pub(super) fn end(mut self, core: &mut Core, ending: Ending) {
        if ending != Ending::Closed {
            // Closing then sends a reset instead of pretending that all was said.
            let _ = sockopt::set_socket_linger(&self.host, Some(std::time::Duration::ZERO));
        }
        match &mut self.stage {
            Stage::Open(stack) if ending == Ending::Reset => {
                stack.socket().abort();
                stack.poll(core.stack_time(), None, &mut core.out);
            }
            Stage::Connecting { syn } => refuse(core, syn, ending),
            Stage::Open(_) => {}
        }
    }
}

/// Answers a SYN that waited in vain.
fn refuse(core: &mut Core, syn: &[u8], ending: Ending) {
    let checksums = ChecksumCapabilities::default();
    let Ok(packet) = Ipv4Packet::new_checked(syn) else { return };
    let Ok(ip) = Ipv4Repr::parse(&packet, &checksums) else { return };
    match ending {
        Ending::Reset | Ending::Failed(Errno::CONNREFUSED | Errno::CONNRESET) => {
            let Ok(segment) = TcpPacket::new_checked(packet.payload()) else { return };
            let parsed = TcpRepr::parse(&segment, &ip.src_addr.into(), &ip.dst_addr.into(), &checksums);
            if let Ok(segment) = parsed {
                replies::reset(&mut core.out, &ip, &segment);
            }
        }
        // The machine's own time limit says the same.
        Ending::Silent | Ending::Closed | Ending::Failed(Errno::TIMEDOUT) => {}
        Ending::Failed(_) => {
            let reason = Icmpv4DstUnreachable::HostProhibited;
            replies::unreachable(&mut core.out, &ip, packet.payload(), reason);
        }
    }
}
