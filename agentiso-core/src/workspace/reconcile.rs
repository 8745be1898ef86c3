//! What opening a state folder puts right: whatever a killed process, a crashed machine or a restarted host left.
//!
//! Nothing here touches a workspace whose lock another process holds, and no process is ended unless its name says
//! that it belongs to this state folder and its start time that it is the one that was looked at.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::engine::Engine;
use super::info::WorkspaceState;
use super::lock::{ForksLock, WorkspaceLock};
use crate::backends::Backends;
use crate::channel::ChannelRecord;
use crate::error::EngineError;
use crate::network::NetworkRecord;
use crate::session::{Claimant, SystemClock};
use crate::storage::StorageError;
use crate::store::WorkspaceRecord;
use crate::types::{ProcessRef, SnapshotId, WorkspaceId};

/// What was found of a machine on the host, whether a record knows of it or not.
#[derive(Debug, Default)]
struct Traces {
    machines: Vec<ProcessRef>,
    networks: Vec<ProcessRef>,
    cards: Vec<NetworkRecord>,
    channels: Vec<ChannelRecord>,
}

type TracesById = BTreeMap<WorkspaceId, Traces>;

impl Engine {
    /// Puts right what can be. What cannot is said in a warning and tried again by the next opener: one broken
    /// workspace does not keep the others from being used.
    pub(super) async fn reconcile(&self) -> Result<(), EngineError> {
        self.records(|store| store.end_old_sessions(Claimant::now(&SystemClock))).await?;
        let traces = self.traces().await?;
        for row in self.records(|store| store.all()).await? {
            match row {
                Ok(record) => {
                    let name = record.name.clone();
                    if let Err(error) = self.reconcile_one(record.id, &traces).await {
                        tracing::warn!(workspace = %name, error = %error.report(), "could not put a workspace right");
                    }
                }
                Err(error) => tracing::warn!(%error, "left a damaged record alone"),
            }
        }
        self.settle_promotions().await?;
        self.remove_unrecorded(&traces).await?;
        self.remove_unrecorded_images().await?;
        self.collect_templates().await
    }

    /// Removes memory images that belong to no snapshot and no template.
    async fn remove_unrecorded_images(&self) -> Result<(), EngineError> {
        let images = self.backends.hypervisor.images().await?;
        if images.is_empty() {
            return Ok(());
        }
        // Read after the images: what is made meanwhile has a record first.
        let mut recorded = self.records(|store| store.memory_snapshots()).await?;
        recorded.extend(
            self.records(|store| store.templates()).await?.into_iter().map(|one| SnapshotId::from(one.id)),
        );
        for image in images.into_iter().filter(|image| !recorded.contains(image)) {
            // Held: somebody is just making a template.
            if let Some(lock) = self.try_lock(*image.as_uuid())? {
                self.backends.hypervisor.delete_image(image).await?;
                lock.remove();
            }
        }
        Ok(())
    }

    /// Puts one workspace right, unless somebody is busy with it.
    async fn reconcile_one(&self, id: WorkspaceId, traces: &TracesById) -> Result<(), EngineError> {
        let Some(lock) = self.try_lock(*id.as_uuid())? else { return Ok(()) };
        // Read again under the lock: it may have changed, or gone.
        let Some(mut record) = self.records(move |store| store.get(id)).await? else {
            lock.remove();
            return Ok(());
        };
        // Whoever holds a machine in a pool holds its lock too: nobody does any more.
        let abandoned = record.pooled || record.throwaway_of.as_ref().is_some_and(|owner| !owner.is_alive());
        let half_made = matches!(record.state, WorkspaceState::Creating | WorkspaceState::Destroying);
        // Of a workspace that was never finished, a first start included, nothing is kept.
        let unfinished = record.state == WorkspaceState::Starting && record.boot_time_ms.is_none();
        if abandoned || half_made || unfinished {
            let locks = self.layout.locks();
            if !ForksLock::is_free(&locks, *id.as_uuid()).map_err(|source| self.lock_failed(source))? {
                // Whoever destroyed it was killed, and forks of it still begin: the next opener's.
                return Ok(());
            }
            self.clear_traces(traces.get(&id)).await?;
            self.erase(&mut record).await?;
            lock.remove();
            return Ok(());
        }
        self.settle_machine(&mut record, traces).await?;
        self.settle_snapshots(&record).await?;
        self.shorten_afterwards(&record).await;
        Ok(())
    }

    /// A machine that is gone, or was cut off in the middle of starting or stopping, leaves a stopped workspace.
    async fn settle_machine(
        &self,
        record: &mut WorkspaceRecord,
        traces: &TracesById,
    ) -> Result<(), EngineError> {
        match record.state {
            WorkspaceState::Running | WorkspaceState::Paused if self.living(record).is_none() => {
                record.crashed = true
            }
            WorkspaceState::Starting | WorkspaceState::Stopping => {}
            WorkspaceState::Stopped if traces.contains_key(&record.id) || record.runtime.is_some() => {}
            _ => return Ok(()),
        }
        let was_recorded = record.runtime.is_some();
        self.clear_machine(record).await?;
        self.clear_traces(traces.get(&record.id)).await?;
        if !was_recorded {
            // Cut off before the hypervisor's record was kept, which is what knows a machine's sockets from its logs.
            self.remove_run_dir(record.id)?;
        }
        record.state = WorkspaceState::Stopped;
        self.save(record).await
    }

