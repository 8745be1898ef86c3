//! The bridge, the rules and the ledger of one state folder. Everything here blocks.

use std::{
    collections::BTreeMap, ffi::CString, fmt::Write as _, future::Future, io, net::Ipv4Addr, os::fd::OwnedFd,
    path::Path,
};

use sha2::{Digest, Sha256};

use super::{
    ForwardsFrom, NetlinkConfig, conntrack, elements,
    ledger::{Card, Files, Ledger, State},
    link::{self, Links},
    nft::{self, TablePlan},
    rules, sys, sysctl,
};
use crate::{
    leases::LeaseKind,
    network::{NetworkError, resolvers},
    types::WorkspaceId,
};

/// Where systemd-resolved names the servers that it asks itself.
const RESOLVED_CONF: &str = "/run/systemd/resolve/resolv.conf";

/// What the names of the tables of all state folders begin with.
pub(super) const TABLES: &str = "agentiso_";

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Ground {
    pub(super) config: NetlinkConfig,
    pub(super) bridge: String,
    /// What the names of TAP devices begin with.
    ports: String,
    /// Of the tables.
    pub(super) table: CString,
    /// Of the rules that belong there, a digest.
    rules: String,
}

/// One machine's card as it was, and as it is to be.
#[derive(Clone, Copy, Debug)]
struct Change<'a> {
    before: Option<&'a Card>,
    after: Option<&'a Card>,
}

pub(super) fn failed(
    operation: &'static str,
    object: impl Into<String>,
) -> impl FnOnce(io::Error) -> NetworkError {
    let object = object.into();
    move |source| NetworkError::Io { operation, object, source }
}

/// Waits for a future, on a thread that may block.
pub(super) fn wait<T>(future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::runtime::Handle::current().block_on(future)
}

impl Ground {
    pub(super) fn new(config: NetlinkConfig) -> io::Result<Self> {
        let hash = Sha256::digest(config.state_id.as_bytes());
        let short: String = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let table = CString::new(format!("{TABLES}{short}")).map_err(io::Error::other)?;
        let (bridge, ports) = (format!("agbr{short}"), format!("at{short}"));
        let mut ground = Self { config, bridge, ports, table, rules: String::new() };
        ground.rules = digest(&ground.rules());
        Ok(ground)
    }

    /// A name for a TAP device, of the 15 bytes that the kernel allows. No device has it.
    pub(super) fn new_tap(&self) -> io::Result<String> {
        loop {
            let random = WorkspaceId::random().as_uuid().as_u128();
            let digits = (0..5u32).filter_map(|n| {
                char::from_digit(u32::try_from(random / 36u128.pow(n) % 36).unwrap_or_default(), 36)
            });
            let name: String = self.ports.chars().chain(digits).collect();
            if link::index(&name)?.is_none() {
                return Ok(name);
            }
        }
    }

    pub(super) fn ledger(&self) -> Result<Ledger, NetworkError> {
        Ledger::open(&self.config.state_dir).map_err(failed("read", "the list of network cards"))
    }

    /// The cards, without waiting for anyone.
    pub(super) fn files(&self) -> Files {
        Files::new(&self.config.state_dir)
    }

    /// Makes again what the cards of living machines need and is not there or not as it should be: after `nft flush
    /// ruleset`, another configuration, or the death of a process in the middle of a change.
    pub(super) fn rebuild(&self) -> Result<(), NetworkError> {
        let ledger = self.ledger()?;
        self.try_rebuild(&ledger).map_err(failed("rebuild", "the network of this state folder"))
    }

