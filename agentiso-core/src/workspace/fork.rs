//! Many workspaces from one.

use std::sync::Arc;

use tokio::{sync::Semaphore, task::JoinSet};

use super::create::{Naming, Plan, Reserved};
use super::engine::{Callers, Engine, caller};
use super::info::{ForkFailure, ForkOrigin, ForkReport, ForkWorker, Standstill, WorkspaceState};
use super::lock::ForksLock;
use super::machine::Begin;
use super::snapshot::{Draft, KeptMemory};
use super::spec::{ForkSpec, MAX_FORKS};
use crate::error::EngineError;
use crate::session::Claimant;
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
        claimant: Claimant,
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
                let snapshot = match &spec.snapshot {
                    Some(name) => Some(engine.find_snapshot(&record, name).await?),
                    None => None,
                };
                let name = snapshot.as_ref().map(|snapshot| snapshot.name.clone());
                let origin = ForkOrigin { workspace_id: id, name: record.name.to_string(), snapshot: name };
                let plan = fork_plan(&record, &spec, claimant, origin.clone());
                let memory = engine.share_memory(id).await?;
                // All of them may be had, under these names, before the parent stands still for any.
                let forks = engine.enroll(&plan, spec.count).await?;
                let point = match engine.fork_point(&record, snapshot, &spec).await {
                    Ok(point) => point,
                    Err(error) => return Err(engine.give_up_all(forks, error).await),
                };
                let plan = Plan { begin: point.begin, origin: point.origin(&record), ..plan };
                let mut boots = Boots::new(&engine, plan, callers);
                engine.reserve_forks(&mut boots, forks).await;
                engine.shorten_parent(&record).await;
                // From here on the forks have disks of their own; their parent is free for everything that leaves
                // its memory alone.
                drop(parent);
                let mut report = boots.report(origin).await;
                drop(memory);
                report.standstill = point.standstill;
                if point.snapshot.hidden {
                    engine.drop_fork_memory(&point.snapshot, report.success_count).await;
                }
                Ok(report)
            })
            .await;
        caller.received(report)
    }

    /// Has whoever would remove a workspace's memory wait for its forks.
    async fn share_memory(&self, id: WorkspaceId) -> Result<ForksLock, EngineError> {
        let taken = ForksLock::share(&self.layout.locks(), *id.as_uuid()).await;
        taken.map_err(|source| self.lock_failed(source))
    }

    /// Gives each fork its disk, while the parent's lock keeps what they begin from, and lets it start.
    async fn reserve_forks(&self, boots: &mut Boots, forks: Vec<Reserved>) {
        let origin = boots.plan.origin;
        for (number, fork) in (1..).zip(forks) {
            let name = fork.record.name.to_string();
            match self.give_disk(fork, origin).await {
                Ok(fork) => boots.start(number, fork),
                Err(error) => boots.failed(name, &error),
            }
        }
    }

    /// Removes forks that have nothing but a record yet. Returns why.
    async fn give_up_all(&self, forks: Vec<Reserved>, mut error: EngineError) -> EngineError {
        for fork in forks {
            error = self.give_up(fork, error).await;
        }
        error
    }

    /// The snapshot that forks begin from: the one that was named, or a new hidden one, with memory if the workspace
    /// runs.
    async fn fork_point(
        &self,
        parent: &WorkspaceRecord,
        snapshot: Option<SnapshotRecord>,
        spec: &ForkSpec,
    ) -> Result<ForkPoint, EngineError> {
        if let Some(snapshot) = snapshot {
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

impl ForkPoint {
    /// What a fork's disk begins with.
    fn origin(&self, parent: &WorkspaceRecord) -> DiskOrigin {
        DiskOrigin::Snapshot { disk: parent.disk(), snapshot: self.snapshot.id }
    }
}

/// What is known of forks before there is anything that they can begin with: that is put in its place then.
fn fork_plan(parent: &WorkspaceRecord, spec: &ForkSpec, claimant: Claimant, origin: ForkOrigin) -> Plan {
    Plan {
        naming: match (&spec.name, &spec.prefix) {
            (Some(name), _) => Naming::Exactly(name.clone()),
            (None, prefix) => Naming::Numbered(prefix.clone().unwrap_or_else(|| parent.name.clone())),
        },
        image: parent.image.clone(),
        base: parent.base,
        origin: DiskOrigin::Base(parent.base),
        begin: Begin::Boot,
        resources: parent.resources,
        policy: parent.policy.clone(),
        // A forward leads to one machine; forks get none.
        forwards: std::collections::BTreeMap::new(),
        throwaway: false,
        claimant,
        forked_from: Some(origin),
        pooled: false,
    }
}

fn worker(record: &WorkspaceRecord) -> ForkWorker {
    ForkWorker { workspace_id: record.id, name: record.name.to_string(), state: record.state }
}
