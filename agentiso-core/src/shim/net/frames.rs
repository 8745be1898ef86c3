//! What a machine sends, taken apart: frames, ARP, IPv4, ICMP.

use std::net::Ipv4Addr;

use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{
        ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
        Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket,
    },
};

use super::{core::Core, dhcp, link::Outbound, policy::Guard, replies, tcp::TcpTable, udp::UdpTable};
use crate::network::user::addresses;

/// Takes a frame from the machine. What is malformed, or not meant for the gateway, has no effect.
pub(super) fn frame(
    core: &mut Core,
    guard: &mut Guard,
    tcp: &mut TcpTable,
    udp: &mut UdpTable,
    bytes: &[u8],
) {
    core.counters.frames += 1;
    let understood = EthernetFrame::new_checked(bytes).is_ok_and(|frame| match frame.ethertype() {
        _ if !is_for_gateway(frame.dst_addr()) => false,
        EthernetProtocol::Arp => arp(core, frame.payload()),
        EthernetProtocol::Ipv4 => ipv4(core, guard, tcp, udp, frame.src_addr(), frame.payload()),
        _ => false,
    });
    if !understood {
        core.counters.ignored += 1;
    }
}

/// Asks who has the machine's address, for a machine that has sent nothing yet.
pub(super) fn ask_for_guest(out: &mut Outbound) {
    let question = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(addresses::GATEWAY_MAC),
        source_protocol_addr: addresses::GATEWAY,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: addresses::GUEST,
    };
    out.frame_to(EthernetAddress::BROADCAST, EthernetProtocol::Arp, question.buffer_len(), |buffer| {
        question.emit(&mut ArpPacket::new_unchecked(buffer));
    });
}

fn is_for_gateway(destination: EthernetAddress) -> bool {
    destination == EthernetAddress(addresses::GATEWAY_MAC) || destination.is_broadcast()
}

fn arp(core: &mut Core, bytes: &[u8]) -> bool {
    let Ok(packet) = ArpPacket::new_checked(bytes) else { return false };
    let Ok(ArpRepr::EthernetIpv4 {
        operation,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    }) = ArpRepr::parse(&packet)
    else {
        return false;
    };
    if source_protocol_addr == addresses::GUEST {
        core.out.learn_guest(source_hardware_addr);
    }
    // A probe for an address that the machine thinks of taking comes from 0.0.0.0, and has an answer all the same.
    let known = [addresses::GATEWAY, addresses::RESOLVER].contains(&target_protocol_addr);
    if operation == ArpOperation::Request && known && source_hardware_addr.is_unicast() {
        let answer = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: EthernetAddress(addresses::GATEWAY_MAC),
            source_protocol_addr: target_protocol_addr,
            target_hardware_addr: source_hardware_addr,
            target_protocol_addr: source_protocol_addr,
        };
        core.out.frame_to(source_hardware_addr, EthernetProtocol::Arp, answer.buffer_len(), |buffer| {
            answer.emit(&mut ArpPacket::new_unchecked(buffer));
        });
    }
    true
}

fn ipv4(
    core: &mut Core,
    guard: &mut Guard,
    tcp: &mut TcpTable,
    udp: &mut UdpTable,
    sender: EthernetAddress,
    bytes: &[u8],
) -> bool {
    let Ok(packet) = Ipv4Packet::new_checked(bytes) else { return false };
    // Fragments are refused here: nothing on this link makes any, its packets being as long as packets can be.
    let Ok(header) = Ipv4Repr::parse(&packet, &ChecksumCapabilities::default()) else { return false };
    let content = packet.payload();
    if header.next_header == IpProtocol::Udp && is_for_dhcp(&header, content) {
        return dhcp::answer(&mut core.out, UdpPacket::new_unchecked(content).payload());
    }
    if header.src_addr != addresses::GUEST {
        return false;
    }
    core.out.learn_guest(sender);
    match header.next_header {
        IpProtocol::Tcp => {
            let whole = &bytes[..usize::from(packet.total_len())];
            tcp.segment(core, guard, &header, whole, content);
        }
        IpProtocol::Udp => udp.datagram(core, guard, &header, content),
        IpProtocol::Icmp => return icmp(core, &header, content),
        _ => refuse(core, &header, content),
    }
    true
}

fn is_for_dhcp(header: &Ipv4Repr, content: &[u8]) -> bool {
    let here = [Ipv4Addr::BROADCAST, addresses::GATEWAY].contains(&header.dst_addr);
    here && UdpPacket::new_checked(content).is_ok_and(|packet| packet.dst_port() == dhcp::SERVER_PORT)
}

/// The gateway and the name server answer pings. Nothing else does: sending them on takes rights on the host.
fn icmp(core: &mut Core, header: &Ipv4Repr, content: &[u8]) -> bool {
    let Ok(packet) = Icmpv4Packet::new_checked(content) else { return false };
    let Ok(Icmpv4Repr::EchoRequest { ident, seq_no, data }) =
        Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default())
    else {
        return false;
    };
    if [addresses::GATEWAY, addresses::RESOLVER].contains(&header.dst_addr) {
        let answer = Icmpv4Repr::EchoReply { ident, seq_no, data };
        replies::icmp(&mut core.out, header.dst_addr, &answer);
    } else {
        refuse(core, header, content);
    }
    true
}

fn refuse(core: &mut Core, header: &Ipv4Repr, content: &[u8]) {
    core.counters.refused += 1;
    replies::unreachable(&mut core.out, header, content, Icmpv4DstUnreachable::CommProhibited);
}
