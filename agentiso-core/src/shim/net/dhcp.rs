//! A DHCP server with one address to give: for machines whose init asks, where the agent configures nothing.

use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{
        DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress, EthernetProtocol,
        IPV4_HEADER_LEN, IpProtocol, Ipv4Packet, Ipv4Repr, UDP_HEADER_LEN, UdpPacket, UdpRepr,
    },
};

use super::link::Outbound;
use crate::network::user::addresses;

/// Where DHCP servers listen.
pub(super) const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// How long the address may be kept, in seconds. Nobody else ever gets it.
const LEASE_SECONDS: u32 = 24 * 60 * 60;

/// Option 6: name servers (RFC 2132, section 3.8).
const OPTION_RESOLVERS: u8 = 6;

/// Option 26: the interface's MTU (RFC 2132, section 5.1).
const OPTION_MTU: u8 = 26;

/// Answers a message to the server. Whether it was one.
pub(super) fn answer(out: &mut Outbound, message: &[u8]) -> bool {
    let Ok(packet) = DhcpPacket::new_checked(message) else { return false };
    let Ok(request) = DhcpRepr::parse(&packet) else { return false };
    let asks_for_other = request.requested_ip.is_some_and(|address| address != addresses::GUEST);
    let asks_other = request.server_identifier.is_some_and(|server| server != addresses::GATEWAY);
    let message_type = match request.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request if asks_other => return true,
        DhcpMessageType::Request if asks_for_other => DhcpMessageType::Nak,
        DhcpMessageType::Request | DhcpMessageType::Inform => DhcpMessageType::Ack,
        _ => return true,
    };
    let mtu = addresses::MTU.to_be_bytes();
    let resolver = addresses::RESOLVER.octets();
    let options =
        [DhcpOption { kind: OPTION_RESOLVERS, data: &resolver }, DhcpOption { kind: OPTION_MTU, data: &mtu }];
    let gives = message_type != DhcpMessageType::Nak;
    let reply = DhcpRepr {
        message_type,
        your_ip: if gives { addresses::GUEST } else { request.your_ip },
        server_ip: addresses::GATEWAY,
        router: gives.then_some(addresses::GATEWAY),
        subnet_mask: gives.then_some(addresses::MASK),
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(addresses::GATEWAY),
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: gives.then_some(LEASE_SECONDS),
        renew_duration: None,
        rebind_duration: None,
        additional_options: if gives { &options } else { &[] },
        ..request
    };
    send(out, &reply);
    true
}

/// Sends to everyone: whoever asks has no address yet.
fn send(out: &mut Outbound, reply: &DhcpRepr<'_>) {
    let checksums = ChecksumCapabilities::default();
    let everyone = std::net::Ipv4Addr::BROADCAST;
    let udp = UdpRepr { src_port: SERVER_PORT, dst_port: CLIENT_PORT };
    let ip = Ipv4Repr {
        src_addr: addresses::GATEWAY,
        dst_addr: everyone,
        next_header: IpProtocol::Udp,
        payload_len: UDP_HEADER_LEN + reply.buffer_len(),
        hop_limit: 64,
    };
    let len = IPV4_HEADER_LEN + ip.payload_len;
    out.frame_to(EthernetAddress::BROADCAST, EthernetProtocol::Ipv4, len, |buffer| {
        ip.emit(&mut Ipv4Packet::new_unchecked(&mut *buffer), &checksums);
        udp.emit(
            &mut UdpPacket::new_unchecked(&mut buffer[IPV4_HEADER_LEN..]),
            &addresses::GATEWAY.into(),
            &everyone.into(),
            reply.buffer_len(),
            // It fits: the buffer is as long as it says it will be.
            |place| reply.emit(&mut DhcpPacket::new_unchecked(place)).unwrap_or_default(),
            &checksums,
        );
    });
}
