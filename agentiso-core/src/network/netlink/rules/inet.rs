//! Packets that the host receives, sends and forwards.

use std::{ffi::CStr, net::Ipv4Addr};

use nftnl::{
    ChainType::{Filter, Nat},
    Hook,
    nftnl_sys::libc,
};

use super::{
    ADDRESS, FORWARDED, FORWARDS, INTERNET, OPEN, PORTS, PROTOCOL, Plan, RESOLVER, SERVICE, interface,
    parts::{
        DIRECTION_ORIGINAL, DNS, Parts, STATE_RELATED, TCP, UDP, destination, from_port, protocol, rule,
        source, to_port,
    },
};
use crate::network::netlink::{
    ForwardsFrom,
    nft::{ChainPlan, Family, SetPlan, Step, TablePlan, steps::*},
};

const TO_HOST: &CStr = c"to_host";
const FROM_MACHINE: &CStr = c"from_machine";
const TO_MACHINE: &CStr = c"to_machine";

fn not_ipv4() -> (&'static CStr, Vec<Step>) {
    (c"not IPv4", vec![meta(libc::NFT_META_NFPROTO, 0), is_not(0, &[2]), count(), discard()])
}

pub(super) fn table(plan: &Plan<'_>) -> TablePlan {
    let parts = Parts { bridge: interface(plan.bridge), range: plan.range };
    let mut chains = vec![
        ChainPlan { name: TO_HOST, hook: None, rules: to_host() },
        ChainPlan { name: FROM_MACHINE, hook: None, rules: from_machine(&parts) },
        ChainPlan { name: TO_MACHINE, hook: None, rules: to_machine() },
    ];
    chains.extend(hooks(&parts, plan.forwards_from));
    TablePlan {
        family: Family::Inet,
        sets: vec![
            SetPlan { name: INTERNET, key: (ADDRESS, 4), data: None },
            SetPlan { name: OPEN, key: (ADDRESS, 4), data: None },
            SetPlan { name: PORTS, key: (ADDRESS << 12 | PROTOCOL << 6 | SERVICE, 12), data: None },
            SetPlan { name: FORWARDS, key: (SERVICE, 2), data: Some((ADDRESS << 6 | SERVICE, 8)) },
            SetPlan { name: FORWARDED, key: (ADDRESS << 12 | SERVICE << 6 | SERVICE, 12), data: None },
            SetPlan { name: RESOLVER, key: (ADDRESS, 4), data: Some((ADDRESS, 4)) },
        ],
        chains,
    }
}

fn to_host() -> Vec<(&'static CStr, Vec<Step>)> {
    let answers = || Parts::forward(source(0), from_port(1), in_set);
    vec![
        not_ipv4(),
        (c"answers of forwards", rule([Parts::answer(), answers(), vec![accept()]])),
        (c"answers to the host", rule([Parts::answer(), Parts::not_redirected(), vec![accept()]])),
        (c"names, of a resolver of this host", rule([Parts::question(), vec![accept()]])),
        (
            c"answers of an ended forward",
            rule([Parts::redirected(), Parts::transport(TCP), vec![count(), reset()]]),
        ),
        (c"to the host", vec![count(), discard()]),
    ]
}

fn from_machine(parts: &Parts) -> Vec<(&'static CStr, Vec<Step>)> {
    let never = |bits, a, b| {
        let network = Ipv4Addr::new(a, b, 0, 0);
        rule([Parts::within(destination(0), bits, network), vec![count(), discard()]])
    };
    vec![
        not_ipv4(),
        (
            // Where br_netfilter is on, frames from port to port come by here; the bridge's own rules judge them.
            c"between ports",
            rule([
                parts.to_bridge(),
                parts.of_range(source(0)),
                parts.of_range(destination(0)),
                vec![accept()],
            ]),
        ),
        (
            // These are never routed.
            c"broadcast and multicast between ports",
            rule([
                parts.to_bridge(),
                parts.of_range(source(0)),
                Parts::within(destination(0), 3, Ipv4Addr::new(224, 0, 0, 0)),
                vec![accept()],
            ]),
        ),
        (c"back to the bridge", rule([parts.to_bridge(), vec![count(), discard()]])),
        (c"to this network", never(8, 0, 0)),
        (c"to a loopback address", never(8, 127, 0)),
        (c"to a link-local address", never(16, 169, 254)),
        (c"to a multicast address", never(4, 224, 0)),
        (c"to a reserved address", never(4, 240, 0)),
        (
            c"answers of forwards",
            rule([Parts::answer(), Parts::forward(source(0), from_port(1), in_set), vec![accept()]]),
        ),
        (c"names", rule([Parts::question(), vec![accept()]])),
        (c"internet", vec![source(0), in_set(OPEN, 0), accept()]),
        (c"some ports of the internet", vec![source(0), protocol(1), to_port(2), in_set(PORTS, 0), accept()]),
        (c"TCP that is not allowed", rule([Parts::transport(TCP), vec![count(), reset()]])),
        (c"not allowed", vec![count(), prohibit()]),
    ]
}

