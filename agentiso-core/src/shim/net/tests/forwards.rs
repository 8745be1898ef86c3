//! Forwarded ports. They need no privilege: the host's side is this process's own loopback.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream},
};

use smoltcp::socket::tcp::State;

use super::{DEADLINE, guest_port, host_port, start};
use crate::network::user::{addresses, protocol::Reply};

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

#[test]
fn forward_carries_both_directions_from_the_gateway() {
    let (shim, mut guest) = start();
    let port = shim.forwarded(80);
    let server = guest.listen(80);
    let mut client = connect(port);
    guest.established(server);
    let peer = guest.tcp(server).remote_endpoint().unwrap().addr;
    client.write_all(b"question").unwrap();
    let question = guest.receive(server, 8);
    guest.send(server, b"answer");
    let mut answer = [0; 6];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(
        (question.as_slice(), &answer, peer),
        (&b"question"[..], b"answer", addresses::GATEWAY.into())
    );
}

#[test]
fn forward_listens_on_both_loopback_addresses_and_on_no_other() {
    let (shim, mut guest) = start();
    let port = shim.forwarded(80);
    let server = guest.listen(80);
    let _client = TcpStream::connect((Ipv6Addr::LOCALHOST, port)).unwrap();
    guest.established(server);
    // Another loopback address stands for every other address of the host.
    assert!(TcpStream::connect((Ipv4Addr::new(127, 0, 0, 2), port)).is_err());
}

#[test]
fn end_of_the_host_side_leaves_the_other_direction_open() {
    let (shim, mut guest) = start();
    let server = guest.listen(80);
    let mut client = connect(shim.forwarded(80));
    guest.established(server);
    client.write_all(b"all").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(guest.ended_well(server));
    assert_eq!(guest.receive(server, 3), b"all");
    guest.send(server, b"late answer");
    guest.tcp(server).close();
    guest.until(|guest| (guest.tcp(server).state() == State::Closed).then_some(()));
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "late answer");
    shim.until_no_flow(&mut guest);
}

#[test]
fn reset_by_the_machine_reaches_the_host() {
    let (shim, mut guest) = start();
    let server = guest.listen(80);
    let mut client = connect(shim.forwarded(80));
    guest.established(server);
    guest.tcp(server).abort();
    shim.until_no_flow(&mut guest);
    let outcome = client.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(outcome, Err(ErrorKind::ConnectionReset));
}

#[test]
fn port_that_nobody_listens_on_in_the_machine_resets_the_connection() {
    let (shim, mut guest) = start();
    let mut client = connect(shim.forwarded(81));
    let outcome = guest.until(|_| {
        client.set_nonblocking(true).unwrap();
        client.read(&mut [0]).err().map(|error| error.kind()).filter(|kind| *kind != ErrorKind::WouldBlock)
    });
    assert_eq!(outcome, ErrorKind::ConnectionReset);
    assert_eq!(shim.counters().tcp_flows, 0);
}

#[test]
fn machine_that_has_sent_nothing_yet_is_found() {
    let (shim, mut guest) = start();
    let port = shim.forwarded(80);
    let client = connect(port);
    let server = guest.listen(80);
    // Its first frame is the answer to who has its address.
    guest.established(server);
    drop(client);
}

#[test]
fn taken_port_is_refused_and_changes_nothing() {
    let (shim, _guest) = start();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    assert_eq!(shim.forward(80, Some(port)), Reply::PortTaken { port: host_port(port) });
    assert!(shim.forwards().is_empty());
}

#[test]
fn port_taken_on_ipv6_alone_is_refused_too() {
    let (shim, _guest) = start();
    let taken = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    assert_eq!(shim.forward(80, Some(port)), Reply::PortTaken { port: host_port(port) });
    assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok());
}

#[test]
fn guest_port_is_forwarded_once() {
    let (shim, _guest) = start();
    let host = host_port(shim.forwarded(80));
    assert_eq!(shim.forward(80, None), Reply::AlreadyForwarded { host });
    assert_eq!(shim.forwards(), [(guest_port(80), host)].into());
}

#[test]
fn removed_forward_closes_its_connections_and_frees_its_port() {
    let (shim, mut guest) = start();
    let (port, other_port) = (shim.forwarded(80), shim.forwarded(81));
    let (server, other_server) = (guest.listen(80), guest.listen(81));
    let (mut client, mut other_client) = (connect(port), connect(other_port));
    guest.established(server);
    guest.established(other_server);

    shim.remove_forward(80);

    assert_eq!(client.read(&mut [0]).map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
    assert!(!guest.ended_well(server));
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
    assert_eq!(shim.forward(80, Some(port)), Reply::Forwarded { host: host_port(port) });
    // The other forward's connection has noticed nothing.
    other_client.write_all(b"still").unwrap();
    assert_eq!(guest.receive(other_server, 5), b"still");
}

#[test]
fn removing_what_is_not_forwarded_has_no_effect() {
    let (shim, _guest) = start();
    shim.remove_forward(80);
    assert!(shim.forwards().is_empty());
}

#[test]
fn forwards_are_bounded() {
    let (shim, _guest) = start();
    for port in 1..=64 {
        shim.forwarded(port);
    }
    assert!(matches!(shim.forward(65, None), Reply::Failed { .. }));
}

#[test]
fn connections_past_the_limit_wait_for_their_turn() {
    let (shim, mut guest) = start();
    let port = shim.forwarded(80);
    let limit = super::super::tcp::MAX_FORWARDED;
    let mut clients: Vec<TcpStream> = (0..limit + 40).map(|_| connect(port)).collect();
    assert_eq!(shim.counters().tcp_flows, limit as u64);
    // Nobody listens: all go, those that waited too, and none holds on to its place.
    guest.until(|_| {
        clients.retain_mut(|client| {
            client.set_nonblocking(true).unwrap();
            client.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        });
        clients.is_empty().then_some(())
    });
    assert_eq!(shim.counters().tcp_flows, 0);
    let server = guest.listen(80);
    clients.push(connect(port));
    guest.established(server);
}
