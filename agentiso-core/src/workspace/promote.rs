//! A fork takes the place of the workspace it was forked from.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::engine::Engine;
use super::info::{ForkFailure, ForkWorker, PortForward, WorkspaceState};
use super::lock::WorkspaceLock;
use crate::channel::client::Configure;
use crate::error::EngineError;
use crate::network::NetworkError;
use crate::store::{Promotion, WorkspaceRecord};
use crate::types::{SessionId, WorkspaceId, WorkspaceName, guest_hostname};

/// How often the locks are taken anew because another fork was made meanwhile.
const LOCK_TRIES: u32 = 8;

/// How long a promotion waits for its machine's network, and for its guest.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);

/// The same where somebody opens the state folder after a promotion that was cut off.
const OPENER_LIMIT: Duration = Duration::from_secs(1);

/// How to promote a fork.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromoteSpec {
    /// Destroy the old parent and the other forks of it, instead of keeping the parent stopped under another name.
    pub drop_others: bool,
}

/// What a promotion did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromoteReport {
    /// The workspace that was promoted, with its new name.
    pub promoted: ForkWorker,
    /// What it was called before.
    pub old_name: String,
    /// The old parent, stopped, with its new name; none if it was to be destroyed.
    pub parent: Option<ForkWorker>,
    /// Names of those that were destroyed, the old parent included, which had given its name away by then.
    pub dropped: Vec<String>,
    /// Those that were to be destroyed and are not yet; the next command tries again.
    pub failures: Vec<ForkFailure>,
    /// The forwards it has now.
    pub port_forwards: Vec<PortForward>,
    /// What else could not be done, as sentences: a forward that is not in force, a host name that is still the old one.
    /// The promotion holds all the same.
    pub warnings: Vec<String>,
}

/// All workspaces that a promotion changes, locked.
struct Family {
    child: WorkspaceRecord,
    parent: WorkspaceRecord,
    /// Forks to be destroyed.
    others: Vec<WorkspaceRecord>,
    locks: Vec<(WorkspaceId, WorkspaceLock)>,
}

impl Family {
    fn ids(&self) -> BTreeSet<WorkspaceId> {
        self.others.iter().map(|other| other.id).chain([self.child.id, self.parent.id]).collect()
    }

    /// Refuses a session that does not own all who are concerned, without telling it of those that it may not see.
    fn check_owner(&self, session: Option<&SessionId>) -> Result<(), EngineError> {
        let Some(session) = session else { return Ok(()) };
        if !self.child.owner.is_session(session) {
            return Err(EngineError::NoSuchWorkspace { given: self.child.name.to_string() });
        }
        if [&self.parent].into_iter().chain(&self.others).all(|member| member.owner.is_session(session)) {
            return Ok(());
        }
        Err(EngineError::Parameters {
            reason: format!(
                "the workspace that {} was forked from, or another fork that would be destroyed, does not belong to \
                 this session",
                self.child.name
            ),
            remedy: "use the fork under its own name".to_owned(),
        })
    }

    fn take_lock(&mut self, id: WorkspaceId) -> Option<WorkspaceLock> {
        let at = self.locks.iter().position(|(locked, _)| *locked == id)?;
        Some(self.locks.swap_remove(at).1)
    }
}

impl Engine {
    pub(super) async fn promote(
        self: &Arc<Self>,
        id: WorkspaceId,
        spec: PromoteSpec,
        session: Option<SessionId>,
    ) -> Result<PromoteReport, EngineError> {
        let engine = Arc::clone(self);
        self.finish(async move {
            let family = engine.lock_family(id, spec).await?;
            family.check_owner(session.as_ref())?;
            engine.promote_locked(family, spec).await
        })
        .await
    }

    /// Reads who is concerned.
    async fn family(&self, id: WorkspaceId, spec: PromoteSpec) -> Result<Family, EngineError> {
        let child = self.record(id).await?;
        let Some(origin) = &child.forked_from else {
            return Err(EngineError::Parameters {
                reason: format!("workspace {} is no fork", child.name),
                remedy: "only a fork can take the place of what it was forked from; `agentiso tree` shows the forks"
                    .to_owned(),
            });
        };
        let parent = origin.workspace_id;
        let Some(parent) = self.records(move |store| store.get(parent)).await? else {
            return Err(EngineError::Parameters {
                reason: format!("{}, which workspace {} was forked from, is gone", origin.name, child.name),
                remedy: "there is no name to be taken over: use the fork under its own".to_owned(),
            });
        };
        for record in [&child, &parent] {
            if matches!(record.state, WorkspaceState::Creating | WorkspaceState::Destroying) {
                return Err(EngineError::WrongState {
                    workspace: record.name.to_string(),
                    state: record.state,
                    operation: "part of a promotion",
                    remedy: "`agentiso ls` shows what is there".to_owned(),
                });
            }
        }
        let mut others = Vec::new();
        if spec.drop_others {
            for row in self.records(|store| store.all()).await? {
                match row {
                    Ok(other) if other.id != id && is_fork_of(&other, parent.id) => others.push(other),
                    _ => {}
                }
            }
        }
        Ok(Family { child, parent, others, locks: Vec::new() })
    }

