//! The network of root: a TAP device for each machine, one bridge for each state folder, rules in nftables.
//!
//! QEMU gets its TAP device as a descriptor; the device goes when QEMU goes. The bridge has the first address of the state
//! folder's range and is the machines' gateway. A machine's MAC address follows from its IPv4 address, and frames from
//! its port that have others are dropped (see `rules`).
//!
//! - **IPv6 is dropped**, on the bridge and on every port, link-local included.
//! - **Machines among themselves**: nothing passes, and ports are `isolated`, but for machines that all allow it
//!   (`allow_inter_vm`) or share a group. These talk over the bridge; nothing is ever routed between machines. Each pair
//!   of a group's machines is an element of a set, so that a group has a limited size.
//! - **The host** is not reached by machines; the host reaches machines, and gets its answers.
//! - **Internet**: masqueraded, judged packet by packet by the policy in force. So a connection that a new policy does
//!   not allow ends with its next packet (TCP with a reset to whoever sent it), and all others live on. With a machine,
//!   the kernel forgets its connections. Loopback, link-local, multicast and reserved destinations never pass. Packets
//!   that come in by the interfaces that default routes lead to are forwarded while a machine may need it;
//!   `net.ipv4.ip_forward` itself is not touched. A foreign firewall that drops forwarded packets drops these too.
//! - **Names**: the machine's name server is the gateway's address; with internet access, questions are redirected to
//!   the first IPv4 name server of the host's /etc/resolv.conf that is not on its loopback (or of systemd-resolved's,
//!   or else the one on the loopback). It is looked up at each change and opening.
//! - **Forwards** are redirections of connections to the host's 127.0.0.1, or, if configured so, to any address of the
//!   host. Nothing listens: a program that takes the port later is not reached at it; other state folders do not take it
//!   (see `ports`). A forward that is removed ends its connections with their next packet.
//!
//! All of a state folder is in the two tables `agentiso_XXXXXXXX` and the bridge `agbrXXXXXXXX`, and TAP devices are
//! `atXXXXXXXX.....`, where the X are of a hash of the state folder's id; nothing else of the host is changed but the
//! forwarding of single interfaces, which is switched back with the last card. What the rules are made from is in the
//! folder `network` of the state folder: what is missing in the kernel is made again when the network is opened.

mod check;
mod conntrack;
mod elements;
mod ground;
mod ledger;
mod link;
mod nft;
mod ports;
mod range;
mod rules;
mod sys;
mod sysctl;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use agentiso_guest::message::NetworkConfiguration;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use self::range::{InvalidRange, Range};
use self::{
    ground::{Ground, failed},
    ledger::{Card, Files, Ledger},
    ports::Ports,
};
use super::{
    AttachSpec, Attachment, MAX_GROUP_MEMBERS, Network, NetworkCapabilities, NetworkError, NetworkPolicy,
    NetworkRecord, Nic, NicBackend,
};
use crate::{
    leases::Leases,
    types::{GroupName, GuestPort, HostPort, ProcessRef, WorkspaceId},
};

/// How long an address that a machine gave back is not another's, unless configured otherwise.
pub const COOL_DOWN: Duration = Duration::from_secs(60);

/// Where forwarded ports can be connected to from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardsFrom {
    /// From the host, at 127.0.0.1.
    #[default]
    Loopback,
    /// From wherever the host is reached, at any of its IPv4 addresses.
    Anywhere,
}

/// What a netlink network needs to know.
#[derive(Clone, Debug)]
pub struct NetlinkConfig {
    /// The state folder's id, from which the names of bridge and tables follow.
    pub state_id: String,
    /// The state folder, where the list of cards is kept.
    pub state_dir: PathBuf,
    /// Addresses of the machines, and of the host towards them.
    pub range: Range,
    /// Who has which address.
    pub leases: Arc<dyn Leases>,
    /// How long an address that was given back is not another's.
    pub cool_down: Duration,
    /// Where forwarded ports can be connected to from.
    pub forwards_from: ForwardsFrom,
    /// The name server that machines' questions are sent on to; the host's own if `None`.
    pub resolver: Option<Ipv4Addr>,
}

