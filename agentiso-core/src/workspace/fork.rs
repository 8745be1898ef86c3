//! Many workspaces from one.

use std::sync::Arc;

use tokio::{sync::Semaphore, task::JoinSet};

use super::create::{Naming, Plan, Reserved};
use super::engine::{Engine, caller};
use super::info::{ForkFailure, ForkOrigin, ForkReport, ForkWorker, Standstill, WorkspaceState};
use super::machine::Begin;
use super::snapshot::{Draft, KeptMemory};
use super::spec::{ForkSpec, MAX_FORKS};
use crate::error::EngineError;
use crate::storage::DiskOrigin;
use crate::store::{SnapshotRecord, WorkspaceRecord};
use crate::types::{SnapshotId, WorkspaceId, WorkspaceName};

/// Machines that boot at once for each CPU of the host: more only make all of them slower, and the emulator's boots
/// would run into their time limit.
const BOOTS_PER_CPU: usize = 2;

impl Engine {
    /// Makes forks of a workspace and boots them, each for itself: one that fails does not keep the others.
    pub(super) async fn fork(
        self: &Arc<Self>,
        id: WorkspaceId,
        spec: ForkSpec,
    ) -> Result<ForkReport, EngineError> {
        if !(1..=MAX_FORKS).contains(&spec.count) {
            return Err(EngineError::OutOfBounds {
                what: "the number of forks",
                given: spec.count.into(),
                min: 1,
                max: MAX_FORKS.into(),
            });
        }
        if spec.name.is_some() && spec.count > 1 {
            return Err(EngineError::Parameters {
                reason: "one name was given for several forks".to_owned(),
                remedy: "give a prefix instead of a name, or ask for one fork".to_owned(),
            });
        }
        let (caller, callers) = caller();
        let engine = Arc::clone(self);
        let report = self
            .finish(async move {
                let (parent, record) = engine.lock_record(id).await?;
                let point = engine.fork_point(&record, &spec).await?;
                let name = (!point.snapshot.hidden).then(|| point.snapshot.name.clone());
                let origin = ForkOrigin { workspace_id: id, name: record.name.to_string(), snapshot: name };
                let plan = fork_plan(&record, &spec, &point, origin.clone());
                let reserved = engine.reserve_forks(&plan, spec.count).await;
                engine.shorten_afterwards(&record).await;
                // From here on the forks have disks of their own; their parent is free.
                drop(parent);
                if reserved.is_err() {
                    engine.drop_hidden_snapshots(id).await;
                }
                let reserved = reserved?;
                let mut report = engine.boot_forks(plan, origin, reserved, callers).await;
                report.standstill = point.standstill;
                if point.snapshot.hidden {
                    engine.drop_fork_memory(&point.snapshot, report.success_count).await;
                }
                Ok(report)
            })
            .await;
        caller.received(report)
    }

    /// Gives each fork its record and its disk, while the parent's lock keeps what they begin from.
    async fn reserve_forks(
        &self,
        plan: &Plan,
        count: u32,
    ) -> Result<Vec<Result<Reserved, ForkFailure>>, EngineError> {
        let mut reserved = Vec::new();
        for number in 1..=count {
            match self.reserve(plan).await {
                Ok(fork) => reserved.push(Ok(fork)),
                // A name that is taken was the caller's choice: nothing was done yet.
                Err(error @ EngineError::NameTaken { .. }) => return Err(error),
                Err(error) => {
                    reserved.push(Err(ForkFailure { name: wanted_name(plan, number), error: error.report() }))
                }
            }
        }
        Ok(reserved)
    }

    /// The snapshot that forks begin from: the one that was named, or a new hidden one, with memory if the workspace
    /// runs.
    async fn fork_point(&self, parent: &WorkspaceRecord, spec: &ForkSpec) -> Result<ForkPoint, EngineError> {
        if let Some(name) = &spec.snapshot {
            let snapshot = self.find_snapshot(parent, name).await?;
            let begin = match snapshot.memory && !spec.disk_only {
                true => self.begin_of(parent, &snapshot).await?,
                false => Begin::Boot,
            };
            return Ok(ForkPoint { snapshot, begin, standstill: None });
        }
        let runs = self.living(parent).is_some() && parent.state == WorkspaceState::Running;
        let memory = runs && !spec.disk_only;
        let name = format!("fork:{}", SnapshotId::random());
        let draft = Draft {
            // Its children map or copy it within moments; after a power failure there are none.
            memory: memory.then_some(KeptMemory { restores: spec.count, durable: false }),
            ..Draft::hidden(&name)
        };
        let (snapshot, standstill) = self.take_timed_snapshot(parent, &draft).await?;
        let begin = if memory { Begin::Clone(snapshot.id) } else { Begin::Boot };
        Ok(ForkPoint { snapshot, begin, standstill })
    }

