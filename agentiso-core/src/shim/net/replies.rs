//! Single packets to the machine: refusals, datagrams, echoes.

use std::net::Ipv4Addr;

use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{
        EthernetProtocol, IPV4_HEADER_LEN, Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, IpProtocol,
        Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UDP_HEADER_LEN, UdpPacket,
        UdpRepr,
    },
};

use super::link::Outbound;
use crate::network::user::addresses;

/// How often a packet may be passed on; nothing passes these on.
const HOP_LIMIT: u8 = 64;

/// Most bytes of the refused packet's content that a refusal quotes, so that it fits 576 bytes (RFC 1812, 4.3.2.3).
const QUOTED_BYTES: usize = 576 - IPV4_HEADER_LEN - 8 - IPV4_HEADER_LEN;

/// Longest datagram that fits the link, in bytes.
pub(super) const MAX_DATAGRAM_BYTES: usize = addresses::MTU as usize - IPV4_HEADER_LEN - UDP_HEADER_LEN;

/// Sends a packet with `len` bytes of content from `source` to the machine.
pub(super) fn packet(
    out: &mut Outbound,
    source: Ipv4Addr,
    protocol: IpProtocol,
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) {
    let header = Ipv4Repr {
        src_addr: source,
        dst_addr: addresses::GUEST,
        next_header: protocol,
        payload_len: len,
        hop_limit: HOP_LIMIT,
    };
    out.frame(EthernetProtocol::Ipv4, IPV4_HEADER_LEN + len, |buffer| {
        header.emit(&mut Ipv4Packet::new_unchecked(&mut *buffer), &ChecksumCapabilities::default());
        fill(&mut buffer[IPV4_HEADER_LEN..]);
    });
}

/// Answers a segment as a host does that has no such connection. A reset is never answered.
pub(super) fn reset(out: &mut Outbound, ip: &Ipv4Repr, segment: &TcpRepr<'_>) {
    if segment.control == TcpControl::Rst {
        return;
    }
    // RFC 9293, section 3.10.7.1.
    let (seq_number, ack_number) = match segment.ack_number {
        Some(ack) => (ack, None),
        None => (TcpSeqNumber(0), Some(segment.seq_number + segment.segment_len())),
    };
    let answer = TcpRepr {
        src_port: segment.dst_port,
        dst_port: segment.src_port,
        control: TcpControl::Rst,
        seq_number,
        ack_number,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    packet(out, ip.dst_addr, IpProtocol::Tcp, answer.buffer_len(), |buffer| {
        answer.emit(
            &mut TcpPacket::new_unchecked(buffer),
            &ip.dst_addr.into(),
            &addresses::GUEST.into(),
            &ChecksumCapabilities::default(),
        );
    });
}

/// Says that a packet will not arrive. `content` is what followed its IP header.
pub(super) fn unreachable(out: &mut Outbound, ip: &Ipv4Repr, content: &[u8], reason: Icmpv4DstUnreachable) {
    let header = Ipv4Repr { payload_len: content.len(), ..*ip };
    let answer =
        Icmpv4Repr::DstUnreachable { reason, header, data: &content[..content.len().min(QUOTED_BYTES)] };
    icmp(out, addresses::GATEWAY, &answer);
}

/// Sends an ICMP message.
pub(super) fn icmp(out: &mut Outbound, source: Ipv4Addr, message: &Icmpv4Repr<'_>) {
    packet(out, source, IpProtocol::Icmp, message.buffer_len(), |buffer| {
        message.emit(&mut Icmpv4Packet::new_unchecked(buffer), &ChecksumCapabilities::default());
    });
}

/// Sends a datagram, at most [`MAX_DATAGRAM_BYTES`].
pub(super) fn datagram(out: &mut Outbound, source: (Ipv4Addr, u16), port: u16, content: &[u8]) {
    let header = UdpRepr { src_port: source.1, dst_port: port };
    packet(out, source.0, IpProtocol::Udp, UDP_HEADER_LEN + content.len(), |buffer| {
        header.emit(
            &mut UdpPacket::new_unchecked(buffer),
            &source.0.into(),
            &addresses::GUEST.into(),
            content.len(),
            |place| place.copy_from_slice(content),
            &ChecksumCapabilities::default(),
        );
    });
}
