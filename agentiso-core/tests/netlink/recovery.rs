//! What is left, what is made again, and what is nobody's business.

use agentiso_core::network::{Network, NetworkError, NetworkPolicy, netlink::NetlinkNetwork};

use crate::{
    fixture::{State, everything, forward, groups, in_namespace, internet, internet_on, start},
    guest::{accept, connect, sh, talk},
};

#[test]
fn detach_of_the_last_leaves_nothing_and_foreign_rules_alone() {
    in_namespace(async || {
        let _outside = internet::connect_host();
        sh("nft add table inet foreign; nft add chain inet foreign f '{ type filter hook forward priority 0; }';
            nft add rule inet foreign f tcp dport 9 drop; nft add table inet agentiso; ip link add agbr type bridge");
        let before = everything();
        let state = State::new();
        let network = state.open().await;
        let policy = NetworkPolicy { allow_inter_vm: true, ..internet_on() };
        let one = start(&network, &state, &policy).await;
        let other = start(&network, &state, &groups(&["team"])).await;
        forward(&network, &one.record, 80).await;
        assert_ne!(everything(), before);

        network.detach(&one.record).await.unwrap();
        network.detach(&other.record).await.unwrap();

        assert_eq!(everything(), before);
        assert_eq!(network.leftovers().await.unwrap(), []);
    });
}

#[test]
fn flushed_rules_are_made_again_when_opened() {
    in_namespace(async || {
        let state = State::new();
        let network = state.open().await;
        let guest = start(&network, &state, &NetworkPolicy::default()).await;
        let listener = guest.listen(80);
        let port = forward(&network, &guest.record, 80).await.get();
        sh("nft flush ruleset");
        assert!(connect(([127, 0, 0, 1], port)).is_err());

        let _again = state.open().await;

        let mut here = connect(([127, 0, 0, 1], port)).unwrap();
        assert!(talk(&mut here, &mut accept(&listener).0));
    });
}

#[test]
fn removed_bridge_is_made_again_when_opened() {
    in_namespace(async || {
        let state = State::new();
        let network = state.open().await;
        let guest = start(&network, &state, &NetworkPolicy::default()).await;
        let listener = guest.listen(80);
        sh(&format!("ip link del agbr{}", state.names()));
        assert!(connect((guest.address, 80)).is_err());

        let _again = state.open().await;

        assert!(connect((guest.address, 80)).is_ok());
        drop(listener);
    });
}

#[test]
fn card_without_a_machine_is_listed_and_removed_by_another() {
    in_namespace(async || {
        let before = everything();
        let state = State::new();
        let card = state.open().await.attach(state.spec(&internet_on())).await.unwrap();
        let record = card.record.clone();
        // As if whoever made it had died: its descriptors are closed.
        drop(card);

        let other = state.open().await;
        assert_eq!(other.leftovers().await.unwrap(), std::slice::from_ref(&record));
        assert!(!other.is_alive(&record).await.unwrap());
        other.detach(&record).await.unwrap();

        assert_eq!(other.leftovers().await.unwrap(), []);
        assert_eq!(everything(), before);
    });
}

#[test]
fn range_that_is_in_use_is_refused_with_a_remedy() {
    in_namespace(async || {
        sh("ip link add lan type bridge; ip addr add 10.99.7.1/24 dev lan; ip link set lan up");
        let state = State::new();

        let error = NetlinkNetwork::open(state.config.clone()).await.unwrap_err();

        assert!(matches!(error, NetworkError::Unsupported { .. }), "{error:?}");
        let text = error.to_string();
        assert!(
            text.contains("10.99.0.0/16") && text.contains("lan") && text.contains("another range"),
            "{text}"
        );
        assert!(NetlinkNetwork::open(State::with_range("10.98.0.0/16").config).await.is_ok());
    });
}

#[test]
fn address_is_not_handed_out_again_at_once() {
    in_namespace(async || {
        let state = State::new();
        let network = state.open().await;
        let one = network.attach(state.spec(&NetworkPolicy::default())).await.unwrap();
        network.detach(&one.record).await.unwrap();

        let other = network.attach(state.spec(&NetworkPolicy::default())).await.unwrap();

        assert_ne!(one.record.address, other.record.address);
    });
}
