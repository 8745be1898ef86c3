//! The rules. They are the same however many machines there are: what differs is in sets and maps.
//!
//! Bridge family: a frame from a machine's port passes if MAC and IPv4 address are those of that port, in Ethernet, IPv4
//! and ARP headers alike; everything that is neither IPv4 nor ARP is dropped, IPv6 and VLANs included. From port to port
//! only frames between machines that may talk pass.
//!
//! Inet family: nothing from a machine reaches the host, but for answers and questions about names that are redirected
//! to a resolver that happens to be on this host. Nothing is routed between machines. What a machine sends to the
//! internet, and what comes back, is judged by the policy in force packet by packet, so that a change ends what it no
//! longer allows and leaves the rest alone; forwards likewise.

use std::{ffi::CStr, net::Ipv4Addr};

use nftnl::{
    ChainType::{Filter, Nat},
    Hook,
    nftnl_sys::libc,
};

use super::{
    ForwardsFrom,
    nft::{ChainPlan, Family, SetPlan, Step, TablePlan, steps::*},
    range::Range,
};

/// Ports with the MAC and IPv4 address that frames from them have.
pub(super) const MACHINES: &CStr = c"machines";
/// Ports of machines that may talk to all that may too.
pub(super) const TALKERS: &CStr = c"talkers";
/// Pairs of ports, by groups.
pub(super) const PAIRS: &CStr = c"pairs";
/// Addresses of machines with any internet access.
pub(super) const INTERNET: &CStr = c"internet";
/// Addresses of machines that may use all ports of the internet.
pub(super) const OPEN: &CStr = c"open";
/// Address, protocol and port, of machines that may use some.
pub(super) const PORTS: &CStr = c"ports";
/// Forwards: the host's port to the machine's address and port.
pub(super) const FORWARDS: &CStr = c"forwards";
/// Forwards in force: the machine's address and port, and the host's port.
pub(super) const FORWARDED: &CStr = c"forwarded";
/// The gateway's address to the resolver's.
pub(super) const RESOLVER: &CStr = c"resolver";

const FROM_PORT: &CStr = c"from_port";
const BETWEEN: &CStr = c"between_ports";
const TO_HOST: &CStr = c"to_host";
const FROM_MACHINE: &CStr = c"from_machine";
const TO_MACHINE: &CStr = c"to_machine";

// How `nft` shows what is in a set: six bits for each part (enum datatypes of nftables).
const ADDRESS: u32 = 7;
const ETHER: u32 = 9;
const PROTOCOL: u32 = 12;
const SERVICE: u32 = 13;
const INTERFACE: u32 = 41;

const TCP: u8 = 6;
const UDP: u8 = 17;
const DNS: u16 = 53;

const STATE_ESTABLISHED: u32 = 1 << 1;
const STATE_RELATED: u32 = 1 << 2;
const STATUS_REDIRECTED: u32 = 1 << 5;
const DIRECTION_ORIGINAL: u8 = 0;
const DIRECTION_REPLY: u8 = 1;

/// What the rules are made for.
pub(super) struct Plan<'a> {
    pub(super) bridge: &'a str,
    /// What the names of all ports begin with, and no other interface's.
    pub(super) ports: &'a str,
    pub(super) range: Range,
    pub(super) forwards_from: ForwardsFrom,
}

/// The tables.
pub(super) fn tables(plan: &Plan<'_>) -> [TablePlan; 2] {
    [bridge_table(plan), inet_table(plan)]
}

/// An interface's name as the kernel compares it.
pub(super) fn interface(name: &str) -> [u8; 16] {
    let mut padded = [0; 16];
    for (to, from) in padded.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    padded
}

fn rule(steps: impl IntoIterator<Item = Vec<Step>>) -> Vec<Step> {
    steps.into_iter().flatten().collect()
}

