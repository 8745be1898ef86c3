//! What rules are put together from.

use std::{ffi::CStr, net::Ipv4Addr};

use nftnl::nftnl_sys::libc;

use super::{FORWARDED, INTERNET};
use crate::network::netlink::{
    nft::{Step, steps::*},
    range::Range,
};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const DNS: u16 = 53;

pub(super) const STATE_ESTABLISHED: u32 = 1 << 1;
pub(super) const STATE_RELATED: u32 = 1 << 2;
pub(super) const STATUS_REDIRECTED: u32 = 1 << 5;
pub(super) const DIRECTION_ORIGINAL: u8 = 0;
pub(super) const DIRECTION_REPLY: u8 = 1;

/// Puts the steps of a rule one after the other.
pub(super) fn rule(steps: impl IntoIterator<Item = Vec<Step>>) -> Vec<Step> {
    steps.into_iter().flatten().collect()
}

/// Parts of rules of the inet family. Each may use the registers 0 to 3 and leaves nothing in them.
pub(super) struct Parts {
    pub(super) bridge: [u8; 16],
    pub(super) range: Range,
}

impl Parts {
    pub(super) fn ipv4() -> Vec<Step> {
        // NFPROTO_IPV4
        vec![meta(libc::NFT_META_NFPROTO, 0), is(0, &[2])]
    }

    pub(super) fn on_bridge(&self) -> Vec<Step> {
        vec![meta(libc::NFT_META_IIFNAME, 0), is(0, &self.bridge)]
    }

    pub(super) fn off_bridge(&self) -> Vec<Step> {
        vec![meta(libc::NFT_META_IIFNAME, 0), is_not(0, &self.bridge)]
    }

    pub(super) fn to_bridge(&self) -> Vec<Step> {
        vec![meta(libc::NFT_META_OIFNAME, 0), is(0, &self.bridge)]
    }

    pub(super) fn not_to_bridge(&self) -> Vec<Step> {
        vec![meta(libc::NFT_META_OIFNAME, 0), is_not(0, &self.bridge)]
    }

    pub(super) fn transport(protocol: u8) -> Vec<Step> {
        vec![meta(libc::NFT_META_L4PROTO, 0), is(0, &[protocol])]
    }

    pub(super) fn within(address: Step, bits: u8, network: Ipv4Addr) -> Vec<Step> {
        let mask_bits = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
        vec![address, mask(0, mask_bits.to_be_bytes()), is(0, &network.octets())]
    }

    pub(super) fn of_range(&self, address: Step) -> Vec<Step> {
        Self::within(address, self.range.prefix(), self.range.network())
    }

    pub(super) fn direction(direction: u8) -> Vec<Step> {
        vec![connection(libc::NFT_CT_DIRECTION, 0), is(0, &[direction])]
    }

    /// Any of the bits of a connection's state or status.
    pub(super) fn any_of(key: i32, bits: u32) -> Vec<Step> {
        vec![connection(key, 0), mask(0, bits.to_ne_bytes()), is_not(0, &[0; 4])]
    }

    pub(super) fn redirected() -> Vec<Step> {
        Self::any_of(libc::NFT_CT_STATUS, STATUS_REDIRECTED)
    }

    pub(super) fn not_redirected() -> Vec<Step> {
        vec![connection(libc::NFT_CT_STATUS, 0), mask(0, STATUS_REDIRECTED.to_ne_bytes()), is(0, &[0; 4])]
    }

    /// An answer within a connection that was begun from the other side.
    pub(super) fn answer() -> Vec<Step> {
        rule([
            Self::direction(DIRECTION_REPLY),
            Self::any_of(libc::NFT_CT_STATE, STATE_ESTABLISHED | STATE_RELATED),
        ])
    }

    /// TCP of a forward: the machine's address, its port, and the port it was sent to at first.
    pub(super) fn forward(address: Step, port: Step, look: fn(&CStr, u32) -> Step) -> Vec<Step> {
        rule([
            Self::redirected(),
            Self::transport(TCP),
            vec![address, port, original_port(2), look(FORWARDED, 0)],
        ])
    }

    /// A machine's question about a name, on its way to the resolver.
    pub(super) fn question() -> Vec<Step> {
        rule([
            Self::redirected(),
            Self::direction(DIRECTION_ORIGINAL),
            vec![source(0), in_set(INTERNET, 0), to_port(0), is(0, &DNS.to_be_bytes())],
        ])
    }
}

pub(super) fn source(into: u32) -> Step {
    payload(Header::Network, 12, 4, into)
}

pub(super) fn destination(into: u32) -> Step {
    payload(Header::Network, 16, 4, into)
}

pub(super) fn from_port(into: u32) -> Step {
    payload(Header::Transport, 0, 2, into)
}

pub(super) fn to_port(into: u32) -> Step {
    payload(Header::Transport, 2, 2, into)
}

pub(super) fn protocol(into: u32) -> Step {
    meta(libc::NFT_META_L4PROTO, into)
}
