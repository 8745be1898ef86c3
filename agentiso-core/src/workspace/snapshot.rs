//! Snapshots, of disk and memory or of the disk alone: take, list, restore, delete.

use std::{collections::BTreeMap, sync::Arc};

use super::create::dependent_names;
use super::engine::{Engine, not_running, now};
use super::info::{RestoreReport, SnapshotInfo, Standstill, WorkspaceState};
use super::machine::Begin;
use super::spec::{MAX_SNAPSHOTS, RestoreSpec, SnapshotSpec};
use crate::error::EngineError;
use crate::hypervisor::{HypervisorError, Machine};
use crate::storage::{LayerId, Outcome, PendingSnapshot};
use crate::store::{SnapshotRecord, WorkspaceRecord};
use crate::types::{SnapshotId, SnapshotName, WorkspaceId};

/// How long a machine that does not answer any more may take until its process is gone.
const DEATH_LIMIT: std::time::Duration = std::time::Duration::from_secs(2);

impl Engine {
    pub(super) async fn snapshot(
        self: &Arc<Self>,
        id: WorkspaceId,
        spec: SnapshotSpec,
    ) -> Result<SnapshotInfo, EngineError> {
        self.locked(id, move |engine, record| {
            Box::pin(async move {
                let visible = engine.visible_snapshots(id).await?;
                let workspace = record.name.to_string();
                if visible.iter().any(|snapshot| snapshot.name == spec.name.as_str()) {
                    return Err(EngineError::SnapshotExists { workspace, snapshot: spec.name.to_string() });
                }
                if visible.len() >= MAX_SNAPSHOTS {
                    return Err(EngineError::TooManySnapshots { workspace, max: MAX_SNAPSHOTS });
                }
                let runs = engine.living(record).is_some() && record.state == WorkspaceState::Running;
                let draft = Draft {
                    name: spec.name.as_str(),
                    visibility: Visibility::Listed,
                    crash_consistent: spec.crash_consistent,
                    memory: match spec.memory.unwrap_or(runs) {
                        false => None,
                        true if runs => Some(KeptMemory { restores: 1, durable: true }),
                        true => return Err(not_running(record, "snapshotted with its memory")),
                    },
                };
                let taken = engine.take_snapshot(record, &draft).await?;
                engine.shorten_afterwards(record).await;
                Ok(engine.snapshot_info(record, taken).await)
            })
        })
        .await
    }

    /// Takes a snapshot of a workspace, in use or not. The caller holds the lock and has checked the name.
    ///
    /// On failure the workspace goes on as it was.
    pub(super) async fn take_snapshot(
        &self,
        record: &WorkspaceRecord,
        draft: &Draft<'_>,
    ) -> Result<SnapshotRecord, EngineError> {
        Ok(self.take_timed_snapshot(record, draft).await?.0)
    }

