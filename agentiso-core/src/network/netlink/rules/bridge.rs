//! Frames that machines send, and frames between machines.

use std::ffi::CStr;

use nftnl::{ChainType::Filter, Hook, nftnl_sys::libc};

use super::{
    ADDRESS, ETHER, INTERFACE, MACHINES, PAIRS, Plan, TALKERS,
    parts::{Parts, destination, rule},
};
use crate::network::netlink::nft::{ChainPlan, Family, SetPlan, Step, TablePlan, steps::*};

const FROM_PORT: &CStr = c"from_port";
const BETWEEN: &CStr = c"between_ports";

pub(super) fn table(plan: &Plan<'_>) -> TablePlan {
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
