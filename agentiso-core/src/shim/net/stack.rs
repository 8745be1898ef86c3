//! The TCP machinery of one flow: an interface and a socket of smoltcp, which speak to the machine as the flow's
//! other end.
//!
//! One each per flow, rather than one interface for all: finding a segment's flow is then one look-up however many
//! there are, and nothing one flow does can touch another.

use std::net::Ipv4Addr;

use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::tcp,
    time::{Duration, Instant},
    wire::{EthernetProtocol, HardwareAddress, IpCidr, IpEndpoint, Ipv4Packet, TcpPacket, TcpSeqNumber},
};

use super::link::Outbound;
use crate::network::user::addresses;

/// How long a forwarded connection waits for the machine to answer.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// See the module.
pub(super) struct Stack {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// The number of the first byte that the machine may send which [`Stack::receive`] has not handed out. Unknown
    /// until its SYN has come.
    next: Option<TcpSeqNumber>,
    buffer_bytes: usize,
}

impl Stack {
    /// Waits for the machine's SYN as `local`, an address of the internet. `None` if no flow can have that end.
    pub(super) fn listening(local: (Ipv4Addr, u16), buffer_bytes: usize, now: Instant) -> Option<Self> {
        let mut stack = Self::new(local.0, buffer_bytes, now);
        stack.socket().listen(IpEndpoint::new(local.0.into(), local.1)).ok()?;
        Some(stack)
    }

    /// Connects to a port of the machine, from a port of the gateway.
    pub(super) fn connecting(guest: u16, local: u16, buffer_bytes: usize, now: Instant) -> Option<Self> {
        let mut stack = Self::new(addresses::GATEWAY, buffer_bytes, now);
        let socket = stack.sockets.get_mut::<tcp::Socket<'_>>(stack.handle);
        let remote = IpEndpoint::new(addresses::GUEST.into(), guest);
        let local = IpEndpoint::new(addresses::GATEWAY.into(), local);
        socket.connect(stack.interface.context(), remote, local).ok()?;
        socket.set_timeout(Some(CONNECT_LIMIT));
        Some(stack)
    }

    fn new(address: Ipv4Addr, buffer_bytes: usize, now: Instant) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = random_seed();
        let mut interface = Interface::new(config, &mut Wire { packet: None, out: None }, now);
        // There is room for one: the list is new.
        interface.update_ip_addrs(|list| list.push(IpCidr::new(address.into(), 32)).unwrap_or_default());
        let buffer = || tcp::SocketBuffer::new(vec![0; buffer_bytes]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        // Whoever writes to the other end decides what goes together.
        socket.set_nagle_enabled(false);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Self { interface, sockets, handle, next: None, buffer_bytes }
    }

    pub(super) fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Hands out bytes of the machine that came in order; `take` says how many of them it took.
    ///
    /// # Errors
    /// There are none, and none will come.
    pub(super) fn receive<R>(&mut self, take: impl FnOnce(&[u8]) -> (usize, R)) -> Result<R, tcp::RecvError> {
        let (count, result) = self.socket().recv(|bytes| {
            let (count, result) = take(bytes);
            (count, (count, result))
        })?;
        self.next = self.next.map(|next| next + count);
        Ok(result)
    }

    /// Whether a segment of the machine fits into the buffer. smoltcp takes the window of our SYN, which is not scaled,
    /// for one that is, until the first segment after it: what it lets through then is more than its buffer
    /// holds, and it panics. Nobody who keeps to the window that was said to them comes that far.
    fn fits(&mut self, packet: &[u8]) -> bool {
        let Some((start, is_syn, bytes)) = segment_of(packet) else { return false };
        if matches!(self.socket().state(), tcp::State::Listen | tcp::State::SynSent) {
            if is_syn {
                self.next = Some(start + 1);
            }
            // Bytes that come with it are passed over.
            return true;
        }
        bytes == 0 || self.next.is_some_and(|next| start + bytes <= next + self.buffer_bytes)
    }

    /// Takes a packet in, if there is one, and sends what there is to send and room for.
    pub(super) fn poll(&mut self, now: Instant, packet: Option<&[u8]>, out: &mut Outbound) {
        let packet = packet.filter(|packet| self.fits(packet));
        self.interface.poll(now, &mut Wire { packet, out: Some(out) }, &mut self.sockets);
        if self.socket().timeout().is_some() && self.socket().state() == tcp::State::Established {
            // From here on a machine may be paused for any time.
            self.socket().set_timeout(None);
        }
    }

    /// When to poll again at the latest, counted from now; zero if there was no room to send all.
    pub(super) fn delay(&mut self, now: Instant) -> Option<Duration> {
        self.interface.poll_delay(now, &self.sockets)
    }
}

/// Of a packet with a TCP segment: the number of its first byte, whether it is a SYN, and how many bytes it carries.
fn segment_of(packet: &[u8]) -> Option<(TcpSeqNumber, bool, usize)> {
    let packet = Ipv4Packet::new_checked(packet).ok()?;
    let segment = TcpPacket::new_checked(packet.payload()).ok()?;
    Some((segment.seq_number(), segment.syn(), segment.payload().len()))
}

/// Sequence numbers begin at random. Where the kernel has no randomness for us, the hasher's keys have some.
fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

/// The link as smoltcp sees it, for one call.
struct Wire<'a> {
    packet: Option<&'a [u8]>,
    out: Option<&'a mut Outbound>,
}

struct Incoming<'a>(&'a [u8]);

struct Outgoing<'a>(&'a mut Outbound);

impl Device for Wire<'_> {
    type RxToken<'b>
        = Incoming<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = Outgoing<'b>
    where
        Self: 'b;

    fn receive(&mut self, _now: Instant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        // An answer to a packet is sent whether or not there is room: it is one at most.
        let out = self.out.as_deref_mut()?;
        Some((Incoming(self.packet.take()?), Outgoing(out)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Outgoing<'_>> {
        self.out.as_deref_mut().filter(|out| out.has_room()).map(Outgoing)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = addresses::MTU.into();
        capabilities
    }
}

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        self.0.frame(EthernetProtocol::Ipv4, len, fill)
    }
}
