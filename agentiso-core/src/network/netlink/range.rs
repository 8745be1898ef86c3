//! The addresses of a state folder's machines.

use std::{fmt, net::Ipv4Addr, ops::RangeInclusive, str::FromStr};

use crate::network::MacAddress;

/// A range of IPv4 addresses: the first is the host's, the others are for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    network: Ipv4Addr,
    prefix: u8,
}

/// A range was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no range of addresses: use one like 10.99.0.0/16, of 8 to 29 bits")]
pub struct InvalidRange {
    given: String,
}

impl Range {
    /// The bits of a network part that leave enough addresses, and not half of all.
    const PREFIXES: RangeInclusive<u8> = 8..=29;

    /// The first address.
    pub fn network(&self) -> Ipv4Addr {
        self.network
    }

    /// Bits of the network part.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The host's address, to which machines send what is for outside.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) + 1)
    }

    /// The host's MAC address towards machines.
    pub(super) fn gateway_mac(&self) -> MacAddress {
        let [a, b, c, d] = self.gateway().octets();
        MacAddress([0x52, 0x55, a, b, c, d])
    }

    /// The last address, to which all listen.
    fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network) | (u32::MAX >> self.prefix))
    }

    /// Addresses of machines, as numbers.
    pub(super) fn machines(&self) -> RangeInclusive<u32> {
        u32::from(self.gateway()) + 1..=u32::from(self.broadcast()) - 1
    }

    /// Whether any address is in both.
    pub(super) fn overlaps(&self, network: Ipv4Addr, prefix: u8) -> bool {
        let bits = u32::from(self.prefix.min(prefix));
        let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
        u32::from(self.network) & mask == u32::from(network) & mask
    }
}

impl Default for Range {
    fn default() -> Self {
        Self { network: Ipv4Addr::new(10, 99, 0, 0), prefix: 16 }
    }
}

impl FromStr for Range {
    type Err = InvalidRange;

    fn from_str(text: &str) -> Result<Self, InvalidRange> {
        let invalid = || InvalidRange { given: text.chars().take(64).collect() };
        let (network, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let network: Ipv4Addr = network.parse().map_err(|_| invalid())?;
        let prefix: u8 = prefix.parse().map_err(|_| invalid())?;
        let whole = Self::PREFIXES.contains(&prefix) && u32::from(network) & (u32::MAX >> prefix) == 0;
        whole.then_some(Self { network, prefix }).ok_or_else(invalid)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_is_a_whole_network() {
        for text in ["10.99.0.0/16", "192.168.7.0/24", "10.0.0.0/8", "10.0.0.8/29"] {
            assert_eq!(text.parse::<Range>().unwrap().to_string(), text);
        }
        for text in
            ["10.99.0.1/16", "10.99.0.0", "10.99.0.0/7", "10.99.0.0/30", "::/64", "x/16", "1.0.0.0/40"]
        {
            assert!(text.parse::<Range>().is_err(), "{text}");
        }
    }

    #[test]
    fn machines_have_all_but_three_addresses() {
        let range: Range = "10.0.0.8/29".parse().unwrap();
        assert_eq!(range.gateway(), Ipv4Addr::new(10, 0, 0, 9));
        let machines = range.machines();
        assert_eq!(Ipv4Addr::from(*machines.start()), Ipv4Addr::new(10, 0, 0, 10));
        assert_eq!(Ipv4Addr::from(*machines.end()), Ipv4Addr::new(10, 0, 0, 14));
    }

    #[test]
    fn overlap_is_seen_from_both_sides() {
        let range = Range::default();
        for (address, prefix, expected) in [
            ([10, 99, 3, 0], 24, true),
            ([10, 0, 0, 0], 8, true),
            ([10, 98, 0, 0], 16, false),
            ([10, 100, 0, 1], 32, false),
            ([0, 0, 0, 0], 0, true),
        ] {
            assert_eq!(range.overlaps(Ipv4Addr::from(address), prefix), expected, "{address:?}/{prefix}");
        }
    }
}