    /// Takes the locks of all who are concerned, in one order for everybody, so that no two promotions wait for each
    /// other.
    async fn lock_family(&self, id: WorkspaceId, spec: PromoteSpec) -> Result<Family, EngineError> {
        for _ in 0..LOCK_TRIES {
            let wanted = self.family(id, spec).await?.ids();
            let mut locks = Vec::new();
            for member in &wanted {
                match self.lock_record(*member).await {
                    Ok((lock, _)) => locks.push((*member, lock)),
                    // It went away: look again who is left.
                    Err(EngineError::NoSuchWorkspace { .. }) => break,
                    Err(error) => return Err(error),
                }
            }
            if locks.len() < wanted.len() {
                continue;
            }
            let family = self.family(id, spec).await?;
            // The parent's lock keeps further forks from being made.
            if family.ids() == wanted {
                return Ok(Family { locks, ..family });
            }
        }
        let workspace = self.record(id).await?.name.to_string();
        Err(EngineError::Busy { workspace, waited: self.config.lock_timeout })
    }

    /// The name is the parent's before the one transaction, and the child's after it. What comes before leaves a
    /// stopped parent, what comes after is done by the next opener if it is not done here.
    async fn promote_locked(
        &self,
        mut family: Family,
        spec: PromoteSpec,
    ) -> Result<PromoteReport, EngineError> {
        let (child, parent) = (family.child.id, family.parent.id);
        self.check_forwards(&family).await?;
        // Its forwards end with its machine, so that the child's can begin.
        if family.parent.runtime.is_some() || family.parent.state != WorkspaceState::Stopped {
            self.shut_down(&mut family.parent).await?;
        }
        let dropped: Vec<WorkspaceId> = if spec.drop_others {
            family.others.iter().map(|other| other.id).chain([parent]).collect()
        } else {
            Vec::new()
        };
        let promotion = Promotion { child, parent, dropped };
        self.records(move |store| store.promote(&promotion)).await?;

        let promoted = self.record(child).await?;
        let warnings = self.settle_promotion(&promoted, SETTLE_LIMIT).await?;
        let mut report = PromoteReport {
            promoted: worker(self, &promoted),
            old_name: family.child.name.to_string(),
            parent: None,
            dropped: Vec::new(),
            failures: Vec::new(),
            port_forwards: self.port_forwards(child).await?,
            warnings,
        };
        if !spec.drop_others {
            report.parent = Some(worker(self, &self.record(parent).await?));
            return Ok(report);
        }
        for other in std::mem::take(&mut family.others).into_iter().map(|other| other.id).chain([parent]) {
            self.drop_one(other, &mut family, &mut report).await;
        }
        Ok(report)
    }

    /// Destroys one of those that the records have given up already.
    async fn drop_one(&self, id: WorkspaceId, family: &mut Family, report: &mut PromoteReport) {
        let lock = family.take_lock(id);
        let mut name = id.to_string();
        let dropped = async {
            let mut record = self.record(id).await?;
            name = record.name.to_string();
            self.kill_strays(&[id]).await?;
            self.erase(&mut record).await
        };
        match dropped.await {
            Ok(()) => {
                report.dropped.push(name);
                if let Some(lock) = lock {
                    lock.remove();
                }
            }
            Err(error) => report.failures.push(ForkFailure { name, error: error.report() }),
        }
    }

    /// Refuses a child that forwards a port which the parent forwards too: one of the two would have to go.
    async fn check_forwards(&self, family: &Family) -> Result<(), EngineError> {
        let (child, parent) = (family.child.id, family.parent.id);
        let own = self.records(move |store| store.forwards(child)).await?;
        let inherited = self.records(move |store| store.forwards(parent)).await?;
        match own.keys().find(|guest| inherited.contains_key(guest)) {
            None => Ok(()),
            Some(guest) => Err(EngineError::Parameters {
                reason: format!(
                    "both {} and {} have a forward to their port {guest}",
                    family.child.name, family.parent.name
                ),
                remedy: format!("remove one of them, as in `agentiso port rm {} {guest}`", family.child.name),
            }),
        }
    }

