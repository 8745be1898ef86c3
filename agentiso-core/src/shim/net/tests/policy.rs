//! What a machine may not reach, and changes of that while it runs.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use smoltcp::{socket::tcp::State, wire::Icmpv4DstUnreachable};

use super::{
    guest::{Datagram, Guest},
    internet,
    lab::{HOST, HOST_BROADCAST, HOST_OTHER, LINK_LOCAL, SERVER, echo, in_lab, shout},
    start,
};
use crate::network::{NetworkPolicy, user::addresses};

/// Everything on the host that a machine must not reach, with a server on each where there can be one.
fn forbidden() -> Vec<Ipv4Addr> {
    let mut forbidden = vec![Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 53), HOST, HOST_OTHER];
    for address in &forbidden {
        let listener = TcpListener::bind((*address, 80)).unwrap();
        let socket = UdpSocket::bind((*address, 99)).unwrap();
        thread::spawn(move || listener.incoming().for_each(|stream| echo(stream.unwrap())));
        thread::spawn(move || shout(&socket));
    }
    forbidden.extend([
        HOST_BROADCAST,
        LINK_LOCAL,
        Ipv4Addr::BROADCAST,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::new(0, 0, 0, 1),
        Ipv4Addr::new(224, 0, 0, 1),
        Ipv4Addr::new(255, 255, 255, 254),
        Ipv4Addr::new(10, 0, 2, 99),
        addresses::GATEWAY,
        addresses::RESOLVER,
    ]);
    forbidden
}

/// How a SYN to an address is answered: `true` if by anything but a refusal.
fn tcp_goes_through(guest: &mut Guest, address: Ipv4Addr) -> bool {
    guest.connect(address, 80).is_some()
}

fn udp_goes_through(guest: &mut Guest, address: Ipv4Addr) -> bool {
    guest.send_udp(5000, (address, 99), b"x");
    !matches!(
        guest.next_datagram(),
        Datagram::Unreachable { reason: Icmpv4DstUnreachable::CommProhibited, peer, .. } if peer == address
    )
}

#[test]
fn host_is_out_of_reach_with_internet_allowed() {
    in_lab("host_is_out_of_reach_with_internet_allowed", |world| {
        world.echo(80);
        world.udp(99);
        let (shim, mut guest) = start();
        shim.set_policy(internet(), &[]);
        assert!(tcp_goes_through(&mut guest, SERVER) && udp_goes_through(&mut guest, SERVER));
        let forbidden = forbidden();
        // Those that this machine's own TCP would not even send to are left to the test of single packets.
        let sendable = |address: &&Ipv4Addr| !address.is_unspecified() && !address.is_broadcast();
        for address in forbidden.iter().filter(sendable) {
            if !address.is_multicast() && *address != Ipv4Addr::new(10, 0, 2, 99) {
                assert!(!tcp_goes_through(&mut guest, *address), "TCP reached {address}");
            }
        }
        for address in forbidden {
            assert!(!udp_goes_through(&mut guest, address), "UDP reached {address}");
        }
        assert_eq!(shim.counters().tcp_flows, 1);
        assert_eq!(shim.counters().udp_flows, 1);
    });
}

#[test]
fn address_that_the_host_takes_later_is_out_of_reach() {
    in_lab("address_that_the_host_takes_later_is_out_of_reach", |world| {
        world.echo(80);
        world.udp(99);
        let (shim, mut guest) = start();
        shim.set_policy(internet(), &[]);
        assert!(tcp_goes_through(&mut guest, SERVER) && udp_goes_through(&mut guest, SERVER));
        let added = std::process::Command::new("ip")
            .args(["address", "add", "198.51.100.7/32", "dev", "lo"])
            .status()
            .unwrap();
        assert!(added.success());
        let _server = TcpListener::bind((SERVER, 80)).unwrap();
        assert!(!tcp_goes_through(&mut guest, SERVER));
        assert!(!udp_goes_through(&mut guest, SERVER));
    });
}

#[test]
fn nothing_is_reached_without_internet() {
    in_lab("nothing_is_reached_without_internet", |world| {
        world.echo(80);
        world.udp(99);
        let (shim, mut guest) = start();
        shim.set_policy(NetworkPolicy::default(), &["198.51.100.7"]);
        assert!(!tcp_goes_through(&mut guest, SERVER));
        assert!(!udp_goes_through(&mut guest, SERVER));
        assert!(guest.connect(addresses::RESOLVER, 53).is_none());
        guest.send_udp(5000, (addresses::RESOLVER, 53), b"who?");
        assert!(matches!(guest.next_datagram(), Datagram::Unreachable { .. }));
        assert_eq!(shim.counters().refused, 4);
    });
}

#[test]
fn process_begins_with_nothing_allowed() {
    let (shim, mut guest) = start();
    assert!(guest.connect(SERVER, 80).is_none());
    assert_eq!(shim.counters().refused, 1);
}

#[test]
fn only_allowed_ports_are_reached() {
    in_lab("only_allowed_ports_are_reached", |world| {
        world.echo(80);
        world.echo(443);
        world.udp(99);
        let (shim, mut guest) = start();
        shim.set_policy(NetworkPolicy { allowed_ports: vec![443], ..internet() }, &[]);
        assert!(guest.connect(SERVER, 443).is_some());
        assert!(guest.connect(SERVER, 80).is_none());
        assert!(!udp_goes_through(&mut guest, SERVER));
    });
}

#[test]
fn change_of_policy_keeps_forwards_and_what_is_still_allowed() {
    in_lab("change_of_policy_keeps_forwards_and_what_is_still_allowed", |world| {
        world.echo(80);
        world.echo(443);
        let (shim, mut guest) = start();
        shim.set_policy(internet(), &[]);
        let port = shim.forwarded(22);
        let server = guest.listen(22);
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        guest.established(server);
        let forbidden = guest.connect(SERVER, 80).unwrap();
        let allowed = guest.connect(SERVER, 443).unwrap();

        shim.set_policy(NetworkPolicy { allowed_ports: vec![443], ..internet() }, &[]);

        assert!(!guest.ended_well(forbidden));
        guest.send(allowed, b"still here");
        assert_eq!(guest.receive(allowed, 10), b"still here");

        shim.set_policy(NetworkPolicy::default(), &[]);

        assert!(!guest.ended_well(allowed));
        assert_eq!(guest.tcp(server).state(), State::Established);
        client.write_all(b"in").unwrap();
        assert_eq!(guest.receive(server, 2), b"in");
        guest.send(server, b"out");
        client.read_exact(&mut [0; 3]).unwrap();

        shim.set_policy(internet(), &[]);

        assert!(guest.connect(SERVER, 80).is_some());
        client.write_all(b"in").unwrap();
        assert_eq!(guest.receive(server, 2), b"in");
    });
}
