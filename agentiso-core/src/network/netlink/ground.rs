//! The bridge, the rules and the ledger of one state folder. Everything here blocks.

use std::{
    collections::BTreeMap,
    ffi::CString,
    future::Future,
    io,
    net::{Ipv4Addr, TcpListener},
    os::fd::OwnedFd,
    path::Path,
};

use sha2::{Digest, Sha256};

use super::{
    ForwardsFrom, NetlinkConfig, elements,
    ledger::{self, Card, Cards, Ledger},
    link::{self, Links},
    nft::{self, Elements},
    rules, sys, sysctl,
};
use crate::{
    leases::LeaseKind,
    network::{NetworkError, NetworkPolicy, resolvers},
    types::{GuestPort, HostPort, WorkspaceId, is_valid_workspace_name},
};

/// Where systemd-resolved names the servers that it asks itself.
const RESOLVED_CONF: &str = "/run/systemd/resolve/resolv.conf";

/// Times that a free port is looked for.
const PORT_TRIES: usize = 64;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Ground {
    pub(super) config: NetlinkConfig,
    pub(super) bridge: String,
    /// What the names of TAP devices begin with.
    ports: String,
    /// Of the tables.
    table: CString,
}

pub(super) fn failed(
    operation: &'static str,
    object: impl Into<String>,
) -> impl FnOnce(io::Error) -> NetworkError {
    let object = object.into();
    move |source| NetworkError::Io { operation, object, source }
}

/// Waits for a future, on a thread that may block.
fn wait<T>(future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::runtime::Handle::current().block_on(future)
}

impl Ground {
    pub(super) fn new(config: NetlinkConfig) -> io::Result<Self> {
        let hash = Sha256::digest(config.state_id.as_bytes());
        let short: String = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let table = CString::new(format!("agentiso_{short}")).map_err(io::Error::other)?;
        Ok(Self { config, bridge: format!("agbr{short}"), ports: format!("at{short}"), table })
    }

    /// A name for a TAP device, of the 15 bytes that the kernel allows. None of these cards has it.
    pub(super) fn new_tap(&self, cards: &Cards) -> String {
        loop {
            let random = WorkspaceId::random().as_uuid().as_u128();
            let digits = (0..5u32).filter_map(|n| {
                char::from_digit(u32::try_from(random / 36u128.pow(n) % 36).unwrap_or_default(), 36)
            });
            let name: String = self.ports.chars().chain(digits).collect();
            if cards.cards.values().all(|card| card.tap != name) {
                return name;
            }
        }
    }

    /// Whether this host has all it takes, and the range is free.
    pub(super) fn check(&self) -> Result<(), NetworkError> {
        let missing = |what: &str, remedy: &str| NetworkError::Missing {
            what: what.to_owned(),
            remedy: remedy.to_owned(),
        };
        if !rustix::process::geteuid().is_root() {
            let remedy = "run as root, or use the user network, which needs no privileges";
            return Err(missing("the privilege to make network devices", remedy));
        }
        if std::fs::File::options().read(true).write(true).open(sys::TUN).is_err() {
            return Err(missing(sys::TUN, "load the kernel module: modprobe tun"));
        }
        let mut probe = self.table.as_bytes().to_vec();
        probe.extend_from_slice(b"_probe");
        let probe = CString::new(probe).map_err(|error| failed("name", "a table")(error.into()))?;
        nft::remove(&probe).map_err(|error| {
            let remedy = format!("load the kernel module: modprobe nf_tables ({error})");
            missing("nftables", &remedy)
        })?;
        self.check_range()
    }

    fn check_range(&self) -> Result<(), NetworkError> {
        let range = self.config.range;
        let found = wait(async { Links::open()?.in_the_way(range, &self.bridge).await })
            .map_err(failed("look for other users of", format!("the address range {range}")))?;
        match found {
            None => Ok(()),
            Some(other) => Err(NetworkError::Unsupported {
                what: format!(
                    "using the address range {range}, while the interface {} has {},",
                    other.interface, other.what
                ),
                remedy: "configure another range, or remove the interface if nothing needs it any more"
                    .to_owned(),
            }),
        }
    }

    pub(super) fn ledger(&self) -> Result<(Ledger, Cards), NetworkError> {
        let open = || {
            let ledger = Ledger::open(&self.config.state_dir)?;
            let cards = ledger.read()?;
            Ok((ledger, cards))
        };
        open().map_err(failed("read", "the list of network cards"))
    }

    /// The cards, without waiting for anyone.
    pub(super) fn peek(&self) -> Result<Cards, NetworkError> {
        ledger::peek(&self.config.state_dir).map_err(failed("read", "the list of network cards"))
    }

