//! A machine: Ethernet over the stream socket, with a TCP of its own.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    net::Ipv4Addr,
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec};
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::tcp,
    wire::{
        EthernetAddress, EthernetFrame, EthernetProtocol, HardwareAddress, Icmpv4DstUnreachable,
        Icmpv4Packet, Icmpv4Repr, IpCidr, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
    },
};

use super::DEADLINE;
use crate::network::user::addresses;

/// The machine's MAC address.
pub(super) const MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 1, 2, 3]);

/// Buffers of its sockets, in bytes.
const BUFFER_BYTES: usize = 512 * 1024;

/// See the module.
pub(super) struct Guest {
    interface: Interface,
    link: Link,
    pub(super) sockets: SocketSet<'static>,
    next_port: u16,
    start: Instant,
}

/// What came that is neither ARP nor TCP.
#[derive(Debug, PartialEq)]
pub(super) enum Datagram {
    Udp { from: (Ipv4Addr, u16), to: u16, content: Vec<u8> },
    EchoReply { from: Ipv4Addr, data: Vec<u8> },
    Unreachable { reason: Icmpv4DstUnreachable, peer: Ipv4Addr, quoted: Vec<u8> },
}

struct Link {
    stream: UnixStream,
    unread: Vec<u8>,
    frames: VecDeque<Vec<u8>>,
    datagrams: VecDeque<Datagram>,
    ended: bool,
}

impl Guest {
    pub(super) fn new(stream: UnixStream) -> Self {
        let link = Link {
            stream,
            unread: Vec::new(),
            frames: VecDeque::new(),
            datagrams: VecDeque::new(),
            ended: false,
        };
        let mut link = link;
        let config = Config::new(HardwareAddress::Ethernet(MAC));
        let mut interface = Interface::new(config, &mut link, smoltcp::time::Instant::ZERO);
        interface.update_ip_addrs(|list| {
            list.push(IpCidr::new(addresses::GUEST.into(), addresses::PREFIX)).unwrap()
        });
        interface.routes_mut().add_default_ipv4_route(addresses::GATEWAY).unwrap();
        Self { interface, link, sockets: SocketSet::new(vec![]), next_port: 40_000, start: Instant::now() }
    }