impl NetlinkConfig {
    /// With the default range, forwards from the loopback, and the host's name server.
    pub fn new(state_id: String, state_dir: PathBuf, leases: Arc<dyn Leases>) -> Self {
        Self {
            state_id,
            state_dir,
            range: Range::default(),
            leases,
            cool_down: COOL_DOWN,
            forwards_from: ForwardsFrom::default(),
            resolver: None,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct NetlinkNetwork {
    ground: Ground,
}

/// What a record holds beside the address.
#[derive(Debug, Serialize, Deserialize)]
struct Details {
    /// Empty if only the address was taken.
    tap: String,
}

impl NetlinkNetwork {
    /// A network on this host. Makes nothing, but what running machines had and is missing.
    ///
    /// # Errors
    /// Not root, /dev/net/tun or nftables missing, the range in use by another interface: each with the remedy.
    pub async fn open(config: NetlinkConfig) -> Result<Self, NetworkError> {
        let ground = Ground::new(config).map_err(failed("name", "the network"))?;
        let network = Self { ground };
        network
            .run(|ground| {
                check::check(ground)?;
                ground.rebuild()
            })
            .await?;
        Ok(network)
    }

    /// Does something that blocks. It goes on if nobody waits for it any more.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Ground) -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        let ground = self.ground.clone();
        let done = tokio::task::spawn_blocking(move || work(&ground)).await;
        done.map_err(|error| failed("work on", "the network")(error.into()))?
    }

    /// Changes one living card, if `change` does. What `change` returns beside a result lives until it is in force.
    async fn change<T: Send + 'static, G>(
        &self,
        record: &NetworkRecord,
        change: impl FnOnce(&Ground, &Ledger, &mut Card) -> Result<(T, G), NetworkError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        let record = record.clone();
        self.run(move |ground| {
            let ledger = ground.ledger()?;
            let before = living(&ledger, &record)?;
            let mut after = before.clone();
            let (result, _guard) = change(ground, &ledger, &mut after)?;
            if after == before {
                return Ok(result);
            }
            if let Err(error) = ground.put(&ledger, record.id, Some(&before), Some(&after)) {
                // What failed on the way there may work on the way back; if not, the next opener sees to it.
                let undone = ground.put(&ledger, record.id, Some(&after), Some(&before));
                if let Err(error) = undone {
                    tracing::warn!(%error, machine = %record.id, "could not undo a change of the network");
                }
                return Err(failed("change", format!("the network of machine {}", record.id))(error));
            }
            Ok(result)
        })
        .await
    }
}

impl Details {
    fn of(record: &NetworkRecord) -> Result<Self, NetworkError> {
        Self::deserialize(&record.details).map_err(|error| {
            failed("read", format!("the network record of machine {}", record.id))(error.into())
        })
    }
}

fn record(id: WorkspaceId, address: Ipv4Addr, tap: &str) -> NetworkRecord {
    NetworkRecord { id, address: address.to_string(), details: serde_json::json!({ "tap": tap }) }
}

fn reading(source: std::io::Error) -> NetworkError {
    failed("read", "the list of network cards")(source)
}

/// The card of a record whose device is there.
fn living(files: &Files, record: &NetworkRecord) -> Result<Card, NetworkError> {
    let tap = Details::of(record)?.tap;
    match files.card(record.id).map_err(reading)?.filter(|card| card.tap == tap) {
        Some(card) if ground::is_alive(&card).map_err(reading)? => Ok(card),
        _ => Err(NetworkError::Gone { id: record.id }),
    }
}

/// Refuses to put a machine into groups that have no room.
fn check_room(ledger: &Ledger, id: WorkspaceId, groups: &BTreeSet<GroupName>) -> Result<(), NetworkError> {
    if groups.is_empty() {
        return Ok(());
    }
    let mut others = ledger.cards().map_err(reading)?;
    others.remove(&id);
    let members = |group| others.values().filter(|card| card.policy.groups.contains(group)).count();
    match groups.iter().find(|group| members(*group) >= MAX_GROUP_MEMBERS) {
        None => Ok(()),
        Some(group) => Err(NetworkError::GroupFull { group: group.clone() }),
    }
}

/// Makes a card. On failure nothing is left.
fn attach(ground: &Ground, spec: &AttachSpec) -> Result<(Card, OwnedFd), NetworkError> {
    spec.policy.check()?;
    let ledger = ground.ledger()?;
    let range = ground.config.range.to_string();
    let used = ledger.state().map_err(reading)?.range;
    if used != range && !ledger.is_empty().map_err(reading)? {
        return Err(NetworkError::Unsupported {
            what: format!("the address range {range} beside {used}"),
            remedy: "stop all workspaces first, or configure the old range again".to_owned(),
        });
    }
    check_room(&ledger, spec.id, &spec.policy.groups)?;
    let _ports = match spec.forwards.is_empty() {
        true => None,
        false => {
            let mut others = ledger.cards().map_err(reading)?;
            others.remove(&spec.id);
            let mut ports = Ports::look(&others, ground.config.forwards_from)?;
            ports.take_all(&spec.forwards)?;
            Some(ports)
        }
    };
    let making = || failed("make", format!("the network card of machine {}", spec.id));
    // A machine has one card: an earlier one of the same machine is of no use.
    let earlier = ledger.card(spec.id).map_err(reading)?;
    let card = Card {
        tap: ground.new_tap().map_err(making())?,
        address: ground.take_address(spec.id)?,
        policy: spec.policy.clone(),
        forwards: spec.forwards.clone(),
    };
    let made = earlier
        .as_ref()
        .map_or(Ok(()), |earlier| ground.unplug(&earlier.tap))
        .and_then(|()| ground.put(&ledger, spec.id, earlier.as_ref(), Some(&card)))
        .and_then(|()| ground.plug(&card));
    match made {
        Ok(tap) => Ok((card, tap)),
        Err(error) => {
            // The device went with its descriptor.
            let undone =
                ground.put(&ledger, spec.id, Some(&card), None).map_err(failed("undo", "a network card"));
            if let Err(error) = undone.and_then(|()| ground.give_address_back(spec.id)) {
                tracing::warn!(%error, machine = %spec.id, "something of a network card was left behind");
            }
            Err(making()(error))
        }
    }
}

fn detach(ground: &Ground, record: &NetworkRecord) -> Result<(), NetworkError> {
    let ledger = ground.ledger()?;
    let tap = Details::of(record)?.tap;
    let card = ledger.card(record.id).map_err(reading)?;
    match &card {
        // A later card of the same machine.
        Some(card) if card.tap != tap => return Ok(()),
        Some(card) => {
            ground
                .unplug(&card.tap)
                .and_then(|()| ground.put(&ledger, record.id, Some(card), None))
                .map_err(failed("remove", format!("the network card of machine {}", record.id)))?;
        }
        None => {}
    }
    // Only then: nothing makes the kernel remember new ones any more.
    let address = match card {
        Some(card) => Some(card.address),
        None => ground.address_of(record.id)?,
    };
    if let Some(address) = address {
        ground.forget(record.id, address)?;
    }
    ground.give_address_back(record.id)
}

#[async_trait]
impl Network for NetlinkNetwork {
    fn capabilities(&self) -> NetworkCapabilities {
        let mut open = vec![
            "with internet allowed, a machine also reaches other hosts of the networks that this host is on"
                .to_owned(),
            "with internet allowed, a machine's questions about names go to this host's name server"
                .to_owned(),
        ];
        let forwarding = self.ground.files().state().map(|state| state.forwarding).unwrap_or_default();
        if !forwarding.is_empty() {
            open.push(format!(
                "for the internet access of machines, this host forwards packets that come in by {}, also of others",
                forwarding.join(", ")
            ));
        }
        NetworkCapabilities {
            name: "bridge, TAP devices and nftables".to_owned(),
            live_policy: true,
            live_forwards: true,
            inter_vm: true,
            open,
        }
    }

