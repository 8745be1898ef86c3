//! The addresses of the small network that each machine has to itself.

use std::net::Ipv4Addr;

use crate::network::MacAddress;
use crate::types::WorkspaceId;

/// The network of a machine and its gateway; no packet ever leaves it. The same numbers as QEMU's own user network.
#[cfg(any(test, feature = "shim"))]
pub(crate) const NETWORK: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 0);
/// Bits of its network part.
pub(crate) const PREFIX: u8 = 24;
/// Its mask.
#[cfg(feature = "shim")]
pub(crate) const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
/// The machine.
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// Where the machine's default route goes, and where forwarded connections come from.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Its name server: the shim, which asks the host's.
pub(crate) const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// The gateway's MAC address (and the name server's).
#[cfg(feature = "shim")]
pub(crate) const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];

/// Largest IP packet on the link between machine and shim, in bytes.
///
/// Nothing on that link has a smaller limit, and the cost of a packet, most of all under emulation, hardly grows with
/// its size. TCP ends in the shim, so the internet's own limits never show. QEMU takes frames of up to 69632 bytes.
pub(crate) const MTU: u16 = 65520;

/// The MAC address of a machine: locally administered, unicast, from the bits of its id.
pub(crate) fn machine_mac(id: WorkspaceId) -> MacAddress {
    let [.., a, b, c, d] = id.as_uuid().into_bytes();
    MacAddress([0x52, 0x54, a, b, c, d])
}

/// Whether an address is inside the machine's own network.
#[cfg(feature = "shim")]
pub(crate) fn is_own(address: Ipv4Addr) -> bool {
    address & MASK == NETWORK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_mac_is_unicast_and_locally_administered() {
        let MacAddress([first, ..]) = machine_mac(WorkspaceId::random());
        assert_eq!(first & 0b11, 0b10);
    }

    #[test]
    fn machine_mac_differs_between_machines() {
        assert_ne!(machine_mac(WorkspaceId::random()), machine_mac(WorkspaceId::random()));
    }
}
