//! What the cards put into the sets.

use std::net::Ipv4Addr;

use super::{
    ledger::Cards,
    nft::{Elements, Family, SetName},
    range::Range,
    rules,
};

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

/// The elements of all sets.
pub(super) fn of(cards: &Cards, range: Range, resolver: Option<Ipv4Addr>) -> Elements {
    let mut elements = Elements::new();
    let mut put = |set: SetName, key: Vec<u8>, data: Vec<u8>| {
        elements.entry(set).or_default().insert((key, data));
    };
    let inet = |name| (Family::Inet, name);
    for card in cards.cards.values() {
        let (port, address) = (rules::interface(&card.tap), card.address.octets());
        put((Family::Bridge, rules::MACHINES), joined([&port[..], &card.mac().0, &address]), vec![]);
        if card.policy.allow_inter_vm {
            put((Family::Bridge, rules::TALKERS), port.to_vec(), vec![]);
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
    for (one, other) in pairs(cards) {
        put(
            (Family::Bridge, rules::PAIRS),
            joined([&rules::interface(one)[..], &rules::interface(other)]),
            vec![],
        );
    }
    if let Some(resolver) = resolver {
        put(inet(rules::RESOLVER), range.gateway().octets().to_vec(), resolver.octets().to_vec());
    }
    elements
}

/// Ports of machines that share a group, in both directions.
fn pairs(cards: &Cards) -> impl Iterator<Item = (&str, &str)> {
    let grouped: Vec<_> = cards.cards.values().filter(|card| !card.policy.groups.is_empty()).collect();
    let all = grouped
        .clone()
        .into_iter()
        .flat_map(move |one| grouped.clone().into_iter().map(move |other| (one, other)));
    all.filter(|(one, other)| one.tap != other.tap && !one.policy.groups.is_disjoint(&other.policy.groups))
        .map(|(one, other)| (one.tap.as_str(), other.tap.as_str()))
}
