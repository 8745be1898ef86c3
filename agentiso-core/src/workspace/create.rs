//! New workspaces, from an image or from a snapshot, and their end.

use std::{collections::BTreeMap, sync::Arc};

use super::engine::{Callers, Engine, caller, now};
use super::info::{ForkOrigin, WorkspaceState};
use super::lock::WorkspaceLock;
use super::machine::Begin;
use super::spec::WorkspaceSpec;
use crate::error::EngineError;
use crate::network::NetworkPolicy;
use crate::session::{Claimant, SessionUsage};
use crate::storage::{DiskOrigin, StorageError};
use crate::store::WorkspaceRecord;
use crate::types::{
    BaseId, DiskGib, GuestPort, HostPort, ImageName, ProcessRef, Resources, WorkspaceId, WorkspaceName,
};

/// A GiB, in bytes.
const GIB: u64 = 1 << 30;

/// How a new workspace is named.
#[derive(Clone, Debug)]
pub(super) enum Naming {
    /// This, or the creation fails.
    Exactly(WorkspaceName),
    /// PREFIX-N with the first N that is free.
    Numbered(WorkspaceName),
    /// Something free.
    Any,
}

/// Everything about a workspace that is to be made, checked.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) naming: Naming,
    pub(super) image: ImageName,
    pub(super) base: BaseId,
    pub(super) origin: DiskOrigin,
    pub(super) begin: Begin,
    pub(super) resources: Resources,
    pub(super) policy: NetworkPolicy,
    pub(super) forwards: BTreeMap<GuestPort, Option<HostPort>>,
    pub(super) throwaway: bool,
    /// For whom it is made.
    pub(super) claimant: Claimant,
    pub(super) forked_from: Option<ForkOrigin>,
    /// It is to wait until somebody asks for one like it.
    pub(super) pooled: bool,
}

/// A workspace that was made.
#[derive(Debug)]
pub(super) struct Created {
    pub(super) record: WorkspaceRecord,
    /// Whether its machine had been waiting.
    pub(super) from_pool: bool,
}

/// A workspace that has a record and a disk, and is not booted yet. Its lock is held: nobody else touches it.
#[derive(Debug)]
pub(super) struct Reserved {
    pub(super) record: WorkspaceRecord,
    pub(super) lock: WorkspaceLock,
}

impl Engine {
    /// Makes a workspace from an image and boots it. Abandoned by its caller or failed, it is as if it had never been.
    pub(super) async fn create(
        self: &Arc<Self>,
        spec: WorkspaceSpec,
        claimant: Claimant,
    ) -> Result<Created, EngineError> {
        let image = self.images.find(&spec.image_name()?).await?;
        check_disk(spec.resources.disk_gb, image.bytes, || format!("image {}", image.name))?;
        self.expect_free(spec.name.as_ref()).await?;
        self.expect_quota(&claimant, 1, spec.resources).await?;
        let (caller, callers) = caller();
        let engine = Arc::clone(self);
        let made = self
            .finish(async move {
                if let Some(record) = engine.create_from_pool(&image, &spec, &claimant).await? {
                    if callers.have_gone() {
                        let abandoned = EngineError::Abandoned { workspace: record.name.to_string() };
                        engine.destroy(record.id).await?;
                        return Err(abandoned);
                    }
                    return Ok(Created { record, from_pool: true });
                }
                let (origin, begin) = engine.beginning(&image, spec.resources, callers.clone()).await?;
                let plan = Plan {
                    naming: spec.name.map_or(Naming::Any, Naming::Exactly),
                    image: image.name,
                    base: image.base,
                    origin,
                    begin,
                    resources: spec.resources,
                    policy: spec.policy,
                    forwards: spec.forwards,
                    throwaway: spec.throwaway,
                    claimant,
                    forked_from: None,
                    pooled: false,
                };
                let reserved = engine.reserve(&plan).await?;
                let record = engine.complete(reserved, &plan, callers).await?;
                Ok(Created { record, from_pool: false })
            })
            .await;
        caller.received(made)
    }

    /// Refuses a name that is taken, before anything is done for it: a template takes a boot, and a running parent of a fork
    /// stands still. It is decided for good when the record is made.
    pub(super) async fn expect_free(&self, name: Option<&WorkspaceName>) -> Result<(), EngineError> {
        let Some(name) = name.cloned() else { return Ok(()) };
        let wanted = name.clone();
        match self.records(move |store| store.by_name(&wanted)).await? {
            None => Ok(()),
            Some(_) => Err(EngineError::NameTaken { name: name.to_string() }),
        }
    }

