//! The steps that rules are made of. Registers are four bytes each; what is longer fills the following ones.

use std::ffi::{CStr, CString};

use nftnl::nftnl_sys::{self as c, libc};

use super::sys::{Step, Value};

/// A register of four bytes, 0 to 15.
fn register(n: u32) -> Value {
    // NFT_REG32_00
    Value::Number(8 + n)
}

fn constant(value: i32) -> Value {
    Value::Number(value.unsigned_abs())
}

fn step(kind: &'static CStr, attributes: impl Into<Vec<(u32, Value)>>) -> Step {
    Step { kind, attributes: attributes.into() }
}

/// A fact about the packet that is not in it (NFT_META_*).
pub(in crate::network::netlink) fn meta(key: i32, into: u32) -> Step {
    step(c"meta", [(c::NFTNL_EXPR_META_KEY, constant(key)), (c::NFTNL_EXPR_META_DREG, register(into))])
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
    step(
        c"payload",
        [
            (c::NFTNL_EXPR_PAYLOAD_BASE, constant(base)),
            (c::NFTNL_EXPR_PAYLOAD_OFFSET, Value::Number(offset)),
            (c::NFTNL_EXPR_PAYLOAD_LEN, Value::Number(length)),
            (c::NFTNL_EXPR_PAYLOAD_DREG, register(into)),
        ],
    )
}

fn compare(operation: i32, from: u32, bytes: &[u8]) -> Step {
    step(
        c"cmp",
        [
            (c::NFTNL_EXPR_CMP_SREG, register(from)),
            (c::NFTNL_EXPR_CMP_OP, constant(operation)),
            (c::NFTNL_EXPR_CMP_DATA, Value::Bytes(bytes.to_vec())),
        ],
    )
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
    step(
        c"bitwise",
        [
            (c::NFTNL_EXPR_BITWISE_SREG, register(at)),
            (c::NFTNL_EXPR_BITWISE_DREG, register(at)),
            (c::NFTNL_EXPR_BITWISE_LEN, Value::Number(4)),
            (c::NFTNL_EXPR_BITWISE_MASK, Value::Bytes(mask.to_vec())),
            (c::NFTNL_EXPR_BITWISE_XOR, Value::Bytes(vec![0; 4])),
        ],
    )
}

fn lookup_with(set: &CStr, from: u32, more: &[(u32, Value)]) -> Step {
    let mut attributes = vec![
        (c::NFTNL_EXPR_LOOKUP_SREG, register(from)),
        (c::NFTNL_EXPR_LOOKUP_SET, Value::Name(set.to_owned())),
    ];
    attributes.extend_from_slice(more);
    step(c"lookup", attributes)
}

/// Goes on if the set has what is in the registers from this one on.
pub(in crate::network::netlink) fn in_set(set: &CStr, from: u32) -> Step {
    lookup_with(set, from, &[])
}

/// Goes on if the set does not have what is in the registers from this one on.
pub(in crate::network::netlink) fn not_in_set(set: &CStr, from: u32) -> Step {
    lookup_with(set, from, &[(c::NFTNL_EXPR_LOOKUP_FLAGS, constant(libc::NFT_LOOKUP_F_INV))])
}

/// Goes on with a map's data for what is in the registers from `from` on, if it has that.
pub(in crate::network::netlink) fn look_up(map: &CStr, from: u32, into: u32) -> Step {
    lookup_with(map, from, &[(c::NFTNL_EXPR_LOOKUP_DREG, register(into))])
}

/// A fact about the packet's connection (NFT_CT_*).
pub(in crate::network::netlink) fn connection(key: i32, into: u32) -> Step {
    step(c"ct", [(c::NFTNL_EXPR_CT_KEY, constant(key)), (c::NFTNL_EXPR_CT_DREG, register(into))])
}

/// The port that the connection's first packet was sent to, before any translation.
pub(in crate::network::netlink) fn original_port(into: u32) -> Step {
    step(
        c"ct",
        [
            (c::NFTNL_EXPR_CT_KEY, constant(libc::NFT_CT_PROTO_DST)),
            (c::NFTNL_EXPR_CT_DIR, Value::Byte(0)),
            (c::NFTNL_EXPR_CT_DREG, register(into)),
        ],
    )
}

/// What the host's routes say the packet's destination is (RTN_*).
pub(in crate::network::netlink) fn destination_type(into: u32) -> Step {
    // NFTA_FIB_F_DADDR and NFT_FIB_RESULT_ADDRTYPE of linux/netfilter/nf_tables.h.
    step(
        c"fib",
        [
            (c::NFTNL_EXPR_FIB_DREG, register(into)),
            (c::NFTNL_EXPR_FIB_RESULT, Value::Number(3)),
            (c::NFTNL_EXPR_FIB_FLAGS, Value::Number(1 << 1)),
        ],
    )
}

/// Counts the packets that come here.
pub(in crate::network::netlink) fn count() -> Step {
    step(c"counter", [])
}

fn verdict(code: i32, chain: Option<&CStr>) -> Step {
    let mut attributes = vec![
        (c::NFTNL_EXPR_IMM_DREG, Value::Number(0)),
        (c::NFTNL_EXPR_IMM_VERDICT, Value::Number(u32::from_ne_bytes(code.to_ne_bytes()))),
    ];
    attributes.extend(chain.map(|name| (c::NFTNL_EXPR_IMM_CHAIN, Value::Name(CString::from(name)))));
    step(c"immediate", attributes)
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
    step(
        c"reject",
        [
            (c::NFTNL_EXPR_REJECT_TYPE, constant(libc::NFT_REJECT_TCP_RST)),
            (c::NFTNL_EXPR_REJECT_CODE, Value::Byte(0)),
        ],
    )
}

/// Answers a packet with "administratively prohibited".
pub(in crate::network::netlink) fn prohibit() -> Step {
    step(
        c"reject",
        [
            (c::NFTNL_EXPR_REJECT_TYPE, constant(libc::NFT_REJECT_ICMPX_UNREACH)),
            (c::NFTNL_EXPR_REJECT_CODE, Value::Byte(3)),
        ],
    )
}

/// Sends a new connection to the IPv4 address in one register, and the port in another.
pub(in crate::network::netlink) fn redirect_to(address: u32, port: Option<u32>) -> Step {
    let mut attributes = vec![
        (c::NFTNL_EXPR_NAT_TYPE, constant(libc::NFT_NAT_DNAT)),
        (c::NFTNL_EXPR_NAT_FAMILY, constant(libc::NFPROTO_IPV4)),
        (c::NFTNL_EXPR_NAT_REG_ADDR_MIN, register(address)),
    ];
    attributes.extend(port.map(|port| (c::NFTNL_EXPR_NAT_REG_PROTO_MIN, register(port))));
    step(c"nat", attributes)
}

/// Lets a new connection come from this host's own address.
pub(in crate::network::netlink) fn masquerade() -> Step {
    step(c"masq", [])
}