    /// Lets the machine work until something is so.
    pub(super) fn until<T>(&mut self, mut so: impl FnMut(&mut Self) -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            self.turn(Duration::from_millis(10));
            if let Some(value) = so(self) {
                return value;
            }
            assert!(begin.elapsed() < DEADLINE, "waited too long");
        }
    }

    /// Lets the machine work for a while.
    pub(super) fn work_for(&mut self, time: Duration) {
        let begin = Instant::now();
        while begin.elapsed() < time {
            self.turn(Duration::from_millis(5));
        }
    }

    fn turn(&mut self, wait: Duration) {
        self.link.fill(Duration::ZERO);
        let now =
            smoltcp::time::Instant::from_micros(i64::try_from(self.start.elapsed().as_micros()).unwrap());
        let before = self.link.frames.len();
        self.interface.poll(now, &mut self.link, &mut self.sockets);
        let delay =
            self.interface.poll_delay(now, &self.sockets).map_or(wait, |delay| wait.min(delay.into()));
        if before == 0 {
            self.link.fill(delay);
        }
    }

    fn socket_handle(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER_BYTES]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    pub(super) fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Begins to connect.
    pub(super) fn begin_connect(&mut self, address: Ipv4Addr, port: u16) -> SocketHandle {
        let handle = self.socket_handle();
        self.next_port += 1;
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(self.interface.context(), (address, port), self.next_port).unwrap();
        handle
    }

    /// Connects; `None` if that is refused.
    pub(super) fn connect(&mut self, address: Ipv4Addr, port: u16) -> Option<SocketHandle> {
        let handle = self.begin_connect(address, port);
        self.until(|guest| match guest.tcp(handle).state() {
            tcp::State::Established => Some(Some(handle)),
            tcp::State::Closed => Some(None),
            _ => None,
        })
    }

    /// Listens on a port.
    pub(super) fn listen(&mut self, port: u16) -> SocketHandle {
        let handle = self.socket_handle();
        self.tcp(handle).listen(port).unwrap();
        handle
    }

    pub(super) fn established(&mut self, handle: SocketHandle) {
        self.until(|guest| (guest.tcp(handle).state() == tcp::State::Established).then_some(()));
    }

    /// Sends all of it, and waits until the other end has it.
    pub(super) fn send(&mut self, handle: SocketHandle, mut bytes: &[u8]) {
        self.until(|guest| {
            let socket = guest.tcp(handle);
            bytes = &bytes[socket.send_slice(bytes).unwrap()..];
            (bytes.is_empty() && socket.send_queue() == 0).then_some(())
        });
    }

    /// Receives exactly that many bytes.
    pub(super) fn receive(&mut self, handle: SocketHandle, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.until(|guest| {
            let mut chunk = vec![0; (count - bytes.len()).min(65536)];
            let got = guest.tcp(handle).recv_slice(&mut chunk).unwrap();
            bytes.extend_from_slice(&chunk[..got]);
            (bytes.len() == count).then_some(())
        });
        bytes
    }

    /// Waits until the other end has said all; `false` if it reset the connection.
    pub(super) fn ended_well(&mut self, handle: SocketHandle) -> bool {
        self.until(|guest| match guest.tcp(handle).state() {
            tcp::State::CloseWait | tcp::State::TimeWait | tcp::State::Closing => Some(true),
            tcp::State::Closed => Some(false),
            _ => None,
        })
    }

    /// Sends an echo request, and returns what comes next that is no TCP.
    pub(super) fn ping(&mut self, address: Ipv4Addr) -> Datagram {
        let message = Icmpv4Repr::EchoRequest { ident: 7, seq_no: 1, data: b"hello" };
        let mut content = vec![0; message.buffer_len()];
        message.emit(&mut Icmpv4Packet::new_unchecked(&mut content), &ChecksumCapabilities::default());
        self.packet(address, IpProtocol::Icmp, &content);
        self.next_datagram()
    }

    /// Sends a datagram.
    pub(super) fn send_udp(&mut self, from: u16, to: (Ipv4Addr, u16), content: &[u8]) {
        let header = UdpRepr { src_port: from, dst_port: to.1 };
        let mut bytes = vec![0; header.header_len() + content.len()];
        header.emit(
            &mut UdpPacket::new_unchecked(&mut bytes[..]),
            &addresses::GUEST.into(),
            &to.0.into(),
            content.len(),
            |place| place.copy_from_slice(content),
            &ChecksumCapabilities::default(),
        );
        self.packet(to.0, IpProtocol::Udp, &bytes);
    }

    /// Sends an IPv4 packet.
    pub(super) fn packet(&mut self, to: Ipv4Addr, next_header: IpProtocol, content: &[u8]) {
        let frame = ip_frame(to, next_header, content);
        self.link.send(&frame);
    }

    pub(super) fn raw_frame(&mut self, frame: &[u8]) {
        self.link.send(frame);
    }

    pub(super) fn next_datagram(&mut self) -> Datagram {
        self.until(|guest| guest.link.datagrams.pop_front())
    }

    /// Whether the shim has closed the link.
    pub(super) fn link_ended(&mut self) -> bool {
        self.link.fill(Duration::from_millis(1));
        self.link.ended
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Only so that ending a machine reads as one.
        let _ = self.link.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// A frame from the machine to the gateway with an IPv4 packet in it.
pub(super) fn ip_frame(to: Ipv4Addr, next_header: IpProtocol, content: &[u8]) -> Vec<u8> {
    let header = Ipv4Repr {
        src_addr: addresses::GUEST,
        dst_addr: to,
        next_header,
        payload_len: content.len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0; 14 + header.buffer_len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    frame.set_src_addr(MAC);
    frame.set_dst_addr(EthernetAddress(addresses::GATEWAY_MAC));
    frame.set_ethertype(EthernetProtocol::Ipv4);
    header.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[14..]), &ChecksumCapabilities::default());
    bytes.extend_from_slice(content);
    bytes
}