    /// The same, and how long the workspace stood still if its memory was kept.
    pub(super) async fn take_timed_snapshot(
        &self,
        record: &WorkspaceRecord,
        draft: &Draft<'_>,
    ) -> Result<(SnapshotRecord, Option<Standstill>), EngineError> {
        let machine = self.living(record).map(|runtime| runtime.machine.clone());
        let mut flushed = machine.is_none();
        if let Some(runtime) = self.living(record).filter(|_| !draft.crash_consistent) {
            if record.state == WorkspaceState::Paused {
                return Err(EngineError::WrongState {
                    workspace: record.name.to_string(),
                    state: WorkspaceState::Paused,
                    operation: "snapshotted",
                    remedy: "resume it, or take a crash-consistent snapshot".to_owned(),
                });
            }
            self.client_of(runtime).sync().await.map_err(|source| EngineError::NotFlushed {
                workspace: record.name.to_string(),
                source: Box::new(source),
            })?;
            flushed = true;
        }
        self.undo_unfinished_snapshots(record, machine.as_ref()).await?;
        let snapshot = SnapshotRecord {
            id: SnapshotId::random(),
            workspace: record.id,
            name: draft.name.to_owned(),
            created_at: now(),
            ready: false,
            hidden: draft.visibility == Visibility::Hidden,
            crash_consistent: !flushed,
            memory: draft.memory.is_some(),
        };
        let row = snapshot.clone();
        self.records(move |store| store.insert_snapshot(&row)).await?;
        let taken = match (draft.memory, self.living(record)) {
            (Some(memory), Some(runtime)) => self.capture(record, runtime, &snapshot, memory).await.map(Some),
            _ => self.freeze_disk(record, &snapshot, machine.as_ref()).await.map(|()| None),
        };
        match taken {
            Ok(standstill) => {
                let id = snapshot.id;
                self.records(move |store| store.snapshot_ready(id)).await?;
                Ok((SnapshotRecord { ready: true, ..snapshot }, standstill))
            }
            Err(error) => {
                let undone = self.undo_snapshot(record, snapshot.id, machine.as_ref()).await;
                Err(match undone {
                    Ok(()) => error,
                    Err(undo) => EngineError::Undo {
                        workspace: record.name.to_string(),
                        undo: undo.report(),
                        source: Box::new(error),
                    },
                })
            }
        }
    }

    async fn freeze_disk(
        &self,
        record: &WorkspaceRecord,
        snapshot: &SnapshotRecord,
        machine: Option<&Machine>,
    ) -> Result<(), EngineError> {
        self.shorten_before_pivot(record).await?;
        let (storage, disk) = (&self.backends.storage, record.disk());
        match (storage.begin_snapshot(disk, snapshot.id).await?, machine) {
            (PendingSnapshot::Pivot { to }, Some(machine)) => {
                self.backends.hypervisor.pivot_disk(machine, &to).await?;
                storage.finish_snapshot(disk, snapshot.id, Outcome::Commit).await?;
            }
            (PendingSnapshot::Instant, Some(machine)) => {
                let was_running = record.state == WorkspaceState::Running;
                self.backends.hypervisor.pause(machine).await?;
                let finished = storage.finish_snapshot(disk, snapshot.id, Outcome::Commit).await;
                if was_running {
                    self.backends.hypervisor.resume(machine).await?;
                }
                finished?;
            }
            (_, None) => storage.finish_snapshot(disk, snapshot.id, Outcome::Commit).await?,
        }
        Ok(())
    }

    /// Undoes snapshots that failed and could not be undone then, as on a full disk. The caller holds the lock, so nobody is
    /// taking one.
    async fn undo_unfinished_snapshots(
        &self,
        record: &WorkspaceRecord,
        machine: Option<&Machine>,
    ) -> Result<(), EngineError> {
        let id = record.id;
        for left in self.records(move |store| store.snapshots(id)).await? {
            if !left.ready {
                self.undo_snapshot(record, left.id, machine).await?;
            }
        }
        Ok(())
    }

    /// Undoes a snapshot that was begun, wherever it stopped: the machine alone knows whether it has moved to the new
    /// layer. The caller holds the lock.
    pub(super) async fn undo_snapshot(
        &self,
        record: &WorkspaceRecord,
        snapshot: SnapshotId,
        machine: Option<&Machine>,
    ) -> Result<(), EngineError> {
        let (storage, disk) = (&self.backends.storage, record.disk());
        let pending = storage.inventory().await?.pending;
        if let Some((_, _, layer)) =
            pending.into_iter().find(|(owner, id, _)| (*owner, *id) == (disk, snapshot))
        {
            let moved = match (machine, layer) {
                (Some(machine), Some(layer)) => self.has_moved(machine, &layer).await?,
                (Some(_), None) => false,
                // Nobody is left who could tell: the new layer holds what was written since, if anything, so keeping
                // both is right either way.
                (None, _) => true,
            };
            let outcome = if moved { Outcome::Commit } else { Outcome::Abort };
            storage.finish_snapshot(disk, snapshot, outcome).await?;
        }
        self.backends.hypervisor.delete_image(snapshot).await?;
        storage.delete_snapshot(disk, snapshot).await?;
        self.records(move |store| store.remove_snapshot(snapshot)).await
    }