    fn try_rebuild(&self, ledger: &Ledger) -> io::Result<()> {
        let mut state = ledger.state()?;
        if ledger.is_empty()? {
            // Somebody died before the last of it was removed.
            return if ledger.is_unsettled() { self.remove_all(ledger, &mut state) } else { Ok(()) };
        }
        let in_force = !ledger.is_unsettled()
            && state.rules == self.rules
            && state.resolver == self.resolver()
            && link::index(&self.bridge)?.is_some()
            && nft::is_there(&self.table)?;
        if in_force {
            return Ok(());
        }
        let cards = ledger.cards()?;
        let mut any_alive = false;
        for card in cards.values() {
            any_alive |= is_alive(card)?;
        }
        if !any_alive {
            // They are about to be removed, and that takes no rules.
            return Ok(());
        }
        ledger.unsettled()?;
        if cards.values().any(|card| self.is_outward(card)) {
            self.open_uplinks(ledger, &mut state)?;
        }
        self.settle(ledger, &mut state, None)
    }

    /// Writes a machine's card down, or that it has none any more, and brings bridge and rules in line with that.
    pub(super) fn put(
        &self,
        ledger: &Ledger,
        id: WorkspaceId,
        before: Option<&Card>,
        after: Option<&Card>,
    ) -> io::Result<()> {
        let mut state = ledger.state()?;
        let range = self.config.range.to_string();
        let trusted = !ledger.is_unsettled();
        ledger.unsettled()?;
        if state.range != range {
            state.range = range;
            ledger.write_state(&state)?;
        }
        if after.is_some_and(|card| self.is_outward(card)) {
            self.open_uplinks(ledger, &mut state)?;
        }
        ledger.write_card(id, after)?;
        if ledger.is_empty()? {
            return self.remove_all(ledger, &mut state);
        }
        self.settle(ledger, &mut state, trusted.then_some(Change { before, after }))
    }

    /// Brings bridge and rules in line with the cards. Only `change` was made, if all else is known to be right.
    fn settle(&self, ledger: &Ledger, state: &mut State, change: Option<Change<'_>>) -> io::Result<()> {
        ledger.unsettled()?;
        let made = self.ensure_bridge(change.is_some())?;
        let resolver = self.resolver();
        let range = self.config.range;
        let grouped = |card: Option<&Card>| card.is_some_and(|card| !card.policy.groups.is_empty());
        let others = match change {
            Some(change) if grouped(change.before) || grouped(change.after) => ledger.cards()?,
            _ => BTreeMap::new(),
        };
        let changed = change.is_some_and(|change| {
            let with_all = |card: Option<&Card>, resolver| {
                let mut elements = elements::of(card);
                elements
                    .extend(card.map(|card| elements::of_groups(card, others.values())).unwrap_or_default());
                elements.extend(elements::of_resolver(range, resolver));
                elements
            };
            let (before, after) = (with_all(change.before, state.resolver), with_all(change.after, resolver));
            state.rules == self.rules && nft::change(&self.table, &before, &after).is_ok()
        });
        if !changed {
            let mut elements = elements::all(&ledger.cards()?);
            elements.extend(elements::of_resolver(range, resolver));
            nft::replace(&self.table, &self.rules(), &elements)?;
        }
        if state.rules != self.rules || state.resolver != resolver {
            (state.rules, state.resolver) = (self.rules.clone(), resolver);
            ledger.write_state(state)?;
        }
        match change {
            _ if made => ledger.cards()?.values().try_for_each(|card| self.connect(card))?,
            None => ledger.cards()?.values().try_for_each(|card| self.isolate(card))?,
            Some(Change { before: Some(before), after: Some(after) })
                if before.is_sociable() != after.is_sociable() =>
            {
                self.isolate(after)?;
            }
            Some(_) => {}
        }
        ledger.settled()
    }

    fn rules(&self) -> [TablePlan; 2] {
        rules::tables(&rules::Plan {
            bridge: &self.bridge,
            ports: &self.ports,
            range: self.config.range,
            forwards_from: self.config.forwards_from,
        })
    }

