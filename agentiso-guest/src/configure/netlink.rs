//! The few rtnetlink requests that a network card needs.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};

use crate::agent::retry;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const REPLACE: u16 = 0x100;
const DUMP: u16 = 0x300;
const CREATE: u16 = 0x400;
const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const IFF_UP: u32 = 1;
const FAMILY_UNSPEC: u8 = 0;
const FAMILY_INET: u8 = 2;
const TABLE_MAIN: u8 = 254;
const PROTOCOL_BOOT: u8 = 3;
const TYPE_UNICAST: u8 = 1;
const HEADER_BYTES: usize = 16;
const ADDRESS_HEADER_BYTES: usize = 8;
/// Most that the kernel puts into one answer of a dump.
const ANSWER_BYTES: usize = 32 * 1024;
/// Default routes removed before giving up; there is one in all but the oddest case.
const MAX_DEFAULT_ROUTES: usize = 64;

/// A socket to the kernel's routing tables.
pub(super) struct Netlink {
    socket: OwnedFd,
}

impl Netlink {
    pub(super) fn open() -> Result<Self, Errno> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket })
    }

    /// Takes a card up, with a new hardware address and packet size where given.
    pub(super) fn link_up(&self, index: u32, mac: Option<[u8; 6]>, mtu: Option<u32>) -> Result<(), Errno> {
        let mut request = Request::new(RTM_NEWLINK, REQUEST | ACK);
        request.bytes(&[FAMILY_UNSPEC, 0, 0, 0]);
        request.number(index).number(IFF_UP).number(IFF_UP);
        if let Some(mac) = mac {
            request.attribute(IFLA_ADDRESS, &mac);
        }
        if let Some(mtu) = mtu {
            request.attribute(IFLA_MTU, &mtu.to_ne_bytes());
        }
        self.execute(request)
    }

    /// Gives a card this IPv4 address and no other.
    pub(super) fn set_address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> Result<(), Errno> {
        // The others first: beside another one of its network this one would be a second address, and go with the first.
        for (other, other_prefix) in self.addresses(index)? {
            if (other, other_prefix) != (address, prefix) {
                let mut request = Request::new(RTM_DELADDR, REQUEST | ACK);
                request.bytes(&[FAMILY_INET, other_prefix, 0, 0]).number(index);
                request.attribute(IFA_LOCAL, &other.octets());
                match self.execute(request) {
                    // Deleting a first address deletes its second ones too.
                    Ok(()) | Err(Errno::ADDRNOTAVAIL) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let mut request = Request::new(RTM_NEWADDR, REQUEST | ACK | CREATE | REPLACE);
        request.bytes(&[FAMILY_INET, prefix, 0, 0]).number(index);
        request.attribute(IFA_LOCAL, &address.octets()).attribute(IFA_ADDRESS, &address.octets());
        let host_bits = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
        request.attribute(IFA_BROADCAST, &(address.to_bits() | host_bits).to_be_bytes());
        self.execute(request)
    }

    /// Makes `gateway` the default route, or leaves the card without one.
    pub(super) fn set_gateway(&self, index: u32, gateway: Option<Ipv4Addr>) -> Result<(), Errno> {
        for _ in 0..MAX_DEFAULT_ROUTES {
            let mut request = Request::new(RTM_DELROUTE, REQUEST | ACK);
            request.bytes(&[FAMILY_INET, 0, 0, 0, TABLE_MAIN, 0, 0, 0]).number(0);
            request.attribute(RTA_OIF, &index.to_ne_bytes());
            match self.execute(request) {
                Ok(()) => {}
                Err(Errno::SRCH) => break,
                Err(error) => return Err(error),
            }
        }
        let Some(gateway) = gateway else { return Ok(()) };
        let mut request = Request::new(RTM_NEWROUTE, REQUEST | ACK | CREATE | REPLACE);
        request.bytes(&[FAMILY_INET, 0, 0, 0, TABLE_MAIN, PROTOCOL_BOOT, 0, TYPE_UNICAST]).number(0);
        request.attribute(RTA_GATEWAY, &gateway.octets()).attribute(RTA_OIF, &index.to_ne_bytes());
        self.execute(request)
    }

    fn addresses(&self, index: u32) -> Result<Vec<(Ipv4Addr, u8)>, Errno> {
        let mut request = Request::new(RTM_GETADDR, REQUEST | DUMP);
        request.bytes(&[FAMILY_INET, 0, 0, 0]).number(0);
        let mut found = Vec::new();
        self.send(request)?;
        self.receive(|kind, body| {
            if kind != RTM_NEWADDR || body.len() < ADDRESS_HEADER_BYTES || body[4..8] != index.to_ne_bytes() {
                return;
            }
            let prefix = body[1];
            let mut attributes = &body[ADDRESS_HEADER_BYTES..];
            while let Some((kind, value, rest)) = next_attribute(attributes) {
                if let (IFA_LOCAL, Ok(octets)) = (kind, <[u8; 4]>::try_from(value)) {
                    found.push((Ipv4Addr::from(octets), prefix));
                }
                attributes = rest;
            }
        })?;
        Ok(found)
    }

    fn execute(&self, request: Request) -> Result<(), Errno> {
        self.send(request)?;
        self.receive(|_, _| {})
    }

    fn send(&self, request: Request) -> Result<(), Errno> {
        let bytes = request.finish();
        retry(|| sendto(&self.socket, &bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))).map(drop)
    }

    /// Gives each message of the answer to `take`, until its end.
    fn receive(&self, mut take: impl FnMut(u16, &[u8])) -> Result<(), Errno> {
        let mut answer = vec![0_u8; ANSWER_BYTES];
        loop {
            let (count, _) = retry(|| recv(&self.socket, &mut answer[..], RecvFlags::empty()))?;
            let mut messages = &answer[..count];
            while let Some((header, _)) = messages.split_first_chunk::<HEADER_BYTES>() {
                let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
                let kind = u16::from_ne_bytes([header[4], header[5]]);
                let body = messages.get(HEADER_BYTES..length).ok_or(Errno::PROTO)?;
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code =
                            body.first_chunk().map(|code| i32::from_ne_bytes(*code)).ok_or(Errno::PROTO)?;
                        return if code == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(-code)) };
                    }
                    kind => take(kind, body),
                }
                messages = messages.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

fn next_attribute(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (header, _) = bytes.split_first_chunk::<4>()?;
    let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
    let value = bytes.get(4..length)?;
    let rest = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((u16::from_ne_bytes([header[2], header[3]]), value, rest))
}

/// A request under construction.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        // Sequence number and sender: one request at a time needs neither.
        bytes.extend_from_slice(&[0; 8]);
        Self(bytes)
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn number(&mut self, number: u32) -> &mut Self {
        self.bytes(&number.to_ne_bytes())
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        // Values here are at most six bytes long.
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes(&length.to_ne_bytes()).bytes(&kind.to_ne_bytes()).bytes(value);
        let padded = self.0.len().next_multiple_of(4);
        self.0.resize(padded, 0);
        self
    }

    fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A network namespace begins with a loopback that has no address yet.
    const CARD: u32 = 1;

    /// Not a test of its own: what is done in a network of its own.
    #[test]
    #[ignore = "helper process of new_address_of_the_same_network_takes_the_place_of_the_old_one"]
    fn helper_process_in_a_network_of_its_own() {
        let netlink = Netlink::open().unwrap();
        for last in [5, 9, 9, 7] {
            let address = Ipv4Addr::new(10, 99, 0, last);

            netlink.set_address(CARD, address, 16).unwrap();

            assert_eq!(netlink.addresses(CARD).unwrap(), [(address, 16)]);
        }
        netlink.set_address(CARD, Ipv4Addr::new(10, 99, 0, 7), 24).unwrap();
        assert_eq!(netlink.addresses(CARD).unwrap(), [(Ipv4Addr::new(10, 99, 0, 7), 24)]);
    }

    #[test]
    fn new_address_of_the_same_network_takes_the_place_of_the_old_one() {
        let helper = "configure::netlink::tests::helper_process_in_a_network_of_its_own";
        let own = std::env::current_exe().unwrap();
        let output =
            Command::new("unshare").arg("-rn").arg(own).args(["--exact", "--ignored", helper]).output();
        let output = output.unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if err.starts_with("unshare: ") {
            println!("skipped: this user may not have a network of its own: {err}");
            return;
        }

        assert!(output.status.success() && out.contains("1 passed"), "{out}{err}");
    }
}
