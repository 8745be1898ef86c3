//! The network card: which it is, its addresses, the name servers.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Mutex;

use agentiso_guest::message::{ErrorCode, NetworkConfiguration};

use super::netlink::Netlink;
use crate::agent::lock;
use crate::failure::Failure;
use crate::files::write_whole;

const CARDS: &str = "/sys/class/net";
const LOOPBACK_INDEX: u32 = 1;
/// Name servers that a C library looks at.
const MAX_NAME_SERVERS: usize = 8;
/// Smallest packet that IPv4 allows, and the largest that a card takes, in bytes.
const MTU_RANGE: std::ops::RangeInclusive<u32> = 68..=65_535;

/// The card that was set up last, and how.
///
/// It is in memory, and so in every copy of the machine: one that gets the same addresses wants no more than a hardware
/// address of its own, which is a tenth of the work.
static PRESENT: Mutex<Option<(u32, Checked)>> = Mutex::new(None);

/// A network configuration that was checked.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Checked {
    mac: Option<[u8; 6]>,
    address: Ipv4Addr,
    prefix: u8,
    gateway: Option<Ipv4Addr>,
    name_servers: Vec<IpAddr>,
    mtu: Option<u32>,
    ipv6: bool,
}

pub(super) fn check(network: &NetworkConfiguration) -> Result<Checked, Failure> {
    let wrong =
        |what: &str, text: &str| Failure::invalid(format!("setting up the network: {text:?} is no {what}"));
    let ipv4 = |text: &String| text.parse::<Ipv4Addr>().map_err(|_| wrong("IPv4 address", text));
    if !(1..=32).contains(&network.prefix) {
        return Err(wrong("prefix length from 1 to 32", &network.prefix.to_string()));
    }
    if let Some(mtu) = network.mtu.filter(|mtu| !MTU_RANGE.contains(mtu)) {
        return Err(wrong("packet size from 68 to 65535", &mtu.to_string()));
    }
    if network.dns.len() > MAX_NAME_SERVERS {
        return Err(wrong("number of name servers up to 8", &network.dns.len().to_string()));
    }
    Ok(Checked {
        mac: network
            .mac
            .as_ref()
            .map(|text| parse_mac(text).ok_or_else(|| wrong("hardware address like aa:bb:cc:dd:ee:ff", text)))
            .transpose()?,
        address: ipv4(&network.address)?,
        prefix: network.prefix,
        gateway: network.gateway.as_ref().map(ipv4).transpose()?,
        name_servers: network
            .dns
            .iter()
            .map(|text| text.parse().map_err(|_| wrong("address of a name server", text)))
            .collect::<Result<_, _>>()?,
        mtu: network.mtu,
        ipv6: network.ipv6,
    })
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let digits = parts
            .next()
            .filter(|digits| digits.len() == 2 && digits.bytes().all(|d| d.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// Sets the card up. One that is set up so already, but for its hardware address, gets that alone.
pub(super) fn set(network: &Checked) -> Result<(), Failure> {
    let mut present = lock(&PRESENT);
    if let Some((index, before)) = &mut *present
        && (Checked { mac: network.mac, ..before.clone() }) == *network
    {
        let new_mac = network.mac.filter(|_| network.mac != before.mac);
        if Netlink::open().and_then(|netlink| netlink.link_up(*index, new_mac, None)).is_ok() {
            before.mac = network.mac;
            return Ok(());
        }
        // Another card by now: all of it, then.
    }
    *present = None;
    let index = set_up(network)?;
    *present = Some((index, network.clone()));
    Ok(())
}

/// Sets all of it up and returns the card's index.
fn set_up(network: &Checked) -> Result<u32, Failure> {
    let card = find_card(network.mac)?;
    let failed = |what: &str, error| {
        Failure::system(format!("setting up the network: {what} of {}", card.name), error)
    };
    let netlink = Netlink::open().map_err(|error| failed("the state", error))?;
    set_ipv6(&card.name, network.ipv6)?;
    let new_mac = network.mac.filter(|mac| Some(*mac) != card.mac);
    netlink
        .link_up(card.index, new_mac, network.mtu)
        .map_err(|error| failed("state, hardware address or MTU", error))?;
    netlink
        .set_address(card.index, network.address, network.prefix)
        .map_err(|error| failed("the address", error))?;
    netlink.set_gateway(card.index, network.gateway).map_err(|error| failed("the default route", error))?;
    let resolv: String = network.name_servers.iter().map(|server| format!("nameserver {server}\n")).collect();
    write_whole(Path::new("/etc/resolv.conf"), &resolv)?;
    Ok(card.index)
}

/// Lets a card speak IPv6 or not; before it is up, so that it does not begin.
fn set_ipv6(card: &str, wanted: bool) -> Result<(), Failure> {
    let setting = Path::new("/proc/sys/net/ipv6/conf").join(card).join("disable_ipv6");
    match fs::write(&setting, if wanted { "0" } else { "1" }) {
        // A kernel without IPv6.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        written => written.map_err(|error| {
            Failure::io(format!("setting up the network: writing {}", setting.display()), &error)
        }),
    }
}

/// At boot: takes the loopback interface up.
///
/// # Errors
/// The kernel has no network.
pub(crate) fn loopback_up() -> Result<(), rustix::io::Errno> {
    Netlink::open()?.link_up(LOOPBACK_INDEX, None, None)
}

struct Card {
    name: String,
    index: u32,
    mac: Option<[u8; 6]>,
}

/// The card with this hardware address, or else the only one that belongs to a device (bridges and the like do not).
fn find_card(mac: Option<[u8; 6]>) -> Result<Card, Failure> {
    let listing =
        fs::read_dir(CARDS).map_err(|error| Failure::io("setting up the network: listing cards", &error))?;
    let mut cards: Vec<Card> = listing
        .flatten()
        .filter(|entry| entry.path().join("device").exists())
        .filter_map(|entry| {
            let read = |name: &str| fs::read_to_string(entry.path().join(name)).ok();
            Some(Card {
                name: entry.file_name().to_string_lossy().into_owned(),
                index: read("ifindex")?.trim().parse().ok()?,
                mac: read("address").and_then(|text| parse_mac(text.trim())),
            })
        })
        .collect();
    if let Some(at) = cards.iter().position(|card| mac.is_some() && card.mac == mac) {
        return Ok(cards.swap_remove(at));
    }
    match (cards.pop(), cards.is_empty()) {
        (Some(card), true) => Ok(card),
        (None, _) => Err(Failure::new(
            ErrorCode::NotFound,
            "setting up the network: the machine has no network card (is the module virtio_net loaded?)",
        )),
        (Some(_), false) => Err(Failure::new(
            ErrorCode::NotFound,
            "setting up the network: the machine has several cards, and none with the hardware address given",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> NetworkConfiguration {
        NetworkConfiguration {
            mac: Some("52:54:00:aB:cd:ef".to_owned()),
            address: "10.0.2.15".to_owned(),
            prefix: 24,
            gateway: Some("10.0.2.2".to_owned()),
            dns: vec!["10.0.2.3".to_owned()],
            mtu: Some(1500),
            ipv6: true,
        }
    }

    #[test]
    fn valid_network_is_accepted() {
        let checked = check(&network()).unwrap();

        assert_eq!(checked.mac, Some([0x52, 0x54, 0, 0xab, 0xcd, 0xef]));
        assert_eq!(checked.address, Ipv4Addr::new(10, 0, 2, 15));
    }

    #[test]
    fn each_wrong_field_is_refused() {
        let wrong: [fn(&mut NetworkConfiguration); 8] = [
            |network| network.mac = Some("52:54:00:ab:cd".to_owned()),
            |network| network.mac = Some("52:54:00:ab:cd:+f".to_owned()),
            |network| network.address = "10.0.2.256".to_owned(),
            |network| network.prefix = 0,
            |network| network.prefix = 33,
            |network| network.gateway = Some("host".to_owned()),
            |network| network.dns = vec!["10.0.2.3\noptions x".to_owned()],
            |network| network.mtu = Some(67),
        ];
        for change in wrong {
            let mut network = network();
            change(&mut network);
            assert!(check(&network).is_err(), "{network:?}");
        }
    }
}