    async fn attach(&self, spec: AttachSpec) -> Result<Attachment, NetworkError> {
        let id = spec.id;
        let (card, tap) = self.run(move |ground| attach(ground, &spec)).await?;
        let range = self.ground.config.range;
        let gateway = range.gateway().to_string();
        Ok(Attachment {
            nic: Nic { mac: card.mac(), backend: NicBackend::Tap(tap) },
            record: record(id, card.address, &card.tap),
            guest: NetworkConfiguration {
                mac: Some(card.mac().to_string()),
                address: card.address.to_string(),
                prefix: range.prefix(),
                gateway: Some(gateway.clone()),
                dns: vec![gateway],
                mtu: None,
                ipv6: false,
            },
        })
    }

    async fn update_policy(
        &self,
        attachment: &NetworkRecord,
        policy: &NetworkPolicy,
    ) -> Result<(), NetworkError> {
        policy.check()?;
        let (id, policy) = (attachment.id, policy.clone());
        self.change(attachment, move |_, ledger, card| {
            check_room(ledger, id, &policy.groups)?;
            card.policy = policy;
            Ok(((), ()))
        })
        .await
    }

    async fn add_forward(
        &self,
        attachment: &NetworkRecord,
        guest: GuestPort,
        host: Option<HostPort>,
    ) -> Result<HostPort, NetworkError> {
        self.change(attachment, move |ground, ledger, card| {
            if let Some(&host) = card.forwards.get(&guest) {
                return Err(NetworkError::AlreadyForwarded { guest, host });
            }
            let mut ports = Ports::look(&ledger.cards().map_err(reading)?, ground.config.forwards_from)?;
            let host = ports.take(host)?;
            card.forwards.insert(guest, host);
            Ok((host, ports))
        })
        .await
    }