impl Link {
    fn send(&mut self, frame: &[u8]) {
        let mut bytes = u32::try_from(frame.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend_from_slice(frame);
        // As QEMU does, go on reading while the other end takes nothing.
        self.stream.set_nonblocking(true).unwrap();
        let (mut rest, begin) = (&bytes[..], Instant::now());
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.fill(Duration::from_millis(1)),
                Err(error) => panic!("the shim is gone: {error}"),
            }
            assert!(begin.elapsed() < DEADLINE, "the shim takes no frames");
        }
    }

    fn fill(&mut self, wait: Duration) {
        let wait = Timespec { tv_sec: 0, tv_nsec: wait.subsec_nanos().into() };
        let mut waits = [PollFd::new(&self.stream, PollFlags::IN)];
        rustix::event::poll(&mut waits, Some(&wait)).unwrap();
        if waits[0].revents().is_empty() {
            return;
        }
        let mut chunk = vec![0; 256 * 1024];
        match (&self.stream).read(&mut chunk) {
            Ok(0) => self.ended = true,
            Ok(count) => self.unread.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.ended = true,
        }
        let mut rest = &self.unread[..];
        while let Some((header, bytes)) = rest.split_first_chunk::<4>() {
            let len = u32::from_be_bytes(*header) as usize;
            let Some(frame) = bytes.get(..len) else { break };
            match datagram(frame) {
                Some(datagram) => self.datagrams.push_back(datagram),
                None => self.frames.push_back(frame.to_vec()),
            }
            rest = &bytes[len..];
        }
        self.unread = rest.to_vec();
    }
}

/// What is neither ARP nor TCP, with every checksum right.
fn datagram(bytes: &[u8]) -> Option<Datagram> {
    let checksums = ChecksumCapabilities::default();
    let frame = EthernetFrame::new_checked(bytes).unwrap();
    let packet = Ipv4Packet::new_checked(frame.payload()).ok().filter(|packet| packet.version() == 4)?;
    let header = Ipv4Repr::parse(&packet, &checksums).unwrap();
    let (from, to) = (header.src_addr.into(), header.dst_addr.into());
    match header.next_header {
        IpProtocol::Udp => {
            let packet = UdpPacket::new_checked(packet.payload()).unwrap();
            let udp = UdpRepr::parse(&packet, &from, &to, &checksums).unwrap();
            let (from, content) = ((header.src_addr, udp.src_port), packet.payload().to_vec());
            Some(Datagram::Udp { from, to: udp.dst_port, content })
        }
        IpProtocol::Icmp => {
            let packet = Icmpv4Packet::new_checked(packet.payload()).unwrap();
            match Icmpv4Repr::parse(&packet, &checksums).ok()? {
                Icmpv4Repr::EchoReply { data, .. } => {
                    Some(Datagram::EchoReply { from: header.src_addr, data: data.to_vec() })
                }
                Icmpv4Repr::DstUnreachable { reason, header, data } => {
                    Some(Datagram::Unreachable { reason, peer: header.dst_addr, quoted: data.to_vec() })
                }
                other => panic!("{other:?}"),
            }
        }
        _ => None,
    }
}

struct Frame(Vec<u8>);

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

struct Sender<'a>(&'a mut Link);

impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut frame = vec![0; len];
        let result = fill(&mut frame);
        self.0.send(&frame);
        result
    }
}

impl Device for Link {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _now: smoltcp::time::Instant) -> Option<(Frame, Sender<'_>)> {
        let frame = self.frames.pop_front()?;
        Some((Frame(frame), Sender(self)))
    }

    fn transmit(&mut self, _now: smoltcp::time::Instant) -> Option<Sender<'_>> {
        Some(Sender(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = usize::from(addresses::MTU) + 14;
        capabilities
    }
}
