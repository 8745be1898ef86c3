//! UDP flows: a socket of the host's for each port of the machine and destination, for as long as it is used.
//!
//! The sockets are connected, so that only the destination can answer and its refusals are heard. Questions to the
//! machine's name server go to one of the host's, and to the next one when it does not answer.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType},
};
use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{IPV4_HEADER_LEN, Icmpv4DstUnreachable, IpProtocol, Ipv4Repr, UDP_HEADER_LEN, UdpPacket, UdpRepr},
};

use super::{
    core::{Core, Token},
    policy::{Guard, Verdict},
    replies,
    tcp::FlowKey,
};
use crate::network::user::addresses;

/// Flows at once.
pub(super) const MAX_FLOWS: usize = 512;

/// How long a flow lives that was never answered.
const UNANSWERED_LIMIT: Duration = Duration::from_secs(30);

/// How long a flow lives that was answered, since its last datagram (RFC 4787 asks for two minutes).
const ANSWERED_LIMIT: Duration = Duration::from_secs(120);

/// How long a name server may take before the next one is asked.
const RESOLVER_LIMIT: Duration = Duration::from_secs(2);

/// Longest question that is kept to ask it again, in bytes. A question is a few hundred.
const MAX_QUESTION_BYTES: usize = 2048;

/// Datagrams passed to the machine before other flows get their turn.
const MAX_BATCH: usize = 32;

/// The flows of the machine.
pub(super) struct UdpTable {
    flows: HashMap<u64, Flow>,
    numbers: HashMap<FlowKey, u64>,
    /// For one datagram.
    buffer: Vec<u8>,
    /// Fewer than the constant if this process may not have as many descriptors.
    max_flows: usize,
}

struct Flow {
    key: FlowKey,
    host: OwnedFd,
    last_active: Instant,
    answered: bool,
    timer: Option<Instant>,
    /// Of a flow to the name server.
    question: Option<Question>,
}

/// What was asked last, until it is answered.
struct Question {
    content: Vec<u8>,
    /// Name servers that were asked.
    asked: usize,
    pending: bool,
}

/// What becomes of a flow.
#[derive(PartialEq)]
enum Next {
    Stay,
    ComeBack,
    /// The host's side refused what was sent last.
    Refused,
}