    async fn remove_forward(&self, attachment: &NetworkRecord, guest: GuestPort) -> Result<(), NetworkError> {
        let removed = self.change(attachment, move |_, _, card| {
            card.forwards.remove(&guest);
            Ok(((), ()))
        });
        match removed.await {
            // Its forwards lead nowhere, and go when it is detached.
            Err(NetworkError::Gone { .. }) => Ok(()),
            result => result,
        }
    }

    async fn forwards(
        &self,
        attachment: &NetworkRecord,
    ) -> Result<BTreeMap<GuestPort, HostPort>, NetworkError> {
        Ok(living(&self.ground.files(), attachment)?.forwards)
    }

    async fn is_alive(&self, attachment: &NetworkRecord) -> Result<bool, NetworkError> {
        match living(&self.ground.files(), attachment) {
            Ok(_) => Ok(true),
            Err(NetworkError::Gone { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn detach(&self, attachment: &NetworkRecord) -> Result<(), NetworkError> {
        let record = attachment.clone();
        self.run(move |ground| detach(ground, &record)).await
    }

    async fn processes(&self) -> Result<Vec<(WorkspaceId, ProcessRef)>, NetworkError> {
        Ok(Vec::new())
    }

    async fn kill_process(&self, _process: &ProcessRef) -> Result<(), NetworkError> {
        // None is ever listed, so this is about somebody else's.
        Ok(())
    }

    async fn leftovers(&self) -> Result<Vec<NetworkRecord>, NetworkError> {
        self.run(|ground| {
            // Not in the middle of somebody's change.
            let cards = ground.ledger()?.cards().map_err(reading)?;
            let mut records: Vec<_> =
                cards.iter().map(|(id, card)| record(*id, card.address, &card.tap)).collect();
            // Addresses of cards that did not come to be.
            let others = ground.addresses()?.into_iter().filter(|(_, id)| !cards.contains_key(id));
            records.extend(others.map(|(address, id)| record(id, address, "")));
            Ok(records)
        })
        .await
    }
}
