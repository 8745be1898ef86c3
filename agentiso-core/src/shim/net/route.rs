//! Asking the kernel what an address is to this host.

use std::{io, net::Ipv4Addr, os::fd::OwnedFd};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

/// Bytes of `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// Bytes of `struct rtmsg`.
const ROUTE_BYTES: usize = 12;
/// Bytes of the attribute that holds an IPv4 address.
const ADDRESS_BYTES: usize = 8;
/// Where `rtm_type` lies in an answer.
const TYPE_AT: usize = HEADER_BYTES + 7;

// <linux/netlink.h>, <linux/rtnetlink.h>
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const NLM_F_REQUEST: u16 = 1;
const RTA_DST: u16 = 1;
const RTN_UNICAST: u8 = 1;

/// A socket to the kernel's routing tables.
pub(super) struct Routes {
    socket: OwnedFd,
    sequence: u32,
}

impl Routes {
    /// # Errors
    /// The kernel has no routing socket for this process.
    pub(super) fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // Protocol 0 is NETLINK_ROUTE.
            None,
        )?;
        rustix::net::connect(&socket, &netlink::SocketAddrNetlink::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Whether a packet to this address would leave the host, to one other host: not an address of the host's own,
    /// no broadcast or multicast, and reachable at all. What the kernel does not answer clearly counts as no.
    pub(super) fn leaves_host(&mut self, address: Ipv4Addr) -> bool {
        matches!(self.kind(address), Ok(Some(RTN_UNICAST)))
    }

    /// The type of the route that the host itself would use; `None` if there is no route.
    fn kind(&mut self, address: Ipv4Addr) -> io::Result<Option<u8>> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence.to_ne_bytes();
        let request = question(address, sequence);
        rustix::net::send(&self.socket, &request, SendFlags::DONTWAIT)?;
        let mut answer = [0; 4096];
        // The kernel answers before send returns. What an earlier, abandoned question left is skipped.
        loop {
            let (count, _) = rustix::net::recv(&self.socket, &mut answer, RecvFlags::DONTWAIT)?;
            let answer = &answer[..count.min(answer.len())];
            if answer.get(8..12) == Some(&sequence) {
                let is_route = answer.get(4..6) == Some(&RTM_NEWROUTE.to_ne_bytes());
                return Ok(answer.get(TYPE_AT).copied().filter(|_| is_route));
            }
        }
    }
}

fn question(address: Ipv4Addr, sequence: [u8; 4]) -> [u8; HEADER_BYTES + ROUTE_BYTES + ADDRESS_BYTES] {
    let mut message = [0; HEADER_BYTES + ROUTE_BYTES + ADDRESS_BYTES];
    message[0] = 36; // its whole length
    message[4..6].copy_from_slice(&RTM_GETROUTE.to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message[8..12].copy_from_slice(&sequence);
    message[16] = 2; // AF_INET
    message[17] = 32; // bits of the address that count
    message[28..30].copy_from_slice(&8_u16.to_ne_bytes()); // the attribute's length
    message[30..32].copy_from_slice(&RTA_DST.to_ne_bytes());
    message[32..36].copy_from_slice(&address.octets());
    if cfg!(target_endian = "big") {
        message[..4].copy_from_slice(&36_u32.to_be_bytes());
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_does_not_leave_the_host() {
        let mut routes = Routes::open().unwrap();
        for local in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 9, 9, 9)] {
            assert!(!routes.leaves_host(local), "{local}");
        }
    }

    #[test]
    fn broadcast_and_multicast_do_not_leave_the_host() {
        let mut routes = Routes::open().unwrap();
        for address in [Ipv4Addr::BROADCAST, Ipv4Addr::new(224, 0, 0, 1)] {
            assert!(!routes.leaves_host(address), "{address}");
        }
    }
}