fn bridge_table(plan: &Plan<'_>) -> TablePlan {
    // By the beginning of their names: which bridge a port belongs to is known to kernels with nft_meta_bridge alone.
    let on_ours = |key| vec![meta(key, 0), is(0, plan.ports.as_bytes())];
    let protocol = |number: u16| vec![meta(libc::NFT_META_PROTOCOL, 0), is(0, &number.to_be_bytes())];
    // Registers 0-3 the port, 4-5 the MAC address, 6 the IPv4 address.
    let bound =
        |mac: Step, address: Step| vec![meta(libc::NFT_META_IIFNAME, 0), mac, address, in_set(MACHINES, 0)];
    let sender = || payload(Header::Link, 6, 6, 4);
    let arp_address = || payload(Header::Network, 14, 4, 6);
    let (ip, arp, ip6) = (0x0800, 0x0806, 0x86dd);
    let dropped = |kind| rule([protocol(kind), vec![count(), discard()]]);
    TablePlan {
        family: Family::Bridge,
        sets: vec![
            SetPlan { name: MACHINES, key: (INTERFACE << 12 | ETHER << 6 | ADDRESS, 28), data: None },
            SetPlan { name: TALKERS, key: (INTERFACE, 16), data: None },
            SetPlan { name: PAIRS, key: (INTERFACE << 6 | INTERFACE, 32), data: None },
        ],
        chains: vec![
            ChainPlan {
                name: FROM_PORT,
                hook: None,
                rules: vec![
                    (
                        c"routed between machines",
                        rule([
                            protocol(ip),
                            vec![payload(Header::Link, 0, 6, 0), is(0, &plan.range.gateway_mac().0)],
                            vec![destination(0), is_not(0, &plan.range.gateway().octets())],
                            Parts::within(destination(0), plan.range.prefix(), plan.range.network()),
                            vec![count(), discard()],
                        ]),
                    ),
                    (
                        c"IPv4 from its own addresses",
                        rule([
                            protocol(ip),
                            bound(sender(), payload(Header::Network, 12, 4, 6)),
                            vec![accept()],
                        ]),
                    ),
                    (
                        c"ARP about its own addresses",
                        rule([
                            protocol(arp),
                            // Ethernet and IPv4, so that the addresses are where they are looked for.
                            vec![payload(Header::Network, 0, 6, 0), is(0, &[0, 1, 8, 0, 6, 4])],
                            bound(sender(), arp_address()),
                            bound(payload(Header::Network, 8, 6, 4), arp_address()),
                            vec![accept()],
                        ]),
                    ),
                    (c"spoofed IPv4", dropped(ip)),
                    (c"spoofed ARP", dropped(arp)),
                    (c"IPv6", dropped(ip6)),
                    (c"other protocols", vec![count(), discard()]),
                ],
            },
            ChainPlan {
                name: BETWEEN,
                hook: None,
                rules: vec![
                    (
                        c"machines that may talk",
                        vec![
                            meta(libc::NFT_META_IIFNAME, 0),
                            in_set(TALKERS, 0),
                            meta(libc::NFT_META_OIFNAME, 0),
                            in_set(TALKERS, 0),
                            accept(),
                        ],
                    ),
                    (
                        c"machines of one group",
                        vec![
                            meta(libc::NFT_META_IIFNAME, 0),
                            meta(libc::NFT_META_OIFNAME, 4),
                            in_set(PAIRS, 0),
                            accept(),
                        ],
                    ),
                    (c"between machines", vec![count(), discard()]),
                ],
            },
            ChainPlan {
                name: c"prerouting",
                hook: Some((Filter, Hook::PreRouting, -300)),
                rules: vec![(
                    c"frames from machines",
                    rule([on_ours(libc::NFT_META_IIFNAME), vec![jump(FROM_PORT)]]),
                )],
            },
            ChainPlan {
                name: c"forward",
                hook: Some((Filter, Hook::Forward, -200)),
                rules: vec![(
                    c"frames between machines",
                    rule([on_ours(libc::NFT_META_OIFNAME), vec![jump(BETWEEN)]]),
                )],
            },
        ],
    }
}

