//! Machines that wait for somebody to ask for a workspace like them.
//!
//! A machine in a pool began with the template of its shape, has been configured once and has run one command, so that the
//! emulator has translated the code that answers, and that starts programs; then it was paused. Taking it means letting it
//! run, under a name, an owner and a policy of its own. It belongs to the process that holds the pool, which keeps its
//! lock: should that process die, the next opener of the state folder destroys it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::create::{Naming, Plan, Reserved};
use super::engine::{Engine, caller, now};
use super::info::WorkspaceState;
use super::spec::WorkspaceSpec;
use super::warm_up::warm_up;
use crate::channel::client::Configure;
use crate::error::EngineError;
use crate::image::Image;
use crate::network::NetworkPolicy;
use crate::session::Claimant;
use crate::store::{StoreError, WorkspaceRecord};
use crate::types::{BaseId, ImageName, Resources, guest_hostname};

/// Most machines of one pool.
pub const MAX_POOL: u32 = 20;

/// How long after a failure the next machine is tried.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// How long after one was taken the next machine is begun: whoever took it has the CPUs for itself until then.
const REFILL_AFTER: Duration = Duration::from_millis(500);

/// What a pool holds.
#[derive(Clone, Debug)]
pub struct PoolSpec {
    /// The base image.
    pub image: String,
    /// CPUs, memory and disk: only workspaces of exactly this size are taken from it.
    pub resources: Resources,
    /// How many machines wait, 1-20.
    pub size: u32,
}

/// Machines that wait. They are used by every [`Host::create`](crate::Host::create) of this process that asks for
/// their image and size, and replaced one by one.
///
/// Dropping it, or better [`Pool::close`], destroys the machines that wait.
#[derive(Debug)]
pub struct Pool {
    engine: Arc<Engine>,
    shared: Arc<Shared>,
}

/// What creations and the task that fills the pool share.
#[derive(Debug)]
pub(super) struct Shared {
    image: ImageName,
    resources: Resources,
    size: usize,
    state: Mutex<State>,
    /// Something was taken, or the pool is to end.
    changed: Notify,
    /// A machine became ready, could not be made, or the pool has ended.
    progress: Notify,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Waiting>,
    closing: bool,
    ended: bool,
    failed: Option<String>,
}

/// A machine that waits.
#[derive(Debug)]
struct Waiting {
    base: BaseId,
    reserved: Reserved,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// Machines that wait now.
    pub fn ready(&self) -> usize {
        self.shared.state().ready.len()
    }

    /// Waits until all machines wait.
    ///
    /// # Errors
    /// One could not be made; the pool goes on trying.
    pub async fn filled(&self) -> Result<(), EngineError> {
        loop {
            let progress = self.shared.progress.notified();
            tokio::pin!(progress);
            // From here on no change is missed.
            progress.as_mut().enable();
            {
                let mut state = self.shared.state();
                if let Some(reason) = state.failed.take() {
                    let remedy = "`agentiso doctor` checks this host".to_owned();
                    return Err(EngineError::Parameters { reason, remedy });
                }
                if state.ready.len() >= self.shared.size || state.ended {
                    return Ok(());
                }
            }
            progress.await;
        }
    }

    /// Destroys the machines that wait.
    pub async fn close(self) {
        self.shared.state().closing = true;
        self.shared.changed.notify_one();
        loop {
            let progress = self.shared.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            if self.shared.state().ended {
                break;
            }
            progress.await;
        }
        self.engine.forget_pool(&self.shared);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state().closing = true;
        self.shared.changed.notify_one();
    }
}

