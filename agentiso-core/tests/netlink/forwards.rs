//! Ports of the host that lead into machines.

use std::net::Ipv4Addr;

use agentiso_core::{
    network::{AttachSpec, Network, NetworkError, NetworkPolicy, netlink::ForwardsFrom},
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

#[test]
fn port_of_another_state_folder_is_taken() {
    in_namespace(async || {
        let (first, second) = (State::new(), State::with_range("10.98.0.0/16"));
        let (network, other) = (first.open().await, second.open().await);
        let guest = start(&network, &first, &NetworkPolicy::default()).await;
        let port = forward(&network, &guest.record, 80).await;
        let theirs = start(&other, &second, &NetworkPolicy::default()).await;

        let asked = other.add_forward(&theirs.record, GuestPort::new(80).unwrap(), Some(port)).await;
        let mut spec = second.spec(&NetworkPolicy::default());
        spec.forwards = [(GuestPort::new(80).unwrap(), port)].into();
        let attached = other.attach(AttachSpec { ..spec }).await;

        assert!(matches!(asked, Err(NetworkError::PortTaken { port: taken }) if taken == port), "{asked:?}");
        assert!(matches!(attached, Err(NetworkError::PortTaken { .. })), "{attached:?}");
        assert_eq!(other.forwards(&theirs.record).await.unwrap(), [].into());
        network.detach(&guest.record).await.unwrap();
        other.add_forward(&theirs.record, GuestPort::new(80).unwrap(), Some(port)).await.unwrap();
    });
}

#[test]
fn ports_that_are_picked_at_the_same_time_differ() {
    in_namespace(async || {
        let states: Vec<State> =
            (0..4).map(|n| State::with_range(&format!("10.{}.0.0/16", 90 + n))).collect();
        let mut networks = Vec::new();
        for state in &states {
            let network = state.open().await;
            let guest = start(&network, state, &NetworkPolicy::default()).await;
            networks.push((std::sync::Arc::new(network), guest));
        }
        let mut picking = tokio::task::JoinSet::new();
        for (network, guest) in &networks {
            for port in 80..85 {
                let (network, record) = (network.clone(), guest.record.clone());
                picking.spawn(async move { forward(&network, &record, port).await });
            }
        }
        let mut ports = picking.join_all().await;
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 20);
    });
}

#[test]
fn forward_from_elsewhere_follows_the_configuration_at_the_next_opening() {
    in_namespace(async || {
        let outside = internet::connect_host();
        let mut state = State::new();
        let network = state.open().await;
        let guest = start(&network, &state, &NetworkPolicy::default()).await;
        let listener = guest.listen(80);
        let port = forward(&network, &guest.record, 80).await.get();
        let mut kept = connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let mut kept_there = accept(&listener).0;
        assert!(outside.run(|| connect((internet::HOST, port))).is_err());

        state.config.forwards_from = ForwardsFrom::Anywhere;
        let _again = state.open().await;

        let mut client = outside.run(|| connect((internet::HOST, port))).unwrap();
        assert!(talk(&mut client, &mut accept(&listener).0));
        assert!(talk(&mut kept, &mut kept_there));
    });
}