    /// Refuses what somebody may not have, before anything is done for it. It is decided for good when the records are
    /// made.
    async fn expect_quota(
        &self,
        claimant: &Claimant,
        count: u64,
        size: Resources,
    ) -> Result<(), EngineError> {
        let claimant = claimant.clone();
        let more = SessionUsage::of(count, size.memory_mb.get().into(), size.disk_gb.get().into());
        self.records(move |store| store.check_claim(&claimant, more)).await
    }

    /// Gives a new workspace its record and its disk.
    pub(super) async fn reserve(&self, plan: &Plan) -> Result<Reserved, EngineError> {
        let mut enrolled = self.enroll(plan, 1).await?;
        match enrolled.pop() {
            Some(enrolled) => self.give_disk(enrolled, plan.origin).await,
            None => Err(EngineError::Abandoned { workspace: plan.image.to_string() }),
        }
    }

    /// Gives new workspaces their records, all of them or none: here it is decided whether whoever they are for may have
    /// them.
    pub(super) async fn enroll(&self, plan: &Plan, count: u32) -> Result<Vec<Reserved>, EngineError> {
        if let Naming::Numbered(prefix) = &plan.naming {
            // A prefix may leave no room for the number.
            WorkspaceName::new(format!("{prefix}-{count}"))?;
        }
        let drafts = (0..count).map(|_| draft(plan)).collect::<Result<Vec<_>, _>>()?;
        let mut locks = Vec::with_capacity(drafts.len());
        // Before the records: without its lock one would be taken for half made by whoever opens the state folder now.
        for draft in &drafts {
            match self.lock(draft.id).await {
                Ok(lock) => locks.push(lock),
                Err(error) => {
                    locks.into_iter().for_each(WorkspaceLock::remove);
                    return Err(error);
                }
            }
        }
        let private_uid = rustix::process::geteuid().is_root();
        let (naming, claimant) = (plan.naming.clone(), plan.claimant.clone());
        let inserted = self
            .records(move |store| {
                let prefix = match &naming {
                    Naming::Numbered(prefix) => Some(prefix),
                    Naming::Exactly(_) | Naming::Any => None,
                };
                store.insert_claimed(drafts, prefix, &claimant, private_uid)
            })
            .await;
        match inserted {
            Ok(records) => {
                Ok(records.into_iter().zip(locks).map(|(record, lock)| Reserved { record, lock }).collect())
            }
            Err(error) => {
                locks.into_iter().for_each(WorkspaceLock::remove);
                Err(error)
            }
        }
    }

    /// Gives a workspace that has a record a disk. On failure nothing of it is left.
    pub(super) async fn give_disk(
        &self,
        enrolled: Reserved,
        origin: DiskOrigin,
    ) -> Result<Reserved, EngineError> {
        let bytes = enrolled.record.resources.disk_gb.bytes();
        match self.backends.storage.create_disk(enrolled.record.disk(), origin, bytes).await {
            Ok(()) => Ok(enrolled),
            Err(error) => Err(self.give_up(enrolled, error.into()).await),
        }
    }

    /// Removes all that a workspace has which could not be made. Returns why.
    pub(super) async fn give_up(&self, reserved: Reserved, error: EngineError) -> EngineError {
        let Reserved { mut record, lock } = reserved;
        let undone = self.erase(&mut record).await;
        lock.remove();
        with_undo(&record, error, undone)
    }

    /// Boots a reserved workspace and puts its forwards in force. On failure, or when its caller has gone, nothing of
    /// the workspace is left.
    pub(super) async fn complete(
        &self,
        reserved: Reserved,
        plan: &Plan,
        mut callers: Callers,
    ) -> Result<WorkspaceRecord, EngineError> {
        let Reserved { mut record, lock } = reserved;
        let completed = tokio::select! {
            completed = self.boot_and_forward(&mut record, plan) => completed,
            () = callers.gone() => Err(EngineError::Abandoned { workspace: record.name.to_string() }),
        };
        match completed {
            Ok(()) => Ok(record),
            Err(error) => {
                // A machine that an abandoned boot had started is known by its name only.
                let undone = match self.kill_strays(&[record.id]).await {
                    Ok(()) => self.erase(&mut record).await,
                    // It writes to the disk.
                    Err(lives) => Err(lives),
                };
                lock.remove();
                Err(with_undo(&record, error, undone))
            }
        }
    }