fn to_machine() -> Vec<(&'static CStr, Vec<Step>)> {
    let related = || Parts::any_of(libc::NFT_CT_STATE, STATE_RELATED);
    vec![
        not_ipv4(),
        (
            c"forwards",
            rule([
                Parts::direction(DIRECTION_ORIGINAL),
                Parts::forward(destination(0), to_port(1), in_set),
                vec![accept()],
            ]),
        ),
        (
            c"answers about names",
            rule([
                Parts::answer(),
                Parts::redirected(),
                vec![destination(0), in_set(INTERNET, 0), from_port(0), is(0, &DNS.to_be_bytes()), accept()],
            ]),
        ),
        (
            c"answers from the internet",
            rule([Parts::answer(), vec![destination(0), in_set(OPEN, 0), accept()]]),
        ),
        (
            c"answers from some ports of the internet",
            rule([
                Parts::answer(),
                vec![destination(0), protocol(1), from_port(2), in_set(PORTS, 0), accept()],
            ]),
        ),
        (
            c"errors from the internet",
            rule([Parts::answer(), related(), vec![destination(0), in_set(INTERNET, 0), accept()]]),
        ),
        (
            c"an ended forward",
            rule([
                Parts::direction(DIRECTION_ORIGINAL),
                Parts::redirected(),
                Parts::transport(TCP),
                vec![count(), reset()],
            ]),
        ),
        (
            // The other side learns of it too, and not only by its own patience.
            c"an ended connection",
            rule([Parts::answer(), Parts::transport(TCP), vec![count(), reset()]]),
        ),
        (c"to a machine", vec![count(), discard()]),
    ]
}

fn hooks(parts: &Parts, forwards_from: ForwardsFrom) -> Vec<ChainPlan> {
    let redirect =
        || rule([Parts::transport(TCP), vec![to_port(0), look_up(FORWARDS, 0, 0), redirect_to(0, Some(1))]]);
    let names = |transport| {
        rule([
            Parts::ipv4(),
            parts.on_bridge(),
            Parts::transport(transport),
            vec![to_port(0), is(0, &DNS.to_be_bytes())],
            vec![source(0), in_set(INTERNET, 0)],
            vec![destination(0), look_up(RESOLVER, 0, 0), redirect_to(0, None)],
        ])
    };
    // RTN_LOCAL
    let to_own_address = || vec![destination_type(0), is(0, &2u32.to_ne_bytes())];
    let mut from_outside = vec![(c"names over UDP", names(UDP)), (c"names over TCP", names(TCP))];
    let from_here = match forwards_from {
        ForwardsFrom::Loopback => vec![destination(0), is(0, &Ipv4Addr::LOCALHOST.octets())],
        ForwardsFrom::Anywhere => {
            from_outside
                .push((c"forwards", rule([Parts::ipv4(), parts.off_bridge(), to_own_address(), redirect()])));
            to_own_address()
        }
    };
    let loopback = || Parts::within(source(0), 8, Ipv4Addr::new(127, 0, 0, 0));
    vec![
        ChainPlan {
            name: c"raw_prerouting",
            hook: Some((Filter, Hook::PreRouting, -300)),
            rules: vec![(
                c"to the host's loopback",
                rule([
                    Parts::ipv4(),
                    parts.on_bridge(),
                    Parts::within(destination(0), 8, Ipv4Addr::new(127, 0, 0, 0)),
                    vec![count(), discard()],
                ]),
            )],
        },
        ChainPlan { name: c"nat_prerouting", hook: Some((Nat, Hook::PreRouting, -100)), rules: from_outside },
        ChainPlan {
            name: c"nat_output",
            hook: Some((Nat, Hook::Out, -100)),
            rules: vec![(c"forwards from this host", rule([Parts::ipv4(), from_here, redirect()]))],
        },
        ChainPlan {
            name: c"nat_postrouting",
            hook: Some((Nat, Hook::PostRouting, 100)),
            rules: vec![
                (
                    c"from the loopback to a machine",
                    rule([Parts::ipv4(), parts.to_bridge(), loopback(), vec![masquerade()]]),
                ),
                (
                    c"to the internet",
                    rule([
                        Parts::ipv4(),
                        parts.not_to_bridge(),
                        parts.of_range(source(0)),
                        vec![masquerade()],
                    ]),
                ),
            ],
        },
        ChainPlan {
            name: c"input",
            hook: Some((Filter, Hook::In, 0)),
            rules: vec![(c"from machines", rule([parts.on_bridge(), vec![jump(TO_HOST)]]))],
        },
        ChainPlan {
            name: c"forward",
            hook: Some((Filter, Hook::Forward, 0)),
            rules: vec![
                (c"from machines", rule([parts.on_bridge(), vec![jump(FROM_MACHINE)]])),
                (c"to machines", rule([parts.to_bridge(), vec![jump(TO_MACHINE)]])),
            ],
        },
        ChainPlan {
            name: c"output",
            hook: Some((Filter, Hook::Out, 0)),
            rules: vec![(
                c"an ended forward",
                rule([
                    Parts::ipv4(),
                    parts.of_range(destination(0)),
                    Parts::direction(DIRECTION_ORIGINAL),
                    Parts::forward(destination(0), to_port(1), not_in_set),
                    vec![count(), reset()],
                ]),
            )],
        },
    ]
}