    /// Puts in force in a running machine what the records say of it since its promotion, forwards and host name each
    /// within `limit`. What could not be done comes back as sentences; forwards are tried again by the next opener. The
    /// caller holds its lock.
    async fn settle_promotion(
        &self,
        record: &WorkspaceRecord,
        limit: Duration,
    ) -> Result<Vec<String>, EngineError> {
        let silent = || format!("its machine did not answer within {limit:?}");
        let forwards = match timeout(limit, self.settle_forwards(record)).await {
            Ok(settled) => settled.map_err(|error| error.report()),
            Err(_elapsed) => Err(silent()),
        };
        let host_name = match timeout(limit, self.tell_host_name(record)).await {
            Ok(told) => told.map_err(|error| error.report()),
            Err(_elapsed) => Err(silent()),
        };
        // A paused guest cannot be told: an opener does it once it runs.
        if forwards.is_ok() && !self.is_paused(record) {
            let id = record.id;
            self.records(move |store| store.promotion_settled(id)).await?;
        }
        let forwards = forwards.err().map(|why| format!("a forward is not in force: {why}"));
        let host_name =
            host_name.err().map(|why| format!("the guest's host name is still the old one: {why}"));
        Ok(forwards.into_iter().chain(host_name).collect())
    }

    /// Finishes promotions that were cut off after the records had changed, unless somebody is busy with them. Guests
    /// and their network processes get little time: nobody who opens the state folder shall wait for a broken one.
    pub(super) async fn settle_promotions(&self) -> Result<(), EngineError> {
        for id in self.records(|store| store.unsettled_promotions()).await? {
            if let Err(error) = self.finish_promotion(id).await {
                tracing::warn!(%id, error = %error.report(), "could not finish a promotion");
            }
        }
        Ok(())
    }

    async fn finish_promotion(&self, id: WorkspaceId) -> Result<(), EngineError> {
        let Some(lock) = self.try_lock(*id.as_uuid())? else { return Ok(()) };
        let Some(record) = self.records(move |store| store.get(id)).await? else {
            lock.remove();
            return self.records(move |store| store.promotion_settled(id)).await;
        };
        let warnings = self.settle_promotion(&record, OPENER_LIMIT).await?;
        if !warnings.is_empty() {
            tracing::warn!(workspace = %record.name, "after its promotion: {}", warnings.join("; "));
        }
        Ok(())
    }

    /// Puts those recorded forwards in force that are not, and ends none. A workspace that does not run gets its
    /// forwards when it starts. The caller holds its lock.
    async fn settle_forwards(&self, record: &WorkspaceRecord) -> Result<(), EngineError> {
        let Some(runtime) = self.living(record) else { return Ok(()) };
        let id = record.id;
        let recorded = self.records(move |store| store.forwards(id)).await?;
        if recorded.is_empty() {
            return Ok(());
        }
        let network = &self.backends.network;
        let in_force = network.forwards(&runtime.network).await?;
        let mut result = Ok(());
        for (guest, host) in recorded.into_iter().filter(|(guest, _)| !in_force.contains_key(guest)) {
            match network.add_forward(&runtime.network, guest, Some(host)).await {
                Ok(_) | Err(NetworkError::AlreadyForwarded { .. }) => {}
                // The others get their chance all the same.
                Err(error) => result = Err(error.into()),
            }
        }
        result
    }

    fn is_paused(&self, record: &WorkspaceRecord) -> bool {
        record.state == WorkspaceState::Paused && self.living(record).is_some()
    }

    /// Gives a running guest the host name that goes with its workspace's name. One that is stopped gets it when it
    /// starts, one that is paused from the first opener after its resume.
    async fn tell_host_name(&self, record: &WorkspaceRecord) -> Result<(), EngineError> {
        let Some(runtime) = self.living(record).filter(|_| !self.is_paused(record)) else { return Ok(()) };
        let configuration =
            Configure { hostname: Some(guest_hostname(&record.name)), ..Configure::default() };
        self.client_of(runtime)
            .configure(configuration)
            .await
            .map(drop)
            .map_err(|source| EngineError::operation("configure", record.name.as_str(), source))
    }
}

fn is_fork_of(record: &WorkspaceRecord, parent: WorkspaceId) -> bool {
    record.forked_from.as_ref().is_some_and(|origin| origin.workspace_id == parent)
}

fn worker(engine: &Engine, record: &WorkspaceRecord) -> ForkWorker {
    let (state, _) = engine.present_state(record);
    ForkWorker { workspace_id: record.id, name: record.name.to_string(), state }
}

/// Names that an old parent can get, in the order in which they are tried: NAME-old, NAME-old-2, ... A name that would
/// be too long loses its end.
pub(crate) fn old_names(name: &WorkspaceName) -> impl Iterator<Item = WorkspaceName> {
    (1_u32..).filter_map(move |number| {
        let suffix = if number == 1 { "-old".to_owned() } else { format!("-old-{number}") };
        let room = crate::types::MAX_NAME_BYTES.saturating_sub(suffix.len());
        // Names are ASCII: every byte is a character.
        let kept = name.as_str().get(..room).unwrap_or(name.as_str());
        WorkspaceName::new(format!("{kept}{suffix}")).ok()
    })
}
