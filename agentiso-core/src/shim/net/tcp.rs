//! TCP flows: between the machine and a host of the internet, or from a forwarded port to the machine.
//!
//! Each ends here twice. On the host's side it is an ordinary socket, on the machine's a [`Stack`]; bytes are moved
//! between the two. A connection of the machine's is first made on the host, and accepted only when that worked: the
//! machine sees a refusal as a refusal.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, sockopt},
};
use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{Icmpv4DstUnreachable, Ipv4Repr, TcpPacket, TcpRepr},
};

use super::{
    core::{Core, Token},
    flow::{Ending, Flow, Origin, Stage},
    policy::{Guard, Verdict},
    replies,
    stack::Stack,
};
use crate::network::user::addresses;
use crate::types::GuestPort;

/// Connections of the machine's, those not yet established included.
pub(super) const MAX_OUTWARD: usize = 1024;

/// Connections from forwarded ports. Apart from the others, so that a machine cannot keep its owner out.
pub(super) const MAX_FORWARDED: usize = 256;

/// How long the host may take to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(75);

/// A flow that nothing has gone through for this long gives way when the table is full.
const IDLE_LIMIT: Duration = Duration::from_secs(60);

/// Flows that get the large buffers; the others get the small ones, so that the sum stays bounded:
/// 2 * (64 * 256 KiB + 1216 * 32 KiB) = 108 MiB.
const LARGE_FLOWS: usize = 64;
/// Buffer in each direction, in bytes.
const LARGE_BUFFER_BYTES: usize = 256 * 1024;
/// Buffer in each direction, in bytes.
const SMALL_BUFFER_BYTES: usize = 32 * 1024;

/// First port of the gateway that forwarded connections come from.
const FIRST_LOCAL_PORT: u16 = 49152;

/// What tells a flow apart: a port of the machine and the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FlowKey {
    pub(super) guest_port: u16,
    pub(super) peer: Ipv4Addr,
    pub(super) peer_port: u16,
}

/// The flows of the machine.
pub(super) struct TcpTable {
    flows: HashMap<u64, Flow>,
    numbers: HashMap<FlowKey, u64>,
    last_local_port: u16,
    outward: usize,
    forwarded: usize,
    /// Fewer than the constants if this process may not have as many descriptors.
    max_outward: usize,
}

