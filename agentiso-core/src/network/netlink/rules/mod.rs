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

mod bridge;
mod inet;
mod parts;

use std::ffi::CStr;

use super::{ForwardsFrom, nft::TablePlan, range::Range};

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

// How `nft` shows what is in a set: six bits for each part (enum datatypes of nftables).
const ADDRESS: u32 = 7;
const ETHER: u32 = 9;
const PROTOCOL: u32 = 12;
const SERVICE: u32 = 13;
const INTERFACE: u32 = 41;

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
    [bridge::table(plan), inet::table(plan)]
}

/// An interface's name as the kernel compares it.
pub(super) fn interface(name: &str) -> [u8; 16] {
    let mut padded = [0; 16];
    for (to, from) in padded.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    padded
}