    /// Makes the bridge if it is not there, and sets it up unless it is `trusted` to be. Returns whether it was made.
    fn ensure_bridge(&self, trusted: bool) -> io::Result<bool> {
        let found = link::index(&self.bridge)?;
        if trusted && found.is_some() {
            return Ok(false);
        }
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

    fn isolate(&self, card: &Card) -> io::Result<()> {
        let Some(port) = link::index(&card.tap)? else { return Ok(()) };
        wait(async { Links::open()?.isolate(port, !card.is_sociable()).await })
    }

    pub(super) fn unplug(&self, tap: &str) -> io::Result<()> {
        match link::index(tap)? {
            Some(_) => wait(async { Links::open()?.remove(tap).await }),
            None => Ok(()),
        }
    }

    /// Removes bridge and rules, and switches forwarding back, after the last card.
    fn remove_all(&self, ledger: &Ledger, state: &mut State) -> io::Result<()> {
        ledger.unsettled()?;
        nft::remove(&self.table)?;
        if link::index(&self.bridge)?.is_some() {
            wait(async { Links::open()?.remove(&self.bridge).await })?;
        }
        // In another run of the kernel, somebody else switched it on.
        let ours = state.boot == sysctl::boot_id()?;
        for uplink in std::mem::take(&mut state.forwarding) {
            if ours && link::index(&uplink)?.is_some() {
                sysctl::forward(&uplink, false)?;
            }
        }
        state.rules.clear();
        ledger.write_state(state)?;
        ledger.settled()
    }

    /// Whether packets from outside have to reach this card.
    fn is_outward(&self, card: &Card) -> bool {
        let forwards = self.config.forwards_from == ForwardsFrom::Anywhere && !card.forwards.is_empty();
        card.policy.allow_internet || forwards
    }

    /// Makes the interfaces that lead outside forward packets, and notes those that did not before.
    fn open_uplinks(&self, ledger: &Ledger, state: &mut State) -> io::Result<()> {
        let boot = sysctl::boot_id()?;
        if state.boot != boot {
            state.boot = boot;
            state.forwarding.clear();
        }
        let mut new = Vec::new();
        for uplink in wait(async { Links::open()?.uplinks().await })? {
            if uplink != self.bridge && !sysctl::forwards(&uplink)? {
                new.push(uplink);
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        state.forwarding.retain(|noted| !new.contains(noted));
        state.forwarding.extend_from_slice(&new);
        // Before it is done, so that it is undone whatever happens.
        ledger.write_state(state)?;
        new.iter().try_for_each(|uplink| sysctl::forward(uplink, true))
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

    /// Who has which address.
    pub(super) fn addresses(&self) -> Result<Vec<(Ipv4Addr, WorkspaceId)>, NetworkError> {
        let held = self.config.leases.held(LeaseKind::Address);
        let held =
            held.map_err(|error| failed("list", "the addresses of machines")(io::Error::other(error)))?;
        Ok(held.into_iter().map(|(address, id)| (Ipv4Addr::from(address), id)).collect())
    }

    pub(super) fn address_of(&self, id: WorkspaceId) -> Result<Option<Ipv4Addr>, NetworkError> {
        let found = self.addresses()?.into_iter().find(|(_, owner)| *owner == id);
        Ok(found.map(|(address, _)| address))
    }

    pub(super) fn give_address_back(&self, id: WorkspaceId) -> Result<(), NetworkError> {
        self.config.leases.give_back(LeaseKind::Address, id).map_err(|error| {
            failed("give back", format!("the address of machine {id}"))(io::Error::other(error))
        })
    }

    /// Makes the kernel forget what a machine that is gone was connected to.
    pub(super) fn forget(&self, id: WorkspaceId, address: Ipv4Addr) -> Result<(), NetworkError> {
        conntrack::forget(address)
            .map_err(failed("forget", format!("the connections of machine {id} ({address})")))
    }
}

/// The rules, in a few bytes.
fn digest(tables: &[TablePlan]) -> String {
    let text = format!("{tables:?}");
    Sha256::digest(text.as_bytes()).iter().take(16).fold(String::new(), |mut hex, byte| {
        // Writing to a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Whether the card's device is there. It goes with the machine.
pub(super) fn is_alive(card: &Card) -> io::Result<bool> {
    Ok(link::index(&card.tap)?.is_some())
}