    /// Whether a machine writes to this layer, or may have until it died.
    async fn has_moved(&self, machine: &Machine, layer: &LayerId) -> Result<bool, EngineError> {
        let hypervisor = &self.backends.hypervisor;
        match hypervisor.active_layer(machine).await {
            Ok(active) => Ok(active == *layer),
            Err(HypervisorError::Gone { .. }) => Ok(true),
            // It may be dying: that is why the snapshot failed.
            Err(_) if hypervisor.wait_exit(machine, DEATH_LIMIT).await? => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// The snapshots that users see, oldest first.
    pub(super) async fn visible_snapshots(
        &self,
        id: WorkspaceId,
    ) -> Result<Vec<SnapshotRecord>, EngineError> {
        let mut snapshots = self.records(move |store| store.snapshots(id)).await?;
        snapshots.retain(|snapshot| !snapshot.hidden && snapshot.ready);
        Ok(snapshots)
    }

    /// A snapshot by its name.
    pub(super) async fn find_snapshot(
        &self,
        record: &WorkspaceRecord,
        name: &SnapshotName,
    ) -> Result<SnapshotRecord, EngineError> {
        self.visible_snapshots(record.id)
            .await?
            .into_iter()
            .find(|snapshot| snapshot.name == name.as_str())
            .ok_or_else(|| EngineError::NoSuchSnapshot {
                workspace: record.name.to_string(),
                snapshot: name.to_string(),
            })
    }

    /// A workspace's snapshots with their sizes, oldest first.
    pub(super) async fn snapshot_infos(
        &self,
        id: WorkspaceId,
        sizes: &BTreeMap<SnapshotId, u64>,
    ) -> Result<Vec<SnapshotInfo>, EngineError> {
        let mut infos = Vec::new();
        for snapshot in self.visible_snapshots(id).await? {
            infos.push(self.describe(snapshot, sizes).await);
        }
        Ok(infos)
    }

    async fn snapshot_info(&self, record: &WorkspaceRecord, snapshot: SnapshotRecord) -> SnapshotInfo {
        let usage = self.backends.storage.usage(record.disk()).await.unwrap_or_default();
        self.describe(snapshot, &usage.snapshots.into_iter().collect()).await
    }

    /// A snapshot with what it holds on the host, of the disk and of memory.
    async fn describe(&self, snapshot: SnapshotRecord, disks: &BTreeMap<SnapshotId, u64>) -> SnapshotInfo {
        let memory_bytes = match snapshot.memory {
            // One that is not there any more holds nothing; using it will say so.
            true => self.backends.hypervisor.image(snapshot.id).await.map_or(0, |image| image.unique_bytes),
            false => 0,
        };
        SnapshotInfo {
            snapshot_id: snapshot.id,
            size_bytes: disks.get(&snapshot.id).copied().unwrap_or_default() + memory_bytes,
            name: snapshot.name,
            created_at: snapshot.created_at,
            memory: snapshot.memory,
            crash_consistent: snapshot.crash_consistent,
        }
    }

    pub(super) async fn restore(
        self: &Arc<Self>,
        id: WorkspaceId,
        spec: RestoreSpec,
    ) -> Result<RestoreReport, EngineError> {
        self.check_requirements()?;
        self.locked(id, move |engine, record| {
            Box::pin(async move {
                let snapshot = engine.find_snapshot(record, &spec.name).await?;
                let begin = match snapshot.memory && !spec.disk_only {
                    true => Some(engine.begin_of(record, &snapshot).await?),
                    false => None,
                };
                // They may begin with what is newer and goes.
                engine.wait_for_forks(id).await?;
                let (state, _) = engine.present_state(record);
                // What it holds is given up anyway: no need for it to shut down first.
                engine.clear_machine(record).await?;
                record.state = WorkspaceState::Stopped;
                engine.save(record).await?;
                let removed = engine.backends.storage.rollback(record.disk(), snapshot.id).await?;
                let mut removed_snapshots = Vec::new();
                for old in engine.records(move |store| store.snapshots(id)).await? {
                    if removed.contains(&old.id) {
                        engine.forget_snapshot(old.id).await?;
                        if !old.hidden {
                            removed_snapshots.push(old.name);
                        }
                    }
                }
                match (begin, state) {
                    (Some(begin), _) => engine.boot(record, begin).await?,
                    (None, WorkspaceState::Running | WorkspaceState::Paused) => {
                        engine.boot(record, Begin::Boot).await?;
                    }
                    (None, _) => {}
                }
                if record.state == WorkspaceState::Running {
                    engine.shorten_afterwards(record).await;
                }
                Ok(RestoreReport { restored: spec.name.to_string(), removed_snapshots, state: record.state })
            })
        })
        .await
    }

    pub(super) async fn delete_snapshot(
        self: &Arc<Self>,
        id: WorkspaceId,
        name: SnapshotName,
    ) -> Result<(), EngineError> {
        self.locked(id, move |engine, record| {
            Box::pin(async move {
                let snapshot = engine.find_snapshot(record, &name).await?;
                if let Err(error) = engine.backends.storage.delete_snapshot(record.disk(), snapshot.id).await
                {
                    return Err(match dependent_names(engine, &error).await {
                        Some(dependents) => EngineError::SnapshotInUse {
                            workspace: record.name.to_string(),
                            snapshot: name.to_string(),
                            dependents,
                        },
                        None => error.into(),
                    });
                }
                engine.forget_snapshot(snapshot.id).await
            })
        })
        .await
    }

    /// Removes what is left of a snapshot whose disk is gone.
    pub(super) async fn forget_snapshot(&self, snapshot: SnapshotId) -> Result<(), EngineError> {
        self.backends.hypervisor.delete_image(snapshot).await?;
        self.records(move |store| store.remove_snapshot(snapshot)).await
    }

    /// Removes the hidden snapshots of a workspace that no fork needs any more, if nobody is busy with it. What stays
    /// is tried again when the next fork goes.
    pub(super) async fn drop_hidden_snapshots(&self, id: WorkspaceId) {
        let Ok(Some(lock)) = super::lock::WorkspaceLock::try_take(&self.layout.locks(), *id.as_uuid()) else {
            return;
        };
        let Ok(record) = self.record(id).await else {
            lock.remove();
            return;
        };
        let Ok(snapshots) = self.records(move |store| store.snapshots(id)).await else { return };
        for snapshot in snapshots.into_iter().filter(|snapshot| snapshot.hidden) {
            if self.backends.storage.delete_snapshot(record.disk(), snapshot.id).await.is_ok()
                && let Err(error) = self.forget_snapshot(snapshot.id).await
            {
                tracing::warn!(workspace = %record.name, %error, "could not forget a hidden snapshot");
            }
        }
    }
}

/// A snapshot that is to be taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draft<'a> {
    pub(super) name: &'a str,
    pub(super) visibility: Visibility,
    /// Without the guest having flushed its file systems.
    pub(super) crash_consistent: bool,
    /// Memory and processes as well.
    pub(super) memory: Option<KeptMemory>,
}

impl<'a> Draft<'a> {
    /// One of the disk alone, with file systems flushed, that no user sees.
    pub(super) fn hidden(name: &'a str) -> Self {
        Self { name, visibility: Visibility::Hidden, crash_consistent: false, memory: None }
    }
}

/// What the memory in a snapshot is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeptMemory {
    /// How many machines will be started from it at once.
    pub(super) restores: u32,
    /// Whether it outlives a power failure.
    pub(super) durable: bool,
}

/// Whether users see a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Visibility {
    /// They do.
    Listed,
    /// It only serves a fork.
    Hidden,
}