impl Engine {
    /// Begins to keep machines ready.
    pub(super) async fn pool(self: &Arc<Self>, spec: PoolSpec) -> Result<Pool, EngineError> {
        if !(1..=MAX_POOL).contains(&spec.size) {
            return Err(EngineError::OutOfBounds {
                what: "the size of a pool",
                given: spec.size.into(),
                min: 1,
                max: MAX_POOL.into(),
            });
        }
        let image = self.images.find(&ImageName::new(spec.image)?).await?;
        super::create::check_disk(spec.resources.disk_gb, image.bytes, || format!("image {}", image.name))?;
        let shared = Arc::new(Shared {
            image: image.name,
            resources: spec.resources,
            size: usize::try_from(spec.size).unwrap_or(1),
            state: Mutex::default(),
            changed: Notify::new(),
            progress: Notify::new(),
        });
        self.pools().push(Arc::downgrade(&shared));
        tokio::spawn(fill(Arc::clone(self), Arc::clone(&shared)));
        Ok(Pool { engine: Arc::clone(self), shared })
    }

    fn pools(&self) -> MutexGuard<'_, Vec<Weak<Shared>>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget_pool(&self, gone: &Arc<Shared>) {
        self.pools().retain(|pool| pool.upgrade().is_some_and(|pool| !Arc::ptr_eq(&pool, gone)));
    }

    /// A machine of that image and size that waits, if there is one.
    fn waiting(&self, image: &Image, resources: Resources) -> Option<Reserved> {
        let pools: Vec<_> = self.pools().iter().filter_map(Weak::upgrade).collect();
        for pool in pools.iter().filter(|pool| pool.image == image.name && pool.resources == resources) {
            let taken = {
                let mut state = pool.state();
                let usable = state.ready.iter().position(|waiting| {
                    // An image that was made anew since has another base.
                    waiting.base == image.base && self.living(&waiting.reserved.record).is_some()
                });
                usable.and_then(|place| state.ready.remove(place))
            };
            if let Some(waiting) = taken {
                pool.changed.notify_one();
                return Some(waiting.reserved);
            }
        }
        None
    }

    /// Makes a workspace of a machine that waits. `None` if there is none, or none that works.
    pub(super) async fn create_from_pool(
        &self,
        image: &Image,
        spec: &WorkspaceSpec,
        claimant: &Claimant,
    ) -> Result<Option<WorkspaceRecord>, EngineError> {
        let begun = Instant::now();
        let Some(Reserved { mut record, lock }) = self.waiting(image, spec.resources) else {
            return Ok(None);
        };
        if !spec.throwaway {
            record.throwaway_of = None;
        }
        record.policy = spec.policy.clone();
        record.created_at = now();
        record.pooled = false;
        record.owner = claimant.owner();
        if let Some(name) = &spec.name {
            record.name = name.clone();
        }
        let (row, claimant) = (record.clone(), claimant.clone());
        let taken = match self.records(move |store| store.take_from_pool(&row, &claimant)).await {
            Ok(()) => self.introduce(&mut record, spec, begun).await,
            Err(error) => Err(error),
        };
        let Err(error) = taken else { return Ok(Some(record)) };
        self.discard(Reserved { record, lock }).await;
        match error {
            // What was asked for cannot be had, from a pool or not.
            EngineError::NameTaken { .. }
            | EngineError::Session(_)
            | EngineError::Network(_)
            | EngineError::Store(StoreError::PortTaken { .. }) => Err(error),
            error => {
                tracing::warn!(error = %error.report(), "a machine of a pool did not work; making one");
                Ok(None)
            }
        }
    }

    /// Lets a machine that waited run as the workspace it has become.
    async fn introduce(
        &self,
        record: &mut WorkspaceRecord,
        spec: &WorkspaceSpec,
        begun: Instant,
    ) -> Result<(), EngineError> {
        let Some(runtime) = record.runtime.clone() else {
            return Err(super::engine::not_running(record, "used"));
        };
        let configure = Configure {
            hostname: Some(guest_hostname(&record.name)),
            entropy: Some(self.entropy(record)?),
            set_clock: true,
            ..Configure::default()
        };
        let client = self.patient_client_of(&runtime);
        // The hypervisor confirms when the vCPUs leave it a turn; the agent is there before.
        let (resumed, configured) =
            tokio::join!(self.backends.hypervisor.resume(&runtime.machine), client.configure(configure));
        resumed?;
        configured.map_err(|source| EngineError::operation("configure", record.name.as_str(), source))?;
        if record.policy != NetworkPolicy::default() {
            self.backends.network.update_policy(&runtime.network, &record.policy).await?;
        }
        record.state = WorkspaceState::Running;
        record.boot_time_ms = u64::try_from(begun.elapsed().as_millis()).ok();
        self.save(record).await?;
        for (guest, host) in &spec.forwards {
            self.forward(record, *guest, *host).await?;
        }
        Ok(())
    }

    /// Makes a machine that waits.
    async fn make_waiting(self: &Arc<Self>, shared: &Shared) -> Result<Waiting, EngineError> {
        let image = self.images.find(&shared.image).await?;
        let (caller, callers) = caller();
        let (origin, begin) = self.beginning(&image, shared.resources, callers.clone()).await?;
        let plan = Plan {
            naming: Naming::Any,
            image: image.name.clone(),
            base: image.base,
            origin,
            begin,
            resources: shared.resources,
            policy: NetworkPolicy::default(),
            forwards: std::collections::BTreeMap::new(),
            throwaway: true,
            claimant: Claimant::Operator,
            forked_from: None,
            pooled: true,
        };
        let mut reserved = self.reserve(&plan).await?;
        let made = async {
            self.boot(&mut reserved.record, begin).await?;
            let record = &mut reserved.record;
            let Some(runtime) = record.runtime.clone() else {
                return Err(super::engine::not_running(record, "kept ready"));
            };
            // With several vCPUs its start has run it already, perhaps in vain; it also shows that the agent answers.
            warm_up(&self.client_of(&runtime))
                .await
                .map_err(|source| EngineError::operation("run a command in", record.name.as_str(), source))?;
            self.backends.hypervisor.pause(&runtime.machine).await?;
            record.state = WorkspaceState::Paused;
            self.save(record).await
        }
        .await;
        drop(caller);
        match made {
            Ok(()) => Ok(Waiting { base: image.base, reserved }),
            Err(error) => {
                self.discard(reserved).await;
                Err(error)
            }
        }
    }

    async fn discard(&self, mut reserved: Reserved) {
        let discarded = match self.kill_strays(&[reserved.record.id]).await {
            Ok(()) => self.erase(&mut reserved.record).await,
            // It writes to the disk.
            Err(lives) => Err(lives),
        };
        match discarded {
            Ok(()) => reserved.lock.remove(),
            Err(error) => {
                tracing::warn!(error = %error.report(), "could not remove a machine of a pool");
            }
        }
    }
}