impl TcpTable {
    pub(super) fn new(max_outward: usize) -> Self {
        Self {
            flows: HashMap::new(),
            numbers: HashMap::new(),
            last_local_port: FIRST_LOCAL_PORT,
            outward: 0,
            forwarded: 0,
            max_outward,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether another forwarded connection may be accepted.
    pub(super) fn has_room_for_forwarded(&self) -> bool {
        self.forwarded < MAX_FORWARDED
    }

    /// Takes a segment from the machine. `packet` is the whole packet, `content` what follows the IP header.
    pub(super) fn segment(
        &mut self,
        core: &mut Core,
        guard: &mut Guard,
        ip: &Ipv4Repr,
        packet: &[u8],
        content: &[u8],
    ) {
        let Ok(segment) = TcpPacket::new_checked(content) else {
            core.counters.ignored += 1;
            return;
        };
        let key =
            FlowKey { guest_port: segment.src_port(), peer: ip.dst_addr, peer_port: segment.dst_port() };
        if let Some(&number) = self.numbers.get(&key) {
            if let Some(flow) = self.flows.get_mut(&number) {
                let ending = flow.segment(core, Token::Tcp(number), packet, &segment);
                self.settle(core, number, ending);
            }
            return;
        }
        let checksums = ChecksumCapabilities::default();
        let Ok(segment) = TcpRepr::parse(&segment, &ip.src_addr.into(), &ip.dst_addr.into(), &checksums)
        else {
            core.counters.ignored += 1;
            return;
        };
        let opens = segment.control == smoltcp::wire::TcpControl::Syn && segment.ack_number.is_none();
        if opens {
            self.open(core, guard, ip, packet, content, &segment, key);
        } else {
            replies::reset(&mut core.out, ip, &segment);
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one packet, in the forms its receiver has taken it apart into"
    )]
    fn open(
        &mut self,
        core: &mut Core,
        guard: &mut Guard,
        ip: &Ipv4Repr,
        packet: &[u8],
        content: &[u8],
        segment: &TcpRepr<'_>,
        key: FlowKey,
    ) {
        let (address, origin) = match guard.judge(key.peer, key.peer_port) {
            Verdict::Direct(address) => (address, Origin::Guest),
            Verdict::Resolver(address) => (address, Origin::Resolver),
            Verdict::Refused => {
                core.counters.refused += 1;
                return replies::reset(&mut core.out, ip, segment);
            }
        };
        if !self.make_room(core) {
            // No answer: the machine asks again.
            core.counters.dropped += 1;
            return;
        }
        match connect(address) {
            Ok(socket) => {
                let stage = Stage::Connecting { syn: packet.to_vec() };
                let limit = core.now + CONNECT_LIMIT;
                self.add(core, Flow::new(key, origin, socket, stage, core.now), Some(limit));
            }
            Err(Errno::CONNREFUSED) => replies::reset(&mut core.out, ip, segment),
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL) => {
                core.counters.dropped += 1;
            }
            // This code, unlike "host unreachable", makes Linux give up at once, with the same error for the program.
            Err(_) => {
                replies::unreachable(&mut core.out, ip, content, Icmpv4DstUnreachable::HostProhibited);
            }
        }
    }

    /// Takes a connection to a forwarded port. Dropping it resets it.
    pub(super) fn forward(&mut self, core: &mut Core, guest: GuestPort, socket: OwnedFd) {
        // Without the delay of small writes; failing that, with it.
        let _ = sockopt::set_tcp_nodelay(&socket, true);
        let Some(local_port) = self.free_local_port(guest) else {
            core.counters.dropped += 1;
            return;
        };
        let key = FlowKey { guest_port: guest.get(), peer: addresses::GATEWAY, peer_port: local_port };
        let size = self.buffer_bytes();
        if let Some(stack) = Stack::connecting(guest.get(), local_port, size, core.stack_time()) {
            let flow = Flow::new(key, Origin::Forward(guest), socket, Stage::Open(Box::new(stack)), core.now);
            if let Some(number) = self.add(core, flow, None) {
                self.pump(core, number);
            }
        }
    }

    fn free_local_port(&mut self, guest: GuestPort) -> Option<u16> {
        (0..=u16::MAX - FIRST_LOCAL_PORT).find_map(|_| {
            self.last_local_port = self.last_local_port.checked_add(1).unwrap_or(FIRST_LOCAL_PORT);
            let key = FlowKey {
                guest_port: guest.get(),
                peer: addresses::GATEWAY,
                peer_port: self.last_local_port,
            };
            (!self.numbers.contains_key(&key)).then_some(self.last_local_port)
        })
    }

    /// Something became possible on a flow's socket.
    pub(super) fn ready(&mut self, core: &mut Core, number: u64, readable: bool, writable: bool) {
        let size = self.buffer_bytes();
        let Some(flow) = self.flows.get_mut(&number) else { return };
        flow.readable |= readable;
        flow.writable |= writable;
        let ending = match &flow.stage {
            Stage::Connecting { .. } if flow.writable => flow.connected(core, Token::Tcp(number), size),
            Stage::Connecting { .. } => None,
            Stage::Open(_) => flow.pump(core, Token::Tcp(number), None),
        };
        self.settle(core, number, ending);
    }

    /// A flow's time has come, or there is room again.
    pub(super) fn pump(&mut self, core: &mut Core, number: u64) {
        let Some(flow) = self.flows.get_mut(&number) else { return };
        let ending = match flow.stage {
            // The host took too long. The machine has its own idea of how long it waits.
            Stage::Connecting { .. } => {
                (flow.last_active + CONNECT_LIMIT <= core.now).then_some(Ending::Silent)
            }
            Stage::Open(_) => flow.pump(core, Token::Tcp(number), None),
        };
        self.settle(core, number, ending);
    }

    /// Resets the connections of a forward.
    pub(super) fn end_forward(&mut self, core: &mut Core, guest: GuestPort) {
        self.abort_where(core, |flow| flow.origin == Origin::Forward(guest));
    }

    /// Resets the connections that the policy no longer allows.
    pub(super) fn enforce(&mut self, core: &mut Core, guard: &mut Guard) {
        self.abort_where(core, |flow| match flow.origin {
            Origin::Forward(_) => false,
            Origin::Guest | Origin::Resolver => {
                guard.judge(flow.key.peer, flow.key.peer_port) == Verdict::Refused
            }
        });
    }

    fn abort_where(&mut self, core: &mut Core, mut ends: impl FnMut(&Flow) -> bool) {
        let numbers: Vec<u64> =
            self.flows.iter().filter_map(|(number, flow)| ends(flow).then_some(*number)).collect();
        for number in numbers {
            self.settle(core, number, Some(Ending::Reset));
        }
    }

    fn add(&mut self, core: &mut Core, mut flow: Flow, limit: Option<std::time::Instant>) -> Option<u64> {
        let number = core.number();
        if core.watch(&flow.host, Token::Tcp(number)).is_err() {
            core.counters.dropped += 1;
            return None;
        }
        core.set_timer(Token::Tcp(number), &mut flow.timer, limit);
        match flow.origin {
            Origin::Forward(_) => self.forwarded += 1,
            Origin::Guest | Origin::Resolver => self.outward += 1,
        }
        self.numbers.insert(flow.key, number);
        self.flows.insert(number, flow);
        Some(number)
    }

    /// Removes a flow that has ended.
    fn settle(&mut self, core: &mut Core, number: u64, ending: Option<Ending>) {
        let Some(ending) = ending else { return };
        let Some(mut flow) = self.flows.remove(&number) else { return };
        self.numbers.remove(&flow.key);
        match flow.origin {
            Origin::Forward(_) => self.forwarded -= 1,
            Origin::Guest | Origin::Resolver => self.outward -= 1,
        }
        core.set_timer(Token::Tcp(number), &mut flow.timer, None);
        flow.end(core, ending);
    }

    fn buffer_bytes(&self) -> usize {
        if self.flows.len() < LARGE_FLOWS { LARGE_BUFFER_BYTES } else { SMALL_BUFFER_BYTES }
    }

    /// Makes room for one more connection of the machine's, at the cost of the one that has been idle longest.
    fn make_room(&mut self, core: &mut Core) -> bool {
        if self.outward < self.max_outward {
            return true;
        }
        let oldest = self
            .flows
            .iter()
            .filter(|(_, flow)| !matches!(flow.origin, Origin::Forward(_)))
            .min_by_key(|(_, flow)| flow.last_active)
            .filter(|(_, flow)| flow.last_active + IDLE_LIMIT <= core.now)
            .map(|(number, _)| *number);
        match oldest {
            Some(number) => {
                self.settle(core, number, Some(Ending::Reset));
                true
            }
            None => false,
        }
    }
}

/// Begins to connect on the host.
fn connect(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    // A peer that vanished is noticed at last, also when the machine does not ask.
    sockopt::set_socket_keepalive(&socket, true)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// Whether a connection ended up at one of the host's own addresses, which changed between decision and connect.
pub(super) fn is_own_connection(socket: &OwnedFd) -> Result<bool, Errno> {
    let own = SocketAddr::try_from(rustix::net::getsockname(socket)?)?;
    let peer = rustix::net::getpeername(socket)?.ok_or(Errno::NOTCONN)?;
    Ok(own.ip() == SocketAddr::try_from(peer)?.ip())
}
