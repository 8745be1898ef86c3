//! Many machines.

use std::time::{Duration, Instant};

use agentiso_core::network::{Network, NetworkPolicy};

use crate::{
    fixture::{State, in_namespace, internet_on},
    guest::sh,
};

const MACHINES: usize = 1000;

/// How long all rules may take to be made again, on a slow machine without optimisation.
const REBUILD_LIMIT: Duration = Duration::from_secs(10);

/// How long one more machine may take beside all others.
const ATTACH_LIMIT: Duration = Duration::from_secs(3);

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
        while cards.len() < MACHINES {
            cards.push(network.attach(state.spec(&policy)).await.unwrap());
        }
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
        assert!(sh("nft list ruleset").contains(cards[MACHINES].record.details["tap"].as_str().unwrap()));
    });
}
