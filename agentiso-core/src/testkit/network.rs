use std::{collections::BTreeMap, os::unix::net::UnixStream};

use agentiso_guest::message::NetworkConfiguration;
use async_trait::async_trait;

use super::{
    FakeHost,
    host::{FakeCard, HostState},
};
use crate::{
    network::{
        AttachSpec, Attachment, MacAddress, Network, NetworkCapabilities, NetworkError, NetworkPolicy,
        NetworkRecord, Nic, NicBackend,
    },
    types::{GuestPort, HostPort, ProcessRef, WorkspaceId},
};

/// First port tried when a free one is to be picked.
const FIRST_FREE_PORT: u64 = 20_000;

/// A network that moves no packets.
#[derive(Clone)]
pub struct FakeNetwork {
    host: FakeHost,
}

impl FakeNetwork {
    pub(super) fn new(host: FakeHost) -> Self {
        Self { host }
    }
}

impl FakeCard {
    fn record(&self) -> NetworkRecord {
        NetworkRecord {
            id: self.id,
            address: "10.0.2.15".to_owned(),
            details: serde_json::to_value(&self.process).unwrap_or_default(),
        }
    }
}

/// The process a record names.
fn process_of(record: &NetworkRecord) -> Option<ProcessRef> {
    serde_json::from_value(record.details.clone()).ok()
}

fn card<'a>(state: &'a mut HostState, record: &NetworkRecord) -> Option<&'a mut FakeCard> {
    let process = process_of(record)?;
    state.cards.get_mut(&process.pid).filter(|card| card.process == process)
}

fn live_card<'a>(state: &'a mut HostState, record: &NetworkRecord) -> Result<&'a mut FakeCard, NetworkError> {
    card(state, record).filter(|card| card.alive).ok_or(NetworkError::Gone { id: record.id })
}

fn free_port(state: &HostState) -> Result<HostPort, NetworkError> {
    (FIRST_FREE_PORT..=65_535)
        .filter_map(|port| HostPort::new(port).ok())
        .find(|port| !state.port_is_taken(*port))
        .ok_or_else(|| NetworkError::Io {
            operation: "pick",
            object: "a free port".to_owned(),
            source: std::io::ErrorKind::AddrInUse.into(),
        })
}

fn refuse_unsupported(policy: &NetworkPolicy) -> Result<(), NetworkError> {
    if policy.allow_inter_vm {
        return Err(NetworkError::Unsupported {
            what: "traffic between machines".to_owned(),
            remedy: "do without".to_owned(),
        });
    }
    Ok(())
}

#[async_trait]
impl Network for FakeNetwork {
    fn capabilities(&self) -> NetworkCapabilities {
        NetworkCapabilities {
            name: "fake".to_owned(),
            live_policy: true,
            live_forwards: true,
            inter_vm: false,
            open: Vec::new(),
        }
    }

    async fn attach(&self, spec: AttachSpec) -> Result<Attachment, NetworkError> {
        self.host
            .call("network.attach", |state| {
                refuse_unsupported(&spec.policy)?;
                if let Some(port) = spec.forwards.values().find(|port| state.port_is_taken(**port)) {
                    return Err(NetworkError::PortTaken { port: *port });
                }
                let (backend, _peer) = UnixStream::pair().map_err(|source| NetworkError::Io {
                    operation: "make",
                    object: "a socket pair".to_owned(),
                    source,
                })?;
                let process = state.new_process();
                let [a, b, c, d, e, ..] = *spec.id.as_uuid().as_bytes();
                let mac = MacAddress([0x02, a, b, c, d, e]);
                let card = FakeCard {
                    id: spec.id,
                    process: process.clone(),
                    alive: true,
                    policy: spec.policy.clone(),
                    forwards: spec.forwards.clone(),
                };
                let record = card.record();
                let address = record.address.clone();
                state.cards.insert(process.pid, card);
                Ok(Attachment {
                    nic: Nic { mac, backend: NicBackend::Stream(backend.into()) },
                    record,
                    guest: NetworkConfiguration {
                        mac: Some(mac.to_string()),
                        address,
                        prefix: 24,
                        gateway: Some("10.0.2.2".to_owned()),
                        dns: vec!["10.0.2.3".to_owned()],
                        mtu: None,
                        ipv6: false,
                    },
                })
            })
            .await
    }

    async fn update_policy(
        &self,
        attachment: &NetworkRecord,
        policy: &NetworkPolicy,
    ) -> Result<(), NetworkError> {
        self.host
            .call("network.update_policy", |state| {
                let card = live_card(state, attachment)?;
                refuse_unsupported(policy)?;
                card.policy = policy.clone();
                Ok(())
            })
            .await
    }

    async fn add_forward(
        &self,
        attachment: &NetworkRecord,
        guest: GuestPort,
        host: Option<HostPort>,
    ) -> Result<HostPort, NetworkError> {
        self.host
            .call("network.add_forward", |state| {
                if let Some(host) = live_card(state, attachment)?.forwards.get(&guest) {
                    return Err(NetworkError::AlreadyForwarded { guest, host: *host });
                }
                let port = match host {
                    Some(port) if state.port_is_taken(port) => return Err(NetworkError::PortTaken { port }),
                    Some(port) => port,
                    None => free_port(state)?,
                };
                live_card(state, attachment)?.forwards.insert(guest, port);
                Ok(port)
            })
            .await
    }

    async fn remove_forward(&self, attachment: &NetworkRecord, guest: GuestPort) -> Result<(), NetworkError> {
        self.host
            .call("network.remove_forward", |state| {
                live_card(state, attachment)?.forwards.remove(&guest);
                Ok(())
            })
            .await
    }

    async fn forwards(
        &self,
        attachment: &NetworkRecord,
    ) -> Result<BTreeMap<GuestPort, HostPort>, NetworkError> {
        self.host.call("network.forwards", |state| Ok(live_card(state, attachment)?.forwards.clone())).await
    }

    async fn is_alive(&self, attachment: &NetworkRecord) -> Result<bool, NetworkError> {
        self.host
            .call("network.is_alive", |state| Ok(card(state, attachment).is_some_and(|card| card.alive)))
            .await
    }

    async fn detach(&self, attachment: &NetworkRecord) -> Result<(), NetworkError> {
        self.host
            .call("network.detach", |state| {
                if let Some(process) = process_of(attachment) {
                    state.cards.retain(|_, card| card.process != process);
                }
                Ok(())
            })
            .await
    }

    async fn kill_process(&self, process: &ProcessRef) -> Result<(), NetworkError> {
        self.host
            .call("network.kill_process", |state| {
                if let Some(card) = state.cards.get_mut(&process.pid).filter(|card| card.process == *process)
                {
                    card.alive = false;
                }
                Ok(())
            })
            .await
    }

    async fn leftovers(&self) -> Result<Vec<NetworkRecord>, NetworkError> {
        self.host
            .call("network.leftovers", |state| {
                // Those with a process too: as with a backend whose cards are more than their process.
                Ok(state.cards.values().map(FakeCard::record).collect())
            })
            .await
    }

    async fn processes(&self) -> Result<Vec<(WorkspaceId, ProcessRef)>, NetworkError> {
        self.host
            .call("network.processes", |state| {
                Ok(state
                    .cards
                    .values()
                    .filter(|card| card.alive)
                    .map(|card| (card.id, card.process.clone()))
                    .collect())
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use crate::testkit::{FakeHost, contract::fake::FakeNetworkFixture};

    crate::network_contract!(Ok(FakeNetworkFixture::new(FakeHost::new())));
}