    /// Removes the memory that forks began with: they have it. Without forks the snapshot goes as well.
    async fn drop_fork_memory(&self, snapshot: &SnapshotRecord, forks: usize) {
        if let Err(error) = self.backends.hypervisor.delete_image(snapshot.id).await {
            tracing::warn!(%error, "could not remove the memory that forks began with");
        }
        if forks == 0 {
            self.drop_hidden_snapshots(snapshot.workspace).await;
        }
    }

    async fn boot_forks(
        self: &Arc<Self>,
        plan: Plan,
        forked_from: ForkOrigin,
        reserved: Vec<Result<Reserved, ForkFailure>>,
        callers: super::engine::Callers,
    ) -> ForkReport {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let places = Arc::new(Semaphore::new(cpus * BOOTS_PER_CPU));
        let plan = Arc::new(plan);
        let mut boots = JoinSet::new();
        let mut failures = Vec::new();
        for (number, fork) in reserved.into_iter().enumerate() {
            let fork = match fork {
                Ok(fork) => fork,
                Err(failure) => {
                    failures.push(failure);
                    continue;
                }
            };
            let (engine, plan, places, callers) =
                (Arc::clone(self), Arc::clone(&plan), Arc::clone(&places), callers.clone());
            boots.spawn(async move {
                let _place = places.acquire_owned().await.ok();
                let name = fork.record.name.clone();
                let completed = engine.complete(fork, &plan, callers).await;
                if let Ok(record) = &completed {
                    engine.shorten_afterwards(record).await;
                }
                (number, name, completed)
            });
        }
        let mut outcomes = boots.join_all().await;
        outcomes.sort_by_key(|(number, ..)| *number);
        let mut workers = Vec::new();
        for (_, name, outcome) in outcomes {
            match outcome {
                Ok(record) => workers.push(worker(&record)),
                Err(error) => failures.push(ForkFailure { name: name.to_string(), error: error.report() }),
            }
        }
        ForkReport {
            success_count: workers.len(),
            failure_count: failures.len(),
            workers,
            failures,
            forked_from,
            standstill: None,
        }
    }
}

/// What forks begin with.
struct ForkPoint {
    snapshot: SnapshotRecord,
    begin: Begin,
    standstill: Option<Standstill>,
}

fn fork_plan(parent: &WorkspaceRecord, spec: &ForkSpec, point: &ForkPoint, origin: ForkOrigin) -> Plan {
    Plan {
        naming: match (&spec.name, &spec.prefix) {
            (Some(name), _) => Naming::Exactly(name.clone()),
            (None, prefix) => Naming::Numbered(prefix.clone().unwrap_or_else(|| parent.name.clone())),
        },
        image: parent.image.clone(),
        base: parent.base,
        origin: DiskOrigin::Snapshot { disk: parent.disk(), snapshot: point.snapshot.id },
        begin: point.begin,
        resources: parent.resources,
        policy: parent.policy.clone(),
        // A forward leads to one machine; forks get none.
        forwards: std::collections::BTreeMap::new(),
        throwaway: false,
        forked_from: Some(origin),
        pooled: false,
    }
}

fn worker(record: &WorkspaceRecord) -> ForkWorker {
    ForkWorker { workspace_id: record.id, name: record.name.to_string(), state: record.state }
}

fn wanted_name(plan: &Plan, number: u32) -> String {
    let shown = |name: &WorkspaceName| name.to_string();
    match &plan.naming {
        Naming::Exactly(name) => shown(name),
        Naming::Numbered(prefix) => format!("{prefix}-{number}"),
        Naming::Any => String::new(),
    }
}