/// Parts of rules of the inet family. Each may use the registers 0 to 3 and leaves nothing in them.
struct Parts {
    bridge: [u8; 16],
    range: Range,
}

impl Parts {
    fn ipv4() -> Vec<Step> {
        // NFPROTO_IPV4
        vec![meta(libc::NFT_META_NFPROTO, 0), is(0, &[2])]
    }

    fn on_bridge(&self) -> Vec<Step> {
        vec![meta(libc::NFT_META_IIFNAME, 0), is(0, &self.bridge)]
    }

    fn off_bridge(&self) -> Vec<Step> {
        vec![meta(libc::NFT_META_IIFNAME, 0), is_not(0, &self.bridge)]
    }

    fn to_bridge(&self) -> Vec<Step> {
        vec![meta(libc::NFT_META_OIFNAME, 0), is(0, &self.bridge)]
    }

    fn not_to_bridge(&self) -> Vec<Step> {
        vec![meta(libc::NFT_META_OIFNAME, 0), is_not(0, &self.bridge)]
    }

    fn transport(protocol: u8) -> Vec<Step> {
        vec![meta(libc::NFT_META_L4PROTO, 0), is(0, &[protocol])]
    }

    fn within(address: Step, bits: u8, network: Ipv4Addr) -> Vec<Step> {
        let mask_bits = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
        vec![address, mask(0, mask_bits.to_be_bytes()), is(0, &network.octets())]
    }

    fn of_range(&self, address: Step) -> Vec<Step> {
        Self::within(address, self.range.prefix(), self.range.network())
    }

    fn direction(direction: u8) -> Vec<Step> {
        vec![connection(libc::NFT_CT_DIRECTION, 0), is(0, &[direction])]
    }

    /// Any of the bits of a connection's state or status.
    fn any_of(key: i32, bits: u32) -> Vec<Step> {
        vec![connection(key, 0), mask(0, bits.to_ne_bytes()), is_not(0, &[0; 4])]
    }

    fn redirected() -> Vec<Step> {
        Self::any_of(libc::NFT_CT_STATUS, STATUS_REDIRECTED)
    }

    fn not_redirected() -> Vec<Step> {
        vec![connection(libc::NFT_CT_STATUS, 0), mask(0, STATUS_REDIRECTED.to_ne_bytes()), is(0, &[0; 4])]
    }

    /// An answer within a connection that was begun from the other side.
    fn answer() -> Vec<Step> {
        rule([
            Self::direction(DIRECTION_REPLY),
            Self::any_of(libc::NFT_CT_STATE, STATE_ESTABLISHED | STATE_RELATED),
        ])
    }

    /// TCP of a forward: the machine's address, its port, and the port it was sent to at first.
    fn forward(address: Step, port: Step, look: fn(&CStr, u32) -> Step) -> Vec<Step> {
        rule([
            Self::redirected(),
            Self::transport(TCP),
            vec![address, port, original_port(2), look(FORWARDED, 0)],
        ])
    }

    /// A machine's question about a name, on its way to the resolver.
    fn question() -> Vec<Step> {
        rule([
            Self::redirected(),
            Self::direction(DIRECTION_ORIGINAL),
            vec![source(0), in_set(INTERNET, 0), to_port(0), is(0, &DNS.to_be_bytes())],
        ])
    }
}

fn source(into: u32) -> Step {
    payload(Header::Network, 12, 4, into)
}

fn destination(into: u32) -> Step {
    payload(Header::Network, 16, 4, into)
}

fn from_port(into: u32) -> Step {
    payload(Header::Transport, 0, 2, into)
}

fn to_port(into: u32) -> Step {
    payload(Header::Transport, 2, 2, into)
}

fn protocol(into: u32) -> Step {
    meta(libc::NFT_META_L4PROTO, into)
}

fn not_ipv4() -> (&'static CStr, Vec<Step>) {
    (c"not IPv4", vec![meta(libc::NFT_META_NFPROTO, 0), is_not(0, &[2]), count(), discard()])
}

fn inet_table(plan: &Plan<'_>) -> TablePlan {
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
