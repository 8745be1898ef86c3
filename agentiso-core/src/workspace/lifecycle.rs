//! Start, stop, pause, resume, and what a running workspace is connected to.

use std::{collections::BTreeSet, sync::Arc};

use super::engine::{Engine, not_running};
use super::info::{PortForward, WorkspaceState};
use super::machine::Begin;
use crate::channel::client::Configure;
use crate::error::EngineError;
use crate::network::{NetworkError, NetworkPolicy};
use crate::store::{Runtime, WorkspaceRecord};
use crate::types::{GroupName, GuestPort, HostPort, WorkspaceId};

/// Changes to a policy; what is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyChange {
    /// Whether the machine reaches the internet.
    pub allow_internet: Option<bool>,
    /// Whether the machine reaches other machines of the state folder.
    pub allow_inter_vm: Option<bool>,
    /// The only destination ports that the machine reaches; empty for all.
    pub allowed_ports: Option<Vec<u16>>,
    /// The groups that the machine is in from now on, in place of those that it is in.
    pub groups: Option<BTreeSet<GroupName>>,
}

impl Engine {
    /// The machine of a workspace if it lives, whatever the record says.
    pub(super) fn living<'a>(&self, record: &'a WorkspaceRecord) -> Option<&'a Runtime> {
        record.runtime.as_ref().filter(|runtime| self.backends.hypervisor.is_alive(&runtime.machine))
    }

    /// What a workspace does and whether its machine ended by itself: the record, corrected by a look at the process.
    pub(super) fn present_state(&self, record: &WorkspaceRecord) -> (WorkspaceState, bool) {
        match record.state {
            WorkspaceState::Running | WorkspaceState::Paused if self.living(record).is_none() => {
                (WorkspaceState::Stopped, true)
            }
            state => (state, record.crashed),
        }
    }

    pub(super) async fn start(self: &Arc<Self>, id: WorkspaceId) -> Result<(), EngineError> {
        self.locked(id, |engine, record| {
            Box::pin(async move {
                match (engine.living(record).is_some(), record.state) {
                    (true, WorkspaceState::Paused) => engine.set_paused(record, false).await,
                    (true, _) => Ok(()),
                    (false, _) => {
                        engine.clear_machine(record).await?;
                        engine.boot(record, Begin::Boot).await?;
                        engine.shorten_afterwards(record).await;
                        Ok(())
                    }
                }
            })
        })
        .await
    }

    pub(super) async fn stop(self: &Arc<Self>, id: WorkspaceId) -> Result<(), EngineError> {
        self.locked(id, |engine, record| Box::pin(async move { engine.shut_down(record).await })).await
    }

    pub(super) async fn pause(self: &Arc<Self>, id: WorkspaceId, paused: bool) -> Result<(), EngineError> {
        self.locked(id, move |engine, record| {
            Box::pin(async move { engine.set_paused(record, paused).await })
        })
        .await
    }

    async fn set_paused(&self, record: &mut WorkspaceRecord, paused: bool) -> Result<(), EngineError> {
        let Some(runtime) = self.living(record) else {
            return Err(not_running(record, if paused { "paused" } else { "resumed" }));
        };
        if paused {
            self.backends.hypervisor.pause(&runtime.machine).await?;
            record.state = WorkspaceState::Paused;
        } else {
            self.backends.hypervisor.resume(&runtime.machine).await?;
            // The guest's clock stood still meanwhile.
            self.patient_client_of(runtime)
                .configure(Configure { set_clock: true, ..Configure::default() })
                .await
                .map_err(|source| EngineError::operation("set the clock of", record.name.as_str(), source))?;
            record.state = WorkspaceState::Running;
        }
        self.save(record).await
    }

    /// Puts a forward in force and remembers it.
    pub(super) async fn forward(
        &self,
        record: &WorkspaceRecord,
        guest: GuestPort,
        host: Option<HostPort>,
    ) -> Result<PortForward, EngineError> {
        let Some(runtime) = self.living(record) else {
            return Err(not_running(record, "given a port forward"));
        };
        let id = record.id;
        if let Some(host) = self.records(move |store| store.forwards(id)).await?.get(&guest) {
            return Err(NetworkError::AlreadyForwarded { guest, host: *host }.into());
        }
        let network = &self.backends.network;
        let host_port = network.add_forward(&runtime.network, guest, host).await?;
        match self.records(move |store| store.set_forward(id, guest, host_port)).await {
            Ok(()) => Ok(PortForward { guest_port: guest, host_port }),
            Err(error) => {
                network.remove_forward(&runtime.network, guest).await?;
                Err(error)
            }
        }
    }

    pub(super) async fn add_forward(
        self: &Arc<Self>,
        id: WorkspaceId,
        guest: GuestPort,
        host: Option<HostPort>,
    ) -> Result<PortForward, EngineError> {
        self.locked(id, move |engine, record| {
            Box::pin(async move { engine.forward(record, guest, host).await })
        })
        .await
    }

    pub(super) async fn remove_forward(
        self: &Arc<Self>,
        id: WorkspaceId,
        guest: GuestPort,
    ) -> Result<(), EngineError> {
        self.locked(id, move |engine, record| {
            Box::pin(async move {
                let forwards = engine.records(move |store| store.forwards(id)).await?;
                if !forwards.contains_key(&guest) {
                    return Err(EngineError::Parameters {
                        reason: format!("guest port {guest} of workspace {} is not forwarded", record.name),
                        remedy: format!("`agentiso port ls {}` lists its forwards", record.name),
                    });
                }
                if let Some(runtime) = engine.living(record) {
                    engine.backends.network.remove_forward(&runtime.network, guest).await?;
                }
                engine.records(move |store| store.clear_forward(id, guest)).await
            })
        })
        .await
    }

    pub(super) async fn set_policy(
        self: &Arc<Self>,
        id: WorkspaceId,
        change: PolicyChange,
    ) -> Result<NetworkPolicy, EngineError> {
        self.locked(id, move |engine, record| {
            Box::pin(async move {
                let old = record.policy.clone();
                let policy = NetworkPolicy {
                    allow_internet: change.allow_internet.unwrap_or(old.allow_internet),
                    allow_inter_vm: change.allow_inter_vm.unwrap_or(old.allow_inter_vm),
                    allowed_ports: change.allowed_ports.unwrap_or(old.allowed_ports),
                    groups: change.groups.unwrap_or(old.groups),
                };
                engine.check_policy(&policy)?;
                if let Some(runtime) = engine.living(record) {
                    engine.backends.network.update_policy(&runtime.network, &policy).await?;
                }
                record.policy = policy.clone();
                engine.save(record).await?;
                Ok(policy)
            })
        })
        .await
    }

    /// Refuses what the network of this host cannot do.
    pub(super) fn check_policy(&self, policy: &NetworkPolicy) -> Result<(), EngineError> {
        policy.check()?;
        let capabilities = self.backends.network.capabilities();
        if (policy.allow_inter_vm || !policy.groups.is_empty()) && !capabilities.inter_vm {
            return Err(NetworkError::Unsupported {
                what: "traffic between workspaces".to_owned(),
                remedy: format!("the network in use ({}) keeps every workspace apart", capabilities.name),
            }
            .into());
        }
        Ok(())
    }

    /// Removes from a machine's memory what an earlier owner of its workspace had set for all commands, if that is still
    /// to be done. A machine that is paused keeps it until somebody can use it.
    pub(super) async fn clear_inherited_environment(
        self: &Arc<Self>,
        id: WorkspaceId,
    ) -> Result<(), EngineError> {
        self.locked(id, move |engine, record| {
            Box::pin(async move {
                if !record.inherited {
                    return Ok(());
                }
                if engine.living(record).is_some() {
                    engine.client(record)?.env_clear().await.map_err(|source| {
                        EngineError::operation("clear the environment of", record.name.as_str(), source)
                    })?;
                }
                engine.records(move |store| store.set_environment_cleared(id)).await
            })
        })
        .await
    }

    pub(super) async fn keep(self: &Arc<Self>, id: WorkspaceId) -> Result<(), EngineError> {
        self.locked(id, |engine, record| {
            Box::pin(async move {
                record.throwaway_of = None;
                engine.save(record).await
            })
        })
        .await
    }
}