    async fn boot_and_forward(&self, record: &mut WorkspaceRecord, plan: &Plan) -> Result<(), EngineError> {
        let id = record.id;
        for (guest, host) in plan.forwards.iter().filter_map(|(guest, host)| host.map(|host| (*guest, host)))
        {
            self.records(move |store| store.set_forward(id, guest, host)).await?;
        }
        self.boot(record, plan.begin).await?;
        for guest in plan.forwards.iter().filter(|(_, host)| host.is_none()).map(|(guest, _)| *guest) {
            self.forward(record, guest, None).await?;
        }
        Ok(())
    }

    /// Removes everything a workspace has, in any state. What is gone already is no error, so that it can be repeated
    /// until it succeeds. The caller holds the lock and removes it.
    pub(super) async fn erase(&self, record: &mut WorkspaceRecord) -> Result<(), EngineError> {
        self.wait_for_forks(record.id).await?;
        record.state = WorkspaceState::Destroying;
        self.save(record).await?;
        self.clear_machine(record).await?;
        let id = record.id;
        for snapshot in self.records(move |store| store.snapshots(id)).await? {
            if snapshot.memory {
                self.backends.hypervisor.delete_image(snapshot.id).await?;
            }
        }
        self.backends.storage.destroy_disk(record.disk()).await?;
        self.remove_run_dir(record.id)?;
        self.records(move |store| store.remove(id)).await?;
        if let Some(origin) = &record.forked_from {
            self.drop_hidden_snapshots(origin.workspace_id).await;
        }
        Ok(())
    }

    /// Destroys a workspace, running or not.
    pub(super) async fn destroy(self: &Arc<Self>, id: WorkspaceId) -> Result<(), EngineError> {
        let engine = Arc::clone(self);
        self.finish(async move {
            let (lock, mut record) = engine.lock_record(id).await?;
            engine.wait_for_forks(id).await?;
            // From here on whoever opens the state folder goes on with it.
            record.state = WorkspaceState::Destroying;
            engine.save(&record).await?;
            engine.kill_strays(&[id]).await?;
            engine.erase(&mut record).await?;
            lock.remove();
            Ok(())
        })
        .await
    }
}

/// The record of a workspace that is to be made. If it gets a number, its name is not yet the one that it will have.
fn draft(plan: &Plan) -> Result<WorkspaceRecord, EngineError> {
    let id = WorkspaceId::random();
    let throwaway_of = match plan.throwaway {
        true => Some(
            ProcessRef::current()
                .map_err(|source| EngineError::operation("create", id.to_string(), source))?,
        ),
        false => None,
    };
    Ok(WorkspaceRecord {
        id,
        name: match &plan.naming {
            Naming::Exactly(name) => name.clone(),
            Naming::Numbered(_) | Naming::Any => WorkspaceName::new(format!("ws-{}", &id.to_string()[..8]))?,
        },
        state: WorkspaceState::Creating,
        crashed: false,
        created_at: now(),
        image: plan.image.clone(),
        base: plan.base,
        resources: plan.resources,
        policy: plan.policy.clone(),
        uid: None,
        owner: plan.claimant.owner(),
        inherited: false,
        throwaway_of,
        forked_from: plan.forked_from.clone(),
        runtime: None,
        boot_time_ms: None,
        pooled: plan.pooled,
    })
}

/// Refuses a disk that cannot hold what it begins with.
pub(super) fn check_disk(
    disk: DiskGib,
    needed: u64,
    origin: impl FnOnce() -> String,
) -> Result<(), EngineError> {
    if disk.bytes() < needed {
        return Err(EngineError::DiskTooSmall {
            disk_gb: disk.get(),
            origin: origin(),
            needed_gb: needed.div_ceil(GIB),
        });
    }
    Ok(())
}

/// The error of an operation and, beside it, that of undoing it.
fn with_undo(record: &WorkspaceRecord, error: EngineError, undone: Result<(), EngineError>) -> EngineError {
    match undone {
        Ok(()) => error,
        Err(undo) => EngineError::Undo {
            workspace: record.name.to_string(),
            undo: undo.report(),
            source: Box::new(error),
        },
    }
}

/// The names of the workspaces that a storage calls dependents, as far as they have one.
pub(super) async fn dependent_names(engine: &Engine, error: &StorageError) -> Option<Vec<String>> {
    let StorageError::InUse { dependents, .. } = error else { return None };
    let mut names = Vec::new();
    for disk in dependents {
        let id = WorkspaceId::from(*disk.as_uuid());
        names.push(engine.record(id).await.map_or_else(|_| id.to_string(), |record| record.name.to_string()));
    }
    Some(names)
}
