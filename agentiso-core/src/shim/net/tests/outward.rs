//! Connections of a machine's to the internet.

use std::{
    io::{Read, Write},
    net::UdpSocket,
    sync::mpsc,
    thread,
    time::Duration,
};

use rustix::net::sockopt;
use smoltcp::{socket::tcp::State, wire::Icmpv4DstUnreachable};

use super::{
    guest::Datagram,
    internet,
    lab::{NOBODY, SERVER, in_lab, shout},
    start,
};
use crate::network::user::addresses;

#[test]
fn tcp_reaches_the_internet_and_comes_back() {
    in_lab("tcp_reaches_the_internet_and_comes_back", |world| {
        world.echo(80);
        let (shim, mut guest) = start();
        shim.set_policy(internet(), &[]);
        let socket = guest.connect(SERVER, 80).unwrap();
        guest.send(socket, b"there and back");
        assert_eq!(guest.receive(socket, 14), b"there and back");
        guest.tcp(socket).close();
        assert!(guest.ended_well(socket));
        shim.until_no_flow(&mut guest);
    });
}

#[test]
fn refused_connection_is_a_reset() {
    in_lab("refused_connection_is_a_reset", |_world| {
        let (shim, mut guest) = start();
        shim.set_policy(internet(), &[]);
        assert!(guest.connect(SERVER, 81).is_none());
        assert_eq!(shim.counters().tcp_flows, 0);
    });
}

#[test]
fn connection_that_nobody_answers_is_not_accepted() {
    in_lab("connection_that_nobody_answers_is_not_accepted", |_world| {
        let (shim, mut guest) = start();
        shim.set_policy(internet(), &[]);
        let socket = guest.begin_connect(NOBODY, 80);
        guest.work_for(Duration::from_millis(1500));
        assert_eq!(guest.tcp(socket).state(), State::SynSent);
        assert_eq!(shim.counters().tcp_flows, 1);
    });
}

#[test]
fn reset_by_the_server_reaches_the_machine() {
    in_lab("reset_by_the_server_reaches_the_machine", |world| {
        world.serve(80, |mut stream| {
            stream.read_exact(&mut [0]).unwrap();
            sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        });
        let (shim, mut guest) = start();
        shim.set_policy(internet(), &[]);
        let socket = guest.connect(SERVER, 80).unwrap();
        guest.tcp(socket).send_slice(b"x").unwrap();
        assert!(!guest.ended_well(socket));
    });
}

#[test]
fn reset_by_the_machine_reaches_the_server() {
    in_lab("reset_by_the_machine_reaches_the_server", |world| {
        let (seen, outcome) = mpsc::channel();
        world.serve(80, move |mut stream| seen.send(stream.read(&mut [0]).map_err(|e| e.kind())).unwrap());
        let (shim, mut guest) = start();
        shim.set_policy(internet(), &[]);
        let socket = guest.connect(SERVER, 80).unwrap();
        guest.tcp(socket).abort();
        shim.until_no_flow(&mut guest);
        let outcome = outcome.recv_timeout(super::DEADLINE).unwrap();
        assert_eq!(outcome, Err(std::io::ErrorKind::ConnectionReset));
    });
}

#[test]
fn machine_that_has_said_all_still_hears_the_answer() {
    in_lab("machine_that_has_said_all_still_hears_the_answer", |world| {
        world.serve(80, |mut stream| {
            let mut question = String::new();
            stream.read_to_string(&mut question).unwrap();
            stream.write_all(question.to_uppercase().as_bytes()).unwrap();
        });
        let (shim, mut guest) = start();
        shim.set_policy(internet(), &[]);
        let socket = guest.connect(SERVER, 80).unwrap();
        guest.send(socket, b"question");
        guest.tcp(socket).close();
        assert_eq!(guest.receive(socket, 8), b"QUESTION");
        assert!(guest.ended_well(socket));
    });
}

#[test]
fn udp_reaches_the_internet_and_comes_back() {
    in_lab("udp_reaches_the_internet_and_comes_back", |world| {
        world.udp(99);
        let (shim, mut guest) = start();
        shim.set_policy(internet(), &[]);
        // The last one is longer than a packet of the path, and goes in fragments.
        for content in [b"a".to_vec(), b"b".repeat(1400), b"c".repeat(60_000)] {
            guest.send_udp(5000, (SERVER, 99), &content);
            let content = content.to_ascii_uppercase();
            assert_eq!(guest.next_datagram(), Datagram::Udp { from: (SERVER, 99), to: 5000, content });
        }
        assert_eq!(shim.counters().udp_flows, 1);
    });
}

#[test]
fn refused_datagram_is_told_to_the_machine() {
    in_lab("refused_datagram_is_told_to_the_machine", |_world| {
        let (shim, mut guest) = start();
        shim.set_policy(internet(), &[]);
        guest.send_udp(5000, (SERVER, 98), b"anyone?");
        let Datagram::Unreachable { reason, peer, quoted } = guest.next_datagram() else {
            panic!("no refusal")
        };
        assert_eq!((reason, peer), (Icmpv4DstUnreachable::PortUnreachable, SERVER));
        assert_eq!(quoted[..4], [5000_u16.to_be_bytes(), 98_u16.to_be_bytes()].concat());
    });
}

#[test]
fn questions_go_to_the_hosts_resolver_even_on_its_loopback() {
    in_lab("questions_go_to_the_hosts_resolver_even_on_its_loopback", |_world| {
        let resolver = UdpSocket::bind("127.0.0.53:53").unwrap();
        thread::spawn(move || shout(&resolver));
        let (shim, mut guest) = start();
        shim.set_policy(internet(), &["127.0.0.53"]);
        guest.send_udp(5000, (addresses::RESOLVER, 53), b"who?");
        let content = b"WHO?".to_vec();
        assert_eq!(
            guest.next_datagram(),
            Datagram::Udp { from: (addresses::RESOLVER, 53), to: 5000, content }
        );
    });
}

#[test]
fn questions_go_to_the_resolver_over_tcp_too() {
    in_lab("questions_go_to_the_resolver_over_tcp_too", |world| {
        world.echo(53);
        let (shim, mut guest) = start();
        shim.set_policy(internet(), &["198.51.100.7"]);
        let socket = guest.connect(addresses::RESOLVER, 53).unwrap();
        guest.send(socket, b"who?");
        assert_eq!(guest.receive(socket, 4), b"who?");
    });
}

#[test]
fn next_resolver_is_asked_when_the_first_refuses_or_is_silent() {
    in_lab("next_resolver_is_asked_when_the_first_refuses_or_is_silent", |world| {
        world.udp(53);
        let (shim, mut guest) = start();
        for (port, first) in [(5000, "127.0.0.1"), (5001, "198.51.100.99")] {
            shim.set_policy(internet(), &[first, "198.51.100.7"]);
            guest.send_udp(port, (addresses::RESOLVER, 53), b"who?");
            let content = b"WHO?".to_vec();
            let expected = Datagram::Udp { from: (addresses::RESOLVER, 53), to: port, content };
            assert_eq!(guest.next_datagram(), expected, "after {first}");
        }
    });
}