/// Keeps a pool filled until it is closed, then empties it.
async fn fill(engine: Arc<Engine>, shared: Arc<Shared>) {
    let mut failed = false;
    while !shared.state().closing {
        let missing = shared.state().ready.len() < shared.size;
        if missing && !failed {
            let (maker, of) = (Arc::clone(&engine), Arc::clone(&shared));
            // To its end, even while this process is about to leave: what it began is then undone below.
            let made = engine.finish(async move { maker.make_waiting(&of).await }).await;
            match made {
                Ok(waiting) => shared.state().ready.push_back(waiting),
                Err(error) => {
                    tracing::warn!(error = %error.report(), "could not make a machine for a pool");
                    shared.state().failed = Some(error.report());
                    failed = true;
                }
            }
            shared.progress.notify_waiters();
            continue;
        }
        if failed {
            failed = tokio::time::timeout(RETRY_AFTER, shared.changed.notified()).await.is_ok() && failed;
        } else {
            shared.changed.notified().await;
            if !shared.state().closing {
                // Until the time is over, or the next one is wanted, or the pool is to end.
                let _ = tokio::time::timeout(REFILL_AFTER, shared.changed.notified()).await;
            }
        }
    }
    let left: Vec<_> = shared.state().ready.drain(..).collect();
    for waiting in left {
        let cleaner = Arc::clone(&engine);
        let discarded = engine
            .finish(async move {
                cleaner.discard(waiting.reserved).await;
                Ok(())
            })
            .await;
        if let Err(error) = discarded {
            tracing::warn!(error = %error.report(), "could not empty a pool");
        }
    }
    shared.state().ended = true;
    shared.progress.notify_waiters();
}
