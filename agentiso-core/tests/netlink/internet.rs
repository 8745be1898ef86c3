//! What machines reach outside.

use std::net::{Ipv4Addr, TcpListener};

use agentiso_core::network::{Network, NetworkPolicy};

use crate::{
    fixture::{State, counted, forward, in_namespace, internet, internet_on, start},
    guest::{BRIEFLY, Namespace, accept, connect, is_reset, talk, udp},
};

fn server(internet: &Namespace, port: u16) -> TcpListener {
    internet.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap())
}

#[test]
fn internet_is_reached_when_allowed_and_by_the_hosts_address() {
    in_namespace(async || {
        let outside = internet::connect_host();
        let web = server(&outside, 443);
        let state = State::new();
        let network = state.open().await;
        let allowed = start(&network, &state, &internet_on()).await;
        let other = start(&network, &state, &NetworkPolicy::default()).await;

        let mut here = allowed.connect((internet::FAR, 443)).unwrap();
        let (mut there, peer) = accept(&web);
        assert_eq!(*peer.ip(), internet::HOST);
        assert!(talk(&mut here, &mut there));
        assert!(allowed.pings(internet::FAR));
        assert!(other.connect((internet::FAR, 443)).is_err());
        assert!(!other.pings(internet::FAR));
        assert!(counted("TCP that is not allowed") > 0 && counted("not allowed") > 0);
        assert!(allowed.connect((internet::HOST, 443)).is_err(), "the host itself");
        assert!(outside.run(|| connect((allowed.address, 80))).is_err());
    });
}

#[test]
fn allowed_ports_alone_are_reached() {
    in_namespace(async || {
        let outside = internet::connect_host();
        let _servers = (server(&outside, 443), server(&outside, 80));
        let state = State::new();
        let network = state.open().await;
        let policy = NetworkPolicy { allowed_ports: vec![443], ..internet_on() };
        let guest = start(&network, &state, &policy).await;

        assert!(guest.connect((internet::FAR, 443)).is_ok());
        assert!(guest.connect((internet::FAR, 80)).is_err());
        assert!(!guest.pings(internet::FAR));
    });
}

#[test]
fn change_of_policy_ends_what_it_forbids_and_nothing_else() {
    in_namespace(async || {
        let outside = internet::connect_host();
        let (web, other) = (server(&outside, 443), server(&outside, 80));
        let state = State::new();
        let network = state.open().await;
        let guest = start(&network, &state, &internet_on()).await;
        let mut secure = guest.connect((internet::FAR, 443)).unwrap();
        let mut secure_there = accept(&web).0;
        let mut plain = guest.connect((internet::FAR, 80)).unwrap();
        let mut plain_there = accept(&other).0;

        let some = NetworkPolicy { allowed_ports: vec![443], ..internet_on() };
        network.update_policy(&guest.record, &some).await.unwrap();
        assert!(talk(&mut secure, &mut secure_there));
        assert!(!talk(&mut plain, &mut plain_there));

        network.update_policy(&guest.record, &NetworkPolicy::default()).await.unwrap();
        assert!(!talk(&mut secure, &mut secure_there));
        assert!(guest.connect((internet::FAR, 443)).is_err());
    });
}

#[test]
fn names_are_asked_of_the_resolver() {
    in_namespace(async || {
        let outside = internet::connect_host();
        let resolver = outside.run(|| udp(53));
        let state = State::new();
        let network = state.open().await;
        let policy = NetworkPolicy { allowed_ports: vec![443], ..internet_on() };
        let guest = start(&network, &state, &policy).await;
        let (socket, gateway) = (guest.udp(0), Ipv4Addr::new(10, 99, 0, 1));
        socket.set_read_timeout(Some(BRIEFLY * 3)).unwrap();

        socket.send_to(b"where?", (gateway, 53)).unwrap();
        let mut heard = [0; 16];
        let (length, peer) = resolver.recv_from(&mut heard).unwrap();
        assert_eq!(&heard[..length], b"where?");
        resolver.send_to(b"there", peer).unwrap();
        let (length, from) = socket.recv_from(&mut heard).unwrap();
        assert_eq!((&heard[..length], from), (&b"there"[..], (gateway, 53).into()));

        network.update_policy(&guest.record, &NetworkPolicy::default()).await.unwrap();
        socket.send_to(b"where?", (gateway, 53)).unwrap();
        assert!(resolver.recv_from(&mut heard).is_err());
    });
}

