//! Many machines.

use std::time::{Duration, Instant};

use agentiso_core::network::{Attachment, Network, NetworkPolicy};

use crate::{
    fixture::{State, in_namespace, internet_on},
    guest::sh,
};

const MACHINES: usize = 1000;

/// How long all rules may take to be made again, on a slow machine without optimisation.
const REBUILD_LIMIT: Duration = Duration::from_secs(10);

/// How long one more machine may take beside all others.
const ATTACH_LIMIT: Duration = Duration::from_secs(1);

fn rules() -> usize {
    sh("nft list ruleset").lines().filter(|line| line.contains("comment")).count()
}

#[test]
fn rules_of_a_thousand_machines_are_made_in_bounded_time_and_do_not_grow() {
    in_namespace(async || {
        let state = State::new();
        let network = state.open().await;
        let policy = NetworkPolicy { allow_inter_vm: true, allowed_ports: vec![80, 443], ..internet_on() };
        let mut cards = vec![network.attach(state.spec(&policy)).await.unwrap()];
        let few = rules();
        let mut hundreds = Vec::new();
        while cards.len() < MACHINES {
            let begun = Instant::now();
            for _ in 0..100.min(MACHINES - cards.len()) {
                cards.push(network.attach(state.spec(&policy)).await.unwrap());
            }
            hundreds.push(begun.elapsed());
        }
        println!("attached, a hundred at a time, in {hundreds:?}");
        let (first, last) = (hundreds[0], hundreds[hundreds.len() - 1]);
        assert!(last < 4 * first + Duration::from_secs(1), "the more there are, the longer one takes");
        let begun = Instant::now();
        cards.push(network.attach(state.spec(&policy)).await.unwrap());
        assert!(begun.elapsed() < ATTACH_LIMIT, "{:?}", begun.elapsed());
        println!("one more attached in {:?}", begun.elapsed());

        sh("nft flush ruleset");
        let begun = Instant::now();
        let _again = state.open().await;
        assert!(begun.elapsed() < REBUILD_LIMIT, "{:?}", begun.elapsed());
        println!("rebuilt in {:?}", begun.elapsed());

        assert_eq!(rules(), few);
        let tap = |card: &Attachment| card.record.details["tap"].as_str().unwrap().to_owned();
        assert!(sh("nft list ruleset").contains(&tap(&cards[MACHINES])));

        // All at once: closed one after the other, the kernel would wait for each.
        let grouped: String = cards.iter().map(|card| format!("link set {} group 77\n", tap(card))).collect();
        std::fs::write(state.folder.path().join("batch"), grouped).unwrap();
        sh(&format!("ip -batch {}; ip link del group 77", state.folder.path().join("batch").display()));
    });
}
