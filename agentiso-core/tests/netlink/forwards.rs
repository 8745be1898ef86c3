//! Ports of the host that lead into machines.

use std::net::Ipv4Addr;

use agentiso_core::{
    network::{Network, NetworkPolicy},
    types::GuestPort,
};

use crate::{
    fixture::{State, forward, in_namespace, internet, internet_on, start},
    guest::{accept, connect, sh, talk},
};

#[test]
fn forward_is_reached_from_loopback_and_not_from_outside() {
    in_namespace(async || {
        let outside = internet::connect_host();
        let state = State::new();
        let network = state.open().await;
        let guest = start(&network, &state, &NetworkPolicy::default()).await;
        let listener = guest.listen(80);
        let port = forward(&network, &guest.record, 80).await.get();

        let mut here = connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let (mut there, peer) = accept(&listener);

        assert_eq!(*peer.ip(), Ipv4Addr::new(10, 99, 0, 1));
        assert!(talk(&mut here, &mut there));
        assert!(outside.run(|| connect((internet::HOST, port))).is_err());
    });
}

#[test]
fn forward_from_anywhere_is_reached_from_outside_too() {
    in_namespace(async || {
        let outside = internet::connect_host();
        let state = State::from_anywhere();
        let network = state.open().await;
        let guest = start(&network, &state, &NetworkPolicy::default()).await;
        let listener = guest.listen(80);
        let port = forward(&network, &guest.record, 80).await.get();

        for mut client in [
            outside.run(|| connect((internet::HOST, port))).unwrap(),
            connect((internet::HOST, port)).unwrap(),
            connect((Ipv4Addr::LOCALHOST, port)).unwrap(),
        ] {
            assert!(talk(&mut client, &mut accept(&listener).0));
        }
        // Past the forward, a machine is not reached.
        outside.sh(&format!("ip route add 10.99.0.0/16 via {}", internet::HOST));
        assert!(outside.run(|| connect((guest.address, 80))).is_err());
    });
}

#[test]
fn removed_forward_ends_its_connections_and_no_other() {
    in_namespace(async || {
        let state = State::new();
        let network = state.open().await;
        let guest = start(&network, &state, &NetworkPolicy::default()).await;
        let (ending, staying) = (guest.listen(80), guest.listen(81));
        let port = forward(&network, &guest.record, 80).await.get();
        let other = forward(&network, &guest.record, 81).await.get();
        let mut ended = connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let mut ended_there = accept(&ending).0;
        let mut kept = connect((Ipv4Addr::LOCALHOST, other)).unwrap();
        let mut kept_there = accept(&staying).0;

        network.remove_forward(&guest.record, GuestPort::new(80).unwrap()).await.unwrap();

        assert!(!talk(&mut ended, &mut ended_there));
        assert!(talk(&mut kept, &mut kept_there));
        assert!(connect((Ipv4Addr::LOCALHOST, port)).is_err());
    });
}

#[test]
fn forward_and_its_connections_survive_changes_of_policy() {
    in_namespace(async || {
        let _outside = internet::connect_host();
        let state = State::new();
        let network = state.open().await;
        let guest = start(&network, &state, &NetworkPolicy::default()).await;
        let listener = guest.listen(80);
        let port = forward(&network, &guest.record, 80).await.get();
        let mut here = connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let mut there = accept(&listener).0;

        for policy in [internet_on(), NetworkPolicy::default(), internet_on()] {
            network.update_policy(&guest.record, &policy).await.unwrap();
            assert!(talk(&mut here, &mut there));
            assert!(connect((Ipv4Addr::LOCALHOST, port)).is_ok());
        }
        assert_eq!(sh("cat /proc/sys/net/ipv4/ip_forward").trim(), "0");
    });
}