    /// Makes again what the cards of living machines need and is not there: after `nft flush ruleset`, or after the
    /// death of a process in the middle of a change.
    pub(super) fn rebuild(&self) -> Result<(), NetworkError> {
        let (ledger, cards) = self.ledger()?;
        let mut any_alive = false;
        for card in cards.cards.values() {
            any_alive |= is_alive(card)?;
        }
        if !any_alive {
            return Ok(());
        }
        let found = self.settle(&ledger, &Elements::new(), &cards);
        found.map_err(failed("rebuild", "the network of this state folder"))
    }

    pub(super) fn elements(&self, cards: &Cards) -> Elements {
        elements::of(cards, self.config.range, self.resolver())
    }

    /// Writes the cards down and brings bridge and rules in line with them.
    pub(super) fn put(&self, ledger: &Ledger, before: &Cards, after: &mut Cards) -> io::Result<()> {
        let uplinks = self.plan_forwarding(after)?;
        ledger.write(after)?;
        let before = self.elements(before);
        if after.cards.is_empty() {
            ledger.unsettled()?;
            self.remove_all(after)?;
            ledger.write(after)?;
            return ledger.settled();
        }
        for uplink in uplinks {
            sysctl::forward(&uplink, true)?;
        }
        self.settle(ledger, &before, after)
    }

    /// Brings bridge and rules in line with the cards. `before` is what is in the sets; more may be, if the ledger is
    /// not settled, and less if something foreign removed it.
    fn settle(&self, ledger: &Ledger, before: &Elements, after: &Cards) -> io::Result<()> {
        let trusted = !ledger.is_unsettled();
        ledger.unsettled()?;
        let made = self.ensure_bridge()?;
        let elements = self.elements(after);
        let changed = trusted && nft::change(&self.table, before, &elements).is_ok();
        if !changed {
            let plan = rules::Plan {
                bridge: &self.bridge,
                ports: &self.ports,
                range: self.config.range,
                forwards_from: self.config.forwards_from,
            };
            nft::replace(&self.table, &rules::tables(&plan), &elements)?;
        }
        if made {
            for card in after.cards.values() {
                self.connect(card)?;
            }
        }
        ledger.settled()
    }

    /// Makes the bridge if it is not there. Returns whether it was made.
    fn ensure_bridge(&self) -> io::Result<bool> {
        let found = link::index(&self.bridge)?;
        let mac = self.config.range.gateway_mac();
        wait(async {
            let links = Links::open()?;
            let index = match found {
                Some(index) => index,
                None => links.add_bridge(&self.bridge, mac).await?,
            };
            sysctl::without_ipv6(&self.bridge)?;
            sysctl::route_loopback(&self.bridge)?;
            sysctl::forward(&self.bridge, true)?;
            links.start_bridge(index, self.config.range).await
        })?;
        Ok(found.is_none())
    }

    /// Makes the card's device a port of the bridge, if the device is there.
    fn connect(&self, card: &Card) -> io::Result<()> {
        let (Some(bridge), Some(port)) = (link::index(&self.bridge)?, link::index(&card.tap)?) else {
            return Ok(());
        };
        sysctl::without_ipv6(&card.tap)?;
        wait(async { Links::open()?.add_port(bridge, port, card.mac(), !card.is_sociable()).await })
    }

    /// Makes a card's device, connected to the bridge.
    pub(super) fn plug(&self, card: &Card) -> io::Result<OwnedFd> {
        let tap = sys::open_tap(&card.tap)?;
        self.connect(card)?;
        Ok(tap)
    }

    pub(super) fn isolate(&self, card: &Card) -> io::Result<()> {
        let Some(port) = link::index(&card.tap)? else { return Ok(()) };
        wait(async { Links::open()?.isolate(port, !card.is_sociable()).await })
    }

    pub(super) fn unplug(&self, tap: &str) -> io::Result<()> {
        match link::index(tap)? {
            Some(_) => wait(async { Links::open()?.remove(tap).await }),
            None => Ok(()),
        }
    }

    fn remove_all(&self, cards: &mut Cards) -> io::Result<()> {
        nft::remove(&self.table)?;
        if link::index(&self.bridge)?.is_some() {
            wait(async { Links::open()?.remove(&self.bridge).await })?;
        }
        // In another run of the kernel, somebody else switched it on.
        let ours = cards.boot == sysctl::boot_id()?;
        for uplink in std::mem::take(&mut cards.forwarding) {
            if ours && link::index(&uplink)?.is_some() {
                sysctl::forward(&uplink, false)?;
            }
        }
        Ok(())
    }