impl UdpTable {
    pub(super) fn new(max_flows: usize) -> Self {
        Self {
            flows: HashMap::new(),
            numbers: HashMap::new(),
            buffer: vec![0; replies::MAX_DATAGRAM_BYTES],
            max_flows,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    /// Takes a datagram from the machine. `content` is what follows its IP header.
    pub(super) fn datagram(&mut self, core: &mut Core, guard: &mut Guard, ip: &Ipv4Repr, content: &[u8]) {
        let checksums = ChecksumCapabilities::default();
        let parsed = UdpPacket::new_checked(content).and_then(|packet| {
            let header = UdpRepr::parse(&packet, &ip.src_addr.into(), &ip.dst_addr.into(), &checksums)?;
            Ok((header, packet.payload()))
        });
        let Ok((header, payload)) = parsed else {
            core.counters.ignored += 1;
            return;
        };
        let key = FlowKey { guest_port: header.src_port, peer: ip.dst_addr, peer_port: header.dst_port };
        // Each datagram is judged: what is the host's own may change while a flow lives.
        let verdict = guard.judge(key.peer, key.peer_port);
        let (address, asks) = match verdict {
            Verdict::Direct(address) => (address, false),
            Verdict::Resolver(address) => (address, true),
            Verdict::Refused => {
                core.counters.refused += 1;
                let reason = Icmpv4DstUnreachable::CommProhibited;
                return replies::unreachable(&mut core.out, ip, content, reason);
            }
        };
        let number = match self.numbers.get(&key) {
            Some(number) => *number,
            None => match self.open(core, key, address, asks) {
                Some(number) => number,
                None => {
                    core.counters.dropped += 1;
                    return;
                }
            },
        };
        let Some(flow) = self.flows.get_mut(&number) else { return };
        flow.last_active = core.now;
        if let Some(question) = &mut flow.question {
            question.content = payload[..payload.len().min(MAX_QUESTION_BYTES)].to_vec();
            question.pending = payload.len() <= MAX_QUESTION_BYTES;
            question.asked = 1;
        }
        let sent = send(&flow.host, payload);
        flow.arm(core, number);
        if sent == Err(Errno::CONNREFUSED) {
            // The refusal of an earlier datagram; this one has not been sent.
            let _ = send(&flow.host, payload);
            self.refused(core, guard, number);
        }
    }

    fn open(&mut self, core: &mut Core, key: FlowKey, address: SocketAddr, asks: bool) -> Option<u64> {
        if self.flows.len() >= self.max_flows {
            let oldest =
                self.flows.iter().min_by_key(|(_, flow)| flow.last_active).map(|(number, _)| *number);
            self.remove(core, oldest?);
        }
        let host = connect(address).ok()?;
        let number = core.number();
        core.watch(&host, Token::Udp(number)).ok()?;
        let question = asks.then(|| Question { content: Vec::new(), asked: 0, pending: false });
        let flow = Flow { key, host, last_active: core.now, answered: false, timer: None, question };
        self.numbers.insert(key, number);
        self.flows.insert(number, flow);
        Some(number)
    }

    /// Something arrived for a flow, or there is room again.
    pub(super) fn ready(&mut self, core: &mut Core, guard: &mut Guard, number: u64) {
        let Some(flow) = self.flows.get_mut(&number) else { return };
        match flow.take_answers(core, number, &mut self.buffer) {
            Next::Stay => {}
            Next::ComeBack => core.come_back(Token::Udp(number)),
            Next::Refused => self.refused(core, guard, number),
        }
    }

    /// A flow's time has come.
    pub(super) fn timer(&mut self, core: &mut Core, guard: &mut Guard, number: u64) {
        let Some(flow) = self.flows.get_mut(&number) else { return };
        flow.timer = None;
        if flow.last_active + flow.limit() <= core.now {
            self.remove(core, number);
            return;
        }
        if flow.question.as_ref().is_some_and(|question| question.pending) {
            self.ask_next(core, guard, number);
        }
        if let Some(flow) = self.flows.get_mut(&number) {
            flow.arm(core, number);
        }
    }

    /// Ends the flows that the policy no longer allows.
    pub(super) fn enforce(&mut self, core: &mut Core, guard: &mut Guard) {
        let numbers: Vec<u64> = self
            .flows
            .iter()
            .filter(|(_, flow)| guard.judge(flow.key.peer, flow.key.peer_port) == Verdict::Refused)
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            self.remove(core, number);
        }
    }

    fn refused(&mut self, core: &mut Core, guard: &mut Guard, number: u64) {
        let Some(flow) = self.flows.get(&number) else { return };
        if flow.question.is_some() {
            return self.ask_next(core, guard, number);
        }
        // What the machine's kernel needs to find the socket: the ports, in a header like the one that was refused.
        let mut quoted = [0; UDP_HEADER_LEN];
        let mut header = UdpPacket::new_unchecked(&mut quoted[..]);
        header.set_src_port(flow.key.guest_port);
        header.set_dst_port(flow.key.peer_port);
        header.set_len(UDP_HEADER_LEN.try_into().unwrap_or_default());
        let ip = Ipv4Repr {
            src_addr: addresses::GUEST,
            dst_addr: flow.key.peer,
            next_header: IpProtocol::Udp,
            payload_len: UDP_HEADER_LEN,
            hop_limit: 64,
        };
        replies::unreachable(&mut core.out, &ip, &quoted, Icmpv4DstUnreachable::PortUnreachable);
    }

    /// Asks the next name server what the last one did not answer.
    fn ask_next(&mut self, core: &mut Core, guard: &mut Guard, number: u64) {
        let Some(flow) = self.flows.get_mut(&number) else { return };
        let Some(question) = &mut flow.question else { return };
        if question.asked >= guard.resolver_count() {
            question.pending = false;
            return;
        }
        question.asked += 1;
        guard.next_resolver();
        let Verdict::Resolver(address) = guard.judge(flow.key.peer, flow.key.peer_port) else { return };
        let Ok(host) = connect(address) else { return };
        if core.watch(&host, Token::Udp(number)).is_ok() {
            // A failure comes back as a refusal or as silence.
            let _ = send(&host, &question.content);
            flow.host = host;
        }
    }

    fn remove(&mut self, core: &mut Core, number: u64) {
        if let Some(mut flow) = self.flows.remove(&number) {
            self.numbers.remove(&flow.key);
            core.set_timer(Token::Udp(number), &mut flow.timer, None);
        }
    }
}

impl Flow {
    fn limit(&self) -> Duration {
        if self.answered && self.question.is_none() { ANSWERED_LIMIT } else { UNANSWERED_LIMIT }
    }

    /// Sets the timer for the end, or for the next name server. One that is set is left: it asks again.
    fn arm(&mut self, core: &mut Core, number: u64) {
        let pending = self.question.as_ref().is_some_and(|question| question.pending);
        let due = if pending { core.now + RESOLVER_LIMIT } else { self.last_active + self.limit() };
        if pending || self.timer.is_none() {
            core.set_timer(Token::Udp(number), &mut self.timer, Some(due));
        }
    }

    fn take_answers(&mut self, core: &mut Core, number: u64, buffer: &mut [u8]) -> Next {
        for _ in 0..MAX_BATCH {
            if !core.out.has_room() {
                return Next::ComeBack;
            }
            match rustix::net::recv(&self.host, &mut *buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
                Ok((count, whole)) => {
                    // One that does not fit the link is lost, as on any link.
                    if whole > buffer.len() {
                        core.counters.dropped += 1;
                        continue;
                    }
                    self.answered = true;
                    self.last_active = core.now;
                    let source: (Ipv4Addr, u16) = (self.key.peer, self.key.peer_port);
                    replies::datagram(&mut core.out, source, self.key.guest_port, &buffer[..count]);
                    if let Some(question) = &mut self.question
                        && std::mem::take(&mut question.pending)
                    {
                        self.arm(core, number);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::CONNREFUSED) => return Next::Refused,
                // Other errors of the network (no route) are as good as silence, and the next call may do better.
                Err(_) => return Next::Stay,
            }
        }
        Next::ComeBack
    }
}

fn connect(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

fn send(socket: &OwnedFd, content: &[u8]) -> Result<(), Errno> {
    rustix::net::send(socket, content, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).map(|_| ())
}

// One more than what fits would be cut off unseen.
const _: () =
    assert!(replies::MAX_DATAGRAM_BYTES + IPV4_HEADER_LEN + UDP_HEADER_LEN <= addresses::MTU as usize);
