//! Many workspaces from one.

use std::sync::Arc;

use tokio::{sync::Semaphore, task::JoinSet};

use super::create::{Naming, Plan, Reserved};
use super::engine::{Callers, Engine, caller};
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
        self.check_requirements()?;
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
        self.expect_free(spec.name.as_ref()).await?;
        let (caller, callers) = caller();
        let engine = Arc::clone(self);
        let report = self
            .finish(async move {
                let (parent, record) = engine.lock_record(id).await?;
                let point = engine.fork_point(&record, &spec).await?;
                let name = (!point.snapshot.hidden).then(|| point.snapshot.name.clone());
                let origin = ForkOrigin { workspace_id: id, name: record.name.to_string(), snapshot: name };
                let plan = fork_plan(&record, &spec, &point, origin.clone());
                let mut boots = Boots::new(&engine, plan, callers);
                let reserved = engine.reserve_forks(&mut boots, spec.count).await;
                engine.shorten_afterwards(&record).await;
                // From here on the forks have disks of their own; their parent is free.
                drop(parent);
                if reserved.is_err() {
                    engine.drop_hidden_snapshots(id).await;
                }
                reserved?;
                let mut report = boots.report(origin).await;
                report.standstill = point.standstill;
                if point.snapshot.hidden {
                    engine.drop_fork_memory(&point.snapshot, report.success_count).await;
                }
                Ok(report)
            })
            .await;
        caller.received(report)
    }

    /// Gives each fork its record and its disk, while the parent's lock keeps what they begin from, and lets it start.
    async fn reserve_forks(&self, boots: &mut Boots, count: u32) -> Result<(), EngineError> {
        for number in 1..=count {
            match self.reserve(&boots.plan).await {
                Ok(fork) => boots.start(number, fork),
                // A name that is taken was the caller's choice: nothing was done yet.
                Err(error @ EngineError::NameTaken { .. }) => return Err(error),
                Err(error) => boots.failed(wanted_name(&boots.plan, number), &error),
            }
        }
        Ok(())
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
}

/// Forks on their way.
struct Boots {
    engine: Arc<Engine>,
    plan: Arc<Plan>,
    callers: Callers,
    places: Arc<Semaphore>,
    under_way: JoinSet<(u32, WorkspaceName, Result<WorkspaceRecord, EngineError>)>,
    failures: Vec<ForkFailure>,
}

impl Boots {
    fn new(engine: &Arc<Engine>, plan: Plan, callers: Callers) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            engine: Arc::clone(engine),
            plan: Arc::new(plan),
            callers,
            places: Arc::new(Semaphore::new(cpus * BOOTS_PER_CPU)),
            under_way: JoinSet::new(),
            failures: Vec::new(),
        }
    }

    fn failed(&mut self, name: String, error: &EngineError) {
        self.failures.push(ForkFailure { name, error: error.report() });
    }

    /// Starts a fork when there is a place for it.
    fn start(&mut self, number: u32, fork: Reserved) {
        let (engine, plan) = (Arc::clone(&self.engine), Arc::clone(&self.plan));
        let (places, callers) = (Arc::clone(&self.places), self.callers.clone());
        self.under_way.spawn(async move {
            let _place = places.acquire_owned().await.ok();
            let name = fork.record.name.clone();
            let completed = engine.complete(fork, &plan, callers).await;
            if let Ok(record) = &completed {
                engine.shorten_afterwards(record).await;
            }
            (number, name, completed)
        });
    }

    /// Waits for all of them.
    async fn report(mut self, forked_from: ForkOrigin) -> ForkReport {
        let mut outcomes = std::mem::take(&mut self.under_way).join_all().await;
        outcomes.sort_by_key(|(number, ..)| *number);
        let mut workers = Vec::new();
        for (_, name, outcome) in outcomes {
            match outcome {
                Ok(record) => workers.push(worker(&record)),
                Err(error) => self.failed(name.to_string(), &error),
            }
        }
        ForkReport {
            success_count: workers.len(),
            failure_count: self.failures.len(),
            workers,
            failures: self.failures,
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