    /// Notes the interfaces that have to forward packets for these cards and do not yet, and returns them.
    fn plan_forwarding(&self, cards: &mut Cards) -> io::Result<Vec<String>> {
        let outside = |card: &Card| {
            let forwards = self.config.forwards_from == ForwardsFrom::Anywhere && !card.forwards.is_empty();
            card.policy.allow_internet || forwards
        };
        let boot = sysctl::boot_id()?;
        if cards.boot != boot {
            cards.boot = boot;
            cards.forwarding.clear();
        }
        if !cards.cards.values().any(outside) {
            return Ok(Vec::new());
        }
        let mut new = Vec::new();
        for uplink in wait(async { Links::open()?.uplinks().await })? {
            if uplink != self.bridge && !sysctl::forwards(&uplink)? {
                new.push(uplink);
            }
        }
        cards
            .forwarding
            .extend(new.iter().filter(|name| !cards.forwarding.contains(name)).cloned().collect::<Vec<_>>());
        Ok(new)
    }

    /// The name server that machines' questions go to: the first one that is not on the host's loopback, where those of
    /// this host listen to this host alone.
    fn resolver(&self) -> Option<Ipv4Addr> {
        let named = |file: &str| {
            resolvers::of_host(Path::new(file)).into_iter().filter_map(|address| match address {
                std::net::IpAddr::V4(address) => Some(address),
                std::net::IpAddr::V6(_) => None,
            })
        };
        let outside = |address: &Ipv4Addr| !address.is_loopback();
        self.config
            .resolver
            .or_else(|| named(resolvers::RESOLV_CONF).find(outside))
            .or_else(|| named(RESOLVED_CONF).find(outside))
            .or_else(|| named(resolvers::RESOLV_CONF).next())
    }

    pub(super) fn take_address(&self, id: WorkspaceId) -> Result<Ipv4Addr, NetworkError> {
        let range = self.config.range;
        let taken = self.config.leases.take(LeaseKind::Address, id, range.machines(), self.config.cool_down);
        let address = taken.map_err(|error| {
            failed("find", format!("a free address in {range} for machine {id}"))(io::Error::other(error))
        })?;
        Ok(Ipv4Addr::from(address))
    }

    pub(super) fn give_address_back(&self, id: WorkspaceId) -> Result<(), NetworkError> {
        self.config.leases.give_back(LeaseKind::Address, id).map_err(|error| {
            failed("give back", format!("the address of machine {id}"))(io::Error::other(error))
        })
    }

    /// The host's port of a new forward: the one that is asked for, if nobody has it, or a free one.
    pub(super) fn host_port(&self, cards: &Cards, asked: Option<HostPort>) -> Result<HostPort, NetworkError> {
        let address = match self.config.forwards_from {
            ForwardsFrom::Loopback => Ipv4Addr::LOCALHOST,
            ForwardsFrom::Anywhere => Ipv4Addr::UNSPECIFIED,
        };
        let forwarded = |port: HostPort| {
            cards.cards.values().any(|card| card.forwards.values().any(|used| *used == port))
        };
        if let Some(port) = asked {
            let is_free = !forwarded(port) && TcpListener::bind((address, port.get())).is_ok();
            return is_free.then_some(port).ok_or(NetworkError::PortTaken { port });
        }
        let find = || {
            for _ in 0..PORT_TRIES {
                let port = TcpListener::bind((address, 0))?.local_addr()?.port();
                if let Ok(port) = HostPort::new(port.into())
                    && !forwarded(port)
                {
                    return Ok(port);
                }
            }
            Err(io::ErrorKind::AddrInUse.into())
        };
        find().map_err(failed("find", "a free port of the host"))
    }
}

/// Whether the card's device is there. It goes with the machine.
pub(super) fn is_alive(card: &Card) -> Result<bool, NetworkError> {
    let found = link::index(&card.tap).map_err(failed("look for", format!("the device {}", card.tap)))?;
    Ok(found.is_some())
}

/// Refuses names of groups that are no names.
pub(super) fn check_policy(policy: &NetworkPolicy) -> Result<(), NetworkError> {
    match policy.groups.iter().find(|name| !is_valid_workspace_name(name)) {
        None => Ok(()),
        Some(name) => Err(NetworkError::Unsupported {
            what: format!("a group named {:?}", name.chars().take(128).collect::<String>()),
            remedy: "name it with 1-128 of the characters A-Z a-z 0-9 . _ - (and neither \".\" nor \"..\")"
                .to_owned(),
        }),
    }
}

/// Refuses forwards of two guest ports from one host port.
pub(super) fn check_forwards(
    ground: &Ground,
    cards: &Cards,
    forwards: &BTreeMap<GuestPort, HostPort>,
) -> Result<(), NetworkError> {
    let mut seen = std::collections::BTreeSet::new();
    for port in forwards.values() {
        if !seen.insert(port) {
            return Err(NetworkError::PortTaken { port: *port });
        }
        ground.host_port(cards, Some(*port))?;
    }
    Ok(())
}
