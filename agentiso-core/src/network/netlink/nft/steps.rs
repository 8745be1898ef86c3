//! The steps that rules are made of. Registers are four bytes each; what is longer fills the following ones. The numbers
//! of attributes are the kernel's, from linux/netfilter/nf_tables.h, where each kind of step has its own.

use std::ffi::CStr;

use super::wire::{attribute, nested, number, text};

// NFTA_DATA_VALUE, NFTA_DATA_VERDICT
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

/// One step of a rule: the kernel's name of its kind, and its attributes.
#[derive(Clone, Debug)]
pub(in crate::network::netlink) struct Step {
    pub(super) kind: &'static CStr,
    pub(super) attributes: Vec<u8>,
}

/// A register of four bytes, 0 to 15.
fn register(kind: u16, n: u32) -> Vec<u8> {
    // NFT_REG32_00
    number(kind, 8 + n)
}

fn constant(kind: u16, value: i32) -> Vec<u8> {
    number(kind, value.unsigned_abs())
}

/// Data that is compared with or computed with.
fn data(kind: u16, bytes: &[u8]) -> Vec<u8> {
    nested(kind, &[attribute(DATA_VALUE, bytes)])
}

fn step(kind: &'static CStr, attributes: &[Vec<u8>]) -> Step {
    Step { kind, attributes: attributes.concat() }
}

/// A fact about the packet that is not in it (NFT_META_*).
pub(in crate::network::netlink) fn meta(key: i32, into: u32) -> Step {
    step(c"meta", &[constant(2, key), register(1, into)])
}

/// The headers of a packet.
#[derive(Clone, Copy, Debug)]
pub(in crate::network::netlink) enum Header {
    /// Ethernet.
    Link,
    /// IPv4 or ARP.
    Network,
    /// TCP or UDP.
    Transport,
}

/// Bytes of a header.
pub(in crate::network::netlink) fn payload(header: Header, offset: u32, length: u32, into: u32) -> Step {
    let base = match header {
        Header::Link => libc::NFT_PAYLOAD_LL_HEADER,
        Header::Network => libc::NFT_PAYLOAD_NETWORK_HEADER,
        Header::Transport => libc::NFT_PAYLOAD_TRANSPORT_HEADER,
    };
    step(c"payload", &[register(1, into), constant(2, base), number(3, offset), number(4, length)])
}

fn compare(operation: i32, from: u32, bytes: &[u8]) -> Step {
    step(c"cmp", &[register(1, from), constant(2, operation), data(3, bytes)])
}

/// Goes on if a register holds exactly this.
pub(in crate::network::netlink) fn is(from: u32, bytes: &[u8]) -> Step {
    compare(libc::NFT_CMP_EQ, from, bytes)
}

/// Goes on if a register holds anything else.
pub(in crate::network::netlink) fn is_not(from: u32, bytes: &[u8]) -> Step {
    compare(libc::NFT_CMP_NEQ, from, bytes)
}

/// Keeps the bits of four bytes that are set in the mask.
pub(in crate::network::netlink) fn mask(at: u32, mask: [u8; 4]) -> Step {
    step(c"bitwise", &[register(1, at), register(2, at), number(3, 4), data(4, &mask), data(5, &[0; 4])])
}

fn lookup_with(set: &CStr, from: u32, more: &[u8]) -> Step {
    step(c"lookup", &[text(1, set), register(2, from), more.to_vec()])
}

/// Goes on if the set has what is in the registers from this one on.
pub(in crate::network::netlink) fn in_set(set: &CStr, from: u32) -> Step {
    lookup_with(set, from, &[])
}

/// Goes on if the set does not have what is in the registers from this one on.
pub(in crate::network::netlink) fn not_in_set(set: &CStr, from: u32) -> Step {
    lookup_with(set, from, &constant(5, libc::NFT_LOOKUP_F_INV))
}

/// Goes on with a map's data for what is in the registers from `from` on, if it has that.
pub(in crate::network::netlink) fn look_up(map: &CStr, from: u32, into: u32) -> Step {
    lookup_with(map, from, &register(3, into))
}

/// A fact about the packet's connection (NFT_CT_*).
pub(in crate::network::netlink) fn connection(key: i32, into: u32) -> Step {
    step(c"ct", &[constant(2, key), register(1, into)])
}

/// The port that the connection's first packet was sent to, before any translation.
pub(in crate::network::netlink) fn original_port(into: u32) -> Step {
    // IP_CT_DIR_ORIGINAL
    let direction = attribute(3, &[0]);
    step(c"ct", &[constant(2, libc::NFT_CT_PROTO_DST), register(1, into), direction])
}

/// What the host's routes say the packet's destination is (RTN_*).
pub(in crate::network::netlink) fn destination_type(into: u32) -> Step {
    // NFT_FIB_RESULT_ADDRTYPE and NFTA_FIB_F_DADDR
    step(c"fib", &[register(1, into), number(2, 3), number(3, 1 << 1)])
}

/// Counts the packets that come here.
pub(in crate::network::netlink) fn count() -> Step {
    step(c"counter", &[])
}

fn verdict(code: i32, chain: Option<&CStr>) -> Step {
    let mut verdict = attribute(1, &code.to_be_bytes());
    verdict.extend(chain.map(|name| text(2, name)).unwrap_or_default());
    // NFT_REG_VERDICT is 0.
    step(c"immediate", &[number(1, 0), nested(2, &[nested(DATA_VERDICT, &[verdict])])])
}

/// Lets the packet through, as far as this table is concerned.
pub(in crate::network::netlink) fn accept() -> Step {
    verdict(libc::NF_ACCEPT, None)
}

/// Throws the packet away.
pub(in crate::network::netlink) fn discard() -> Step {
    verdict(libc::NF_DROP, None)
}

/// Goes on in another chain, and comes back if that decides nothing.
pub(in crate::network::netlink) fn jump(chain: &CStr) -> Step {
    verdict(libc::NFT_JUMP, Some(chain))
}

/// Answers a TCP packet with a reset.
pub(in crate::network::netlink) fn reset() -> Step {
    step(c"reject", &[constant(1, libc::NFT_REJECT_TCP_RST), attribute(2, &[0])])
}

/// Answers a packet with "administratively prohibited".
pub(in crate::network::netlink) fn prohibit() -> Step {
    // NFT_REJECT_ICMPX_ADMIN_PROHIBITED
    step(c"reject", &[constant(1, libc::NFT_REJECT_ICMPX_UNREACH), attribute(2, &[3])])
}

/// Sends a new connection to the IPv4 address in one register, and the port in another.
pub(in crate::network::netlink) fn redirect_to(address: u32, port: Option<u32>) -> Step {
    let port = port.map(|port| register(5, port)).unwrap_or_default();
    let family = constant(2, libc::NFPROTO_IPV4);
    step(c"nat", &[constant(1, libc::NFT_NAT_DNAT), family, register(3, address), port])
}

/// Lets a new connection come from this host's own address.
pub(in crate::network::netlink) fn masquerade() -> Step {
    step(c"masq", &[])
}
