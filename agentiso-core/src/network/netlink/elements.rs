//! What the cards put into the sets.

use std::{collections::BTreeMap, net::Ipv4Addr};

use super::{
    ledger::Card,
    nft::{Elements, Family, SetName},
    range::Range,
    rules,
};
use crate::types::WorkspaceId;

/// TCP and UDP.
const PROTOCOLS: [u8; 2] = [6, 17];

/// Puts together the parts of a key or of data, each filled up to four bytes.
fn joined<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut joined = Vec::new();
    for part in parts {
        joined.extend_from_slice(part);
        joined.resize(joined.len().next_multiple_of(4), 0);
    }
    joined
}

/// The elements of all cards.
pub(super) fn all(cards: &BTreeMap<WorkspaceId, Card>) -> Elements {
    let mut elements = of(cards.values());
    for card in cards.values().filter(|card| !card.policy.groups.is_empty()) {
        for (set, pairs) in of_groups(card, cards.values()) {
            elements.entry(set).or_default().extend(pairs);
        }
    }
    elements
}

/// The elements of these cards that no others have a part in.
pub(super) fn of<'a>(cards: impl IntoIterator<Item = &'a Card>) -> Elements {
    let mut elements = Elements::new();
    let mut put = |set: SetName, key: Vec<u8>, data: Vec<u8>| {
        elements.entry(set).or_default().insert((key, data));
    };
    let inet = |name| (Family::Inet, name);
    let bridge = |name| (Family::Bridge, name);
    for card in cards {
        let (port, address) = (rules::interface(&card.tap), card.address.octets());
        put(bridge(rules::MACHINES), joined([&port[..], &card.mac().0, &address]), vec![]);
        if card.policy.allow_inter_vm {
            put(bridge(rules::TALKERS), port.to_vec(), vec![]);
        }
        if card.policy.allow_internet {
            put(inet(rules::INTERNET), address.to_vec(), vec![]);
            if card.policy.allowed_ports.is_empty() {
                put(inet(rules::OPEN), address.to_vec(), vec![]);
            }
            for allowed in &card.policy.allowed_ports {
                for protocol in PROTOCOLS {
                    let key = joined([&address[..], &[protocol], &allowed.to_be_bytes()]);
                    put(inet(rules::PORTS), key, vec![]);
                }
            }
        }
        for (guest, host) in &card.forwards {
            let (guest, host) = (guest.get().to_be_bytes(), host.get().to_be_bytes());
            put(inet(rules::FORWARDS), host.to_vec(), joined([&address[..], &guest]));
            put(inet(rules::FORWARDED), joined([&address[..], &guest, &host]), vec![]);
        }
    }
    elements
}

/// The elements that let this card's machine and others talk, both ways, for those that share a group with it.
pub(super) fn of_groups<'a>(card: &Card, others: impl IntoIterator<Item = &'a Card>) -> Elements {
    let friends = others
        .into_iter()
        .filter(|other| other.tap != card.tap && !other.policy.groups.is_disjoint(&card.policy.groups));
    let ways = friends.flat_map(|friend| {
        let (one, other) = (rules::interface(&card.tap), rules::interface(&friend.tap));
        [joined([&one[..], &other]), joined([&other[..], &one])]
    });
    Elements::from([((Family::Bridge, rules::PAIRS), ways.map(|pair| (pair, vec![])).collect())])
}

/// The element that sends questions about names to this server.
pub(super) fn of_resolver(range: Range, resolver: Option<Ipv4Addr>) -> Elements {
    let element = resolver.map(|resolver| (range.gateway().octets().to_vec(), resolver.octets().to_vec()));
    Elements::from([((Family::Inet, rules::RESOLVER), element.into_iter().collect())])
}
