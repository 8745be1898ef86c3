//! What the gateway itself says and does not say.

use std::{io::Write, net::Ipv4Addr};

use smoltcp::wire::{
    DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress, EthernetProtocol, Icmpv4DstUnreachable,
    IpProtocol,
};

use super::{guest::Datagram, raw, start};
use crate::network::user::addresses;

#[test]
fn gateway_and_name_server_answer_pings() {
    let (_shim, mut guest) = start();
    for from in [addresses::GATEWAY, addresses::RESOLVER] {
        assert_eq!(guest.ping(from), Datagram::EchoReply { from, data: b"hello".to_vec() });
    }
}

#[test]
fn ping_of_anything_else_is_refused() {
    let (shim, mut guest) = start();
    for peer in [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(10, 0, 2, 7), Ipv4Addr::LOCALHOST] {
        let answer = guest.ping(peer);
        let expected = (Icmpv4DstUnreachable::CommProhibited, peer);
        assert!(
            matches!(&answer, Datagram::Unreachable { reason, peer, .. } if (*reason, *peer) == expected),
            "{answer:?}"
        );
    }
    assert_eq!(shim.counters().refused, 3);
}

#[test]
fn dhcp_gives_the_address_and_all_that_belongs_to_it() {
    let (_shim, mut guest) = start();
    let mut ask = |message_type, requested_ip| {
        let request = DhcpRepr {
            message_type,
            transaction_id: 0x1234_5678,
            secs: 0,
            client_hardware_address: super::guest::MAC,
            client_ip: Ipv4Addr::UNSPECIFIED,
            your_ip: Ipv4Addr::UNSPECIFIED,
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: None,
            subnet_mask: None,
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: true,
            requested_ip,
            client_identifier: None,
            server_identifier: None,
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        };
        let mut bytes = vec![0; request.buffer_len()];
        request.emit(&mut DhcpPacket::new_unchecked(&mut bytes[..])).unwrap();
        guest.send_udp(68, (addresses::GATEWAY, 67), &bytes);
        let Datagram::Udp { content, .. } = guest.next_datagram() else { panic!("no datagram") };
        let packet = DhcpPacket::new_checked(&content[..]).unwrap();
        let answer = DhcpRepr::parse(&packet).unwrap();
        assert_eq!(answer.transaction_id, 0x1234_5678);
        let mtu = packet.options().find(|option| option.kind == 26).map(|option| option.data.to_vec());
        let servers = answer.dns_servers.map(|list| list.to_vec());
        (answer.message_type, answer.your_ip, answer.router, answer.subnet_mask, servers, mtu)
    };
    let all = |message_type| {
        (
            message_type,
            addresses::GUEST,
            Some(addresses::GATEWAY),
            Some(addresses::MASK),
            Some(vec![addresses::RESOLVER]),
            Some(addresses::MTU.to_be_bytes().to_vec()),
        )
    };
    assert_eq!(ask(DhcpMessageType::Discover, None), all(DhcpMessageType::Offer));
    assert_eq!(ask(DhcpMessageType::Request, Some(addresses::GUEST)), all(DhcpMessageType::Ack));
    assert_eq!(ask(DhcpMessageType::Request, Some(Ipv4Addr::new(10, 0, 2, 16))).0, DhcpMessageType::Nak);
}

#[test]
fn frames_that_are_not_for_the_gateway_are_ignored() {
    let (shim, mut guest) = start();
    let good = super::guest::ip_frame(addresses::GATEWAY, IpProtocol::Icmp, b"not ICMP at all");
    let mut elsewhere = good.clone();
    elsewhere[..6].copy_from_slice(&EthernetAddress([0x52, 1, 1, 1, 1, 1]).0);
    let mut other_kind = good.clone();
    other_kind[12..14].copy_from_slice(&u16::from(EthernetProtocol::Ipv6).to_be_bytes());
    let mut other_sender = good.clone();
    other_sender[26..30].copy_from_slice(&[10, 0, 2, 99]);
    for frame in [&[][..], &[1], &elsewhere, &other_kind, &other_sender, &good[..20]] {
        guest.raw_frame(frame);
    }
    guest.ping(addresses::GATEWAY);
    let counters = shim.counters();
    assert!(counters.ignored >= 6, "{counters:?}");
}

#[test]
fn end_of_the_link_ends_the_process() {
    let (shim, guest) = start();
    shim.end(guest).unwrap();
}

#[test]
fn frame_that_announces_too_much_ends_the_process_with_an_error() {
    let (mut shim, mut qemu) = raw();
    qemu.write_all(&[0xff, 0xff, 0xff, 0xff, 0]).unwrap();
    let outcome = shim.thread.take().unwrap().join().unwrap();
    assert!(outcome.unwrap_err().to_string().contains("4294967295"));
}