#[test]
fn switching_off_tells_both_sides_and_leaves_forwards_and_other_machines() {
    in_namespace(async || {
        let outside = internet::connect_host();
        let web = server(&outside, 443);
        let state = State::new();
        let network = state.open().await;
        let guest = start(&network, &state, &internet_on()).await;
        let other = start(&network, &state, &internet_on()).await;
        let listener = guest.listen(80);
        let port = forward(&network, &guest.record, 80).await.get();
        let mut forwarded = connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let mut forwarded_there = accept(&listener).0;
        let mut sending = guest.connect((internet::FAR, 443)).unwrap();
        let mut sending_there = accept(&web).0;
        let mut waiting = guest.connect((internet::FAR, 443)).unwrap();
        let mut waiting_there = accept(&web).0;
        let mut kept = other.connect((internet::FAR, 443)).unwrap();
        let mut kept_there = accept(&web).0;
        assert!(talk(&mut sending, &mut sending_there) && talk(&mut waiting, &mut waiting_there));

        network.update_policy(&guest.record, &NetworkPolicy::default()).await.unwrap();

        assert!(is_reset(&mut sending), "the machine speaks, and is told");
        assert!(is_reset(&mut waiting_there), "the other side speaks, and is told");
        assert!(talk(&mut forwarded, &mut forwarded_there));
        assert!(talk(&mut kept, &mut kept_there));

        network.update_policy(&guest.record, &internet_on()).await.unwrap();
        let mut again = guest.connect((internet::FAR, 443)).unwrap();
        assert!(talk(&mut again, &mut accept(&web).0));
        assert!(talk(&mut kept, &mut kept_there) && talk(&mut forwarded, &mut forwarded_there));
    });
}

#[test]
fn other_sides_of_a_machine_that_is_gone_are_told() {
    in_namespace(async || {
        let outside = internet::connect_host();
        let web = server(&outside, 443);
        let state = State::from_anywhere();
        let network = state.open().await;
        for _first_then_last in 0..2 {
            let guest = start(&network, &state, &internet_on()).await;
            let listener = guest.listen(80);
            let port = forward(&network, &guest.record, 80).await.get();
            let mut client = outside.run(|| connect((internet::HOST, port))).unwrap();
            let mut served = accept(&listener).0;
            let mut here = guest.connect((internet::FAR, 443)).unwrap();
            let mut there = accept(&web).0;
            assert!(talk(&mut here, &mut there) && talk(&mut client, &mut served));

            network.detach(&guest.record).await.unwrap();

            assert!(is_reset(&mut there) && is_reset(&mut client));
            // The second time round, it is not the last one.
            std::mem::forget(network.attach(state.spec(&internet_on())).await.unwrap());
        }
    });
}

#[test]
fn name_server_that_changes_is_asked_from_the_next_change_on() {
    in_namespace(async || {
        let outside = internet::connect_host();
        let listen = |address| {
            let socket = outside.run(|| std::net::UdpSocket::bind((address, 53)).unwrap());
            socket.set_read_timeout(Some(BRIEFLY * 3)).unwrap();
            socket
        };
        let (old, new) = (listen(internet::ADDRESS), listen(internet::FAR));
        let mut state = State::new();
        let guest = start(&state.open().await, &state, &internet_on()).await;
        let socket = guest.udp(0);
        socket.send_to(b"where?", (Ipv4Addr::new(10, 99, 0, 1), 53)).unwrap();
        assert!(old.recv_from(&mut [0; 16]).is_ok());

        state.config.resolver = Some(internet::FAR);
        let _again = state.open().await;

        guest.udp(0).send_to(b"where?", (Ipv4Addr::new(10, 99, 0, 1), 53)).unwrap();
        assert!(new.recv_from(&mut [0; 16]).is_ok());
    });
}
