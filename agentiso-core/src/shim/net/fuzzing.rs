//! A machine that sends any frames, against the whole network process but its epoll's waiting.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    sync::atomic::{AtomicU64, Ordering},
};

use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, Icmpv4Packet, IpProtocol, Ipv4Packet, TcpPacket, TcpSeqNumber, UdpPacket,
};

use super::{Shim, link::Progress};
use crate::{network::user::addresses, types::GuestPort};

/// Bytes of an Ethernet header.
const HEADER: usize = 14;

/// More frames than one input is worth.
const MAX_FRAMES: usize = 64;

/// A port of the machine that a connection of the host is forwarded to.
const GUEST_PORT: u64 = 22;

/// Bits of the first byte of each frame: what is made right about it, so that what is wrong gets further.
const MEND_CHECKSUMS: u8 = 1;
/// Address it as the machine's frames are.
const MEND_ADDRESSES: u8 = 2;
/// Make it a segment of the forwarded connection.
const MEND_CONNECTION: u8 = 4;

/// Has a machine send frames: `flags`, `length` (two bytes, little-endian), and that many bytes, over and over. An odd
/// first byte of the input has it send the rest as a bare stream instead, lengths included.
///
/// # Panics
/// A frame that is not for the gateway opened a connection, or more are under way than there can be.
pub fn network(bytes: &[u8]) {
    // Without sockets there is nothing to be tested.
    let _ = run(bytes);
}

fn run(bytes: &[u8]) -> io::Result<()> {
    let Some((kind, bytes)) = bytes.split_first() else { return Ok(()) };
    let (mut qemu, link) = UnixStream::pair()?;
    qemu.set_nonblocking(true)?;
    let mut shim = Shim::new(OwnedFd::from(link), OwnedFd::from(control()?))?;
    if kind & 1 == 1 {
        let _ = qemu.write(bytes)?;
        while shim.round(true)? == Progress::More {}
        return Ok(());
    }
    let (_client, accepted) = connection()?;
    let guest = GuestPort::new(GUEST_PORT).map_err(io::Error::other)?;
    shim.tcp.forward(&mut shim.core, guest, accepted);
    let mut seen = Seen::default();
    let mut rest = bytes;
    for _ in 0..MAX_FRAMES {
        let Some(([flags, low, high], after)) = rest.split_first_chunk::<3>() else { break };
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(after.len());
        let (frame, after) = after.split_at(length);
        rest = after;
        let frame = mended(frame, *flags, &seen);
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX).to_be_bytes();
        if qemu.write(&[&length[..], &frame].concat())? < frame.len() + length.len() {
            break;
        }
        if shim.round(true)? == Progress::Ended {
            break;
        }
        seen.learn(&mut qemu)?;
    }
    // The forwarded one; whatever the machine opens is refused.
    assert!(shim.tcp.len() <= 1 && shim.udp.len() == 0, "a connection that no policy allows");
    Ok(())
}

/// A control socket that nobody connects to, with a name that no file has.
fn control() -> io::Result<UnixListener> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("agentiso-fuzz-{}-{number}", std::process::id());
    UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)
}

fn connection() -> io::Result<(TcpStream, OwnedFd)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (accepted, _) = listener.accept()?;
    accepted.set_nonblocking(true)?;
    Ok((client, accepted.into()))
}

/// What the machine knows of the forwarded connection.
#[derive(Default)]
struct Seen {
    port: u16,
    next: Option<TcpSeqNumber>,
    buffer: Vec<u8>,
}

impl Seen {
    /// Reads what was sent to the machine.
    fn learn(&mut self, qemu: &mut UnixStream) -> io::Result<()> {
        let mut bytes = [0; 4096];
        match qemu.read(&mut bytes) {
            Ok(count) => self.buffer.extend_from_slice(&bytes[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        while let Some((length, rest)) = self.buffer.split_first_chunk::<4>() {
            let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
            let Some(frame) = rest.get(..length) else { break };
            let segment = Ipv4Packet::new_checked(frame.get(HEADER..).unwrap_or_default()).ok();
            if let Some(packet) = segment.filter(|packet| packet.next_header() == IpProtocol::Tcp)
                && let Ok(segment) = TcpPacket::new_checked(packet.payload())
            {
                self.port = segment.src_port();
                self.next = Some(segment.seq_number() + segment.segment_len());
            }
            self.buffer.drain(..4 + length);
        }
        Ok(())
    }
}

fn mended(frame: &[u8], flags: u8, seen: &Seen) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let Some((header, content)) = frame.split_at_mut_checked(HEADER) else { return frame };
    if flags & MEND_ADDRESSES != 0 {
        let mut header = EthernetFrame::new_unchecked(header);
        header.set_dst_addr(smoltcp::wire::EthernetAddress(addresses::GATEWAY_MAC));
        if content.first() == Some(&0x45) {
            header.set_ethertype(EthernetProtocol::Ipv4);
        }
    }
    let Ok(mut packet) = Ipv4Packet::new_checked(content) else { return frame };
    if flags & MEND_ADDRESSES != 0 {
        packet.set_src_addr(addresses::GUEST);
    }
    if flags & MEND_CONNECTION != 0 {
        packet.set_dst_addr(addresses::GATEWAY);
        packet.set_next_header(IpProtocol::Tcp);
    }
    let (from, to) = (packet.src_addr().into(), packet.dst_addr().into());
    let protocol = packet.next_header();
    let content = packet.payload_mut();
    match protocol {
        IpProtocol::Tcp if TcpPacket::new_checked(&*content).is_ok() => {
            let mut segment = TcpPacket::new_unchecked(content);
            if flags & MEND_CONNECTION != 0 {
                segment.set_src_port(u16::try_from(GUEST_PORT).unwrap_or_default());
                segment.set_dst_port(seen.port);
                if let Some(next) = seen.next {
                    segment.set_ack_number(next);
                }
            }
            if flags & MEND_CHECKSUMS != 0 {
                segment.fill_checksum(&from, &to);
            }
        }
        IpProtocol::Udp if flags & MEND_CHECKSUMS != 0 && UdpPacket::new_checked(&*content).is_ok() => {
            UdpPacket::new_unchecked(content).fill_checksum(&from, &to);
        }
        IpProtocol::Icmp if flags & MEND_CHECKSUMS != 0 && Icmpv4Packet::new_checked(&*content).is_ok() => {
            Icmpv4Packet::new_unchecked(content).fill_checksum();
        }
        _ => {}
    }
    if flags & MEND_CHECKSUMS != 0 {
        packet.fill_checksum();
    }
    frame
}