    /// A snapshot that was begun and not finished never was.
    async fn settle_snapshots(&self, record: &WorkspaceRecord) -> Result<(), EngineError> {
        let id = record.id;
        let machine = self.living(record).map(|runtime| runtime.machine.clone());
        for snapshot in self.records(move |store| store.snapshots(id)).await? {
            if !snapshot.ready {
                if let Some(runtime) = self.living(record).filter(|_| snapshot.memory) {
                    // Whoever was capturing it may have gone between freezing and thawing.
                    self.backends.hypervisor.resume(&runtime.machine).await?;
                    self.wake(record, runtime, snapshot.id).await?;
                }
                self.undo_snapshot(record, snapshot.id, machine.as_ref()).await?;
            }
        }
        // A restore that was cut off after the disk went back, and before the records did.
        let kept = self.backends.storage.usage(record.disk()).await?;
        let kept: BTreeSet<_> = kept.snapshots.into_iter().map(|(snapshot, _)| snapshot).collect();
        for snapshot in self.records(move |store| store.snapshots(id)).await? {
            if !kept.contains(&snapshot.id) {
                self.forget_snapshot(snapshot.id).await?;
            }
        }
        Ok(())
    }

    /// Removes what no record knows: processes, network cards, channels, disks, bases, folders and locks, unless their
    /// lock is held.
    async fn remove_unrecorded(&self, traces: &TracesById) -> Result<(), EngineError> {
        let inventory = self.backends.storage.inventory().await?;
        let catalogued = self.images.bases().await?;
        // Read after everything that is compared with them: what is made meanwhile has a record first.
        let mut recorded: BTreeSet<Uuid> =
            self.records(|store| store.ids()).await?.into_iter().map(|id| *id.as_uuid()).collect();
        recorded
            .extend(self.records(|store| store.templates()).await?.into_iter().map(|template| template.id));
        let found = traces
            .keys()
            .map(|id| *id.as_uuid())
            .chain(inventory.disks.iter().map(|disk| *disk.as_uuid()))
            .chain(
                inventory.bases.iter().filter(|base| !catalogued.contains(base)).map(|base| *base.as_uuid()),
            )
            .chain(uuids_in(&self.layout.run()))
            .chain(uuids_in(&self.layout.locks()))
            .filter(|id| !recorded.contains(id))
            .collect::<BTreeSet<_>>();
        for id in found {
            // Held: somebody is just making it, a base image too.
            let Some(lock) = self.try_lock(id)? else { continue };
            if self.records(move |store| store.ids()).await?.contains(&WorkspaceId::from(id))
                || self.records(move |store| store.template(id)).await?.is_some()
            {
                continue;
            }
            let removed = self.remove_one_unrecorded(id, traces).await;
            match removed {
                Ok(()) => lock.remove(),
                Err(error) => {
                    tracing::warn!(%id, error = %error.report(), "could not remove what no record knows")
                }
            }
        }
        Ok(())
    }

    async fn remove_one_unrecorded(&self, id: Uuid, traces: &TracesById) -> Result<(), EngineError> {
        self.clear_traces(traces.get(&WorkspaceId::from(id))).await?;
        self.backends.storage.destroy_disk(id.into()).await?;
        if !self.images.bases().await?.contains(&id.into()) {
            match self.backends.storage.delete_base(id.into()).await {
                // An image that was made anew under its name: its disk goes with the last workspace that began from it.
                Err(StorageError::InUse { .. }) => {}
                other => other?,
            }
        }
        self.remove_run_dir(id.into())
    }

    /// Removes what is found of the machines of these workspaces.
    pub(super) async fn kill_strays(&self, ids: &[WorkspaceId]) -> Result<(), EngineError> {
        let traces = self.traces().await?;
        for id in ids {
            self.clear_traces(traces.get(id)).await?;
        }
        Ok(())
    }

    /// Removes what was found of a machine. What cannot be removed is left to the next opener.
    ///
    /// # Errors
    /// The machine could not be ended. It still has its disk, its card and its channel then, and so all of it is left:
    /// nobody else may get what it is reached by, or writes to.
    async fn clear_traces(&self, traces: Option<&Traces>) -> Result<(), EngineError> {
        let Some(traces) = traces else { return Ok(()) };
        let Backends { hypervisor, network, channel, .. } = &self.backends;
        for process in &traces.machines {
            hypervisor.kill_process(process).await?;
        }
        let told = |what: &str, done: Result<(), EngineError>| {
            if let Err(error) = done {
                tracing::warn!(error = %error.report(), "could not remove a stray {what}");
            }
        };
        for process in &traces.networks {
            told("network process", network.kill_process(process).await.map_err(Into::into));
        }
        for card in &traces.cards {
            told("network card", network.detach(card).await.map_err(Into::into));
        }
        for record in &traces.channels {
            told("channel", channel.release(record).await.map_err(Into::into));
        }
        Ok(())
    }

    async fn traces(&self) -> Result<TracesById, EngineError> {
        let Backends { hypervisor, network, channel, .. } = &self.backends;
        let mut traces = TracesById::new();
        for (id, process) in hypervisor.processes().await? {
            traces.entry(id).or_default().machines.push(process);
        }
        for (id, process) in network.processes().await? {
            traces.entry(id).or_default().networks.push(process);
        }
        for card in network.leftovers().await? {
            traces.entry(card.id).or_default().cards.push(card);
        }
        for record in channel.leftovers().await? {
            traces.entry(record.id).or_default().channels.push(record);
        }
        Ok(traces)
    }

    pub(super) fn try_lock(&self, id: Uuid) -> Result<Option<WorkspaceLock>, EngineError> {
        WorkspaceLock::try_take(&self.layout.locks(), id).map_err(|source| self.lock_failed(source))
    }
}

/// The UUIDs that files and folders in a folder are named by. What has another name is not ours to remove.
fn uuids_in(folder: &std::path::Path) -> Vec<Uuid> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| Uuid::parse_str(name.strip_suffix(".lock").unwrap_or(&name)).ok()).collect()
}
