//! What every operation needs: records, locks, backends, and work that ends properly whoever stops waiting for it.

use std::{
    future::Future,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, Weak},
    time::SystemTime,
};

use tokio::sync::{Semaphore, watch};

use super::info::{Isolation, WorkspaceState};
use super::lock::{ForksLock, WorkspaceLock};
use super::pool;
use crate::backends::Backends;
use crate::channel::client::GuestClient;
use crate::config::{Config, Layout};
use crate::error::EngineError;
use crate::image::Images;
use crate::native::{self, BackendChoice};
use crate::store::{Store, WorkspaceRecord};
use crate::types::{SessionId, WorkspaceId, WorkspaceName};

/// A future that an operation hands to [`Engine::locked`].
pub(super) type Work<'a, T> = Pin<Box<dyn Future<Output = Result<T, EngineError>> + Send + 'a>>;

/// More than there can be operations under way at once.
const MAX_TASKS: u32 = 1 << 20;

/// The state folder and what it stands on.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) config: Config,
    pub(crate) layout: Layout,
    pub(crate) store: Arc<Store>,
    pub(crate) backends: Backends,
    /// Why it is these backends.
    choices: Vec<BackendChoice>,
    /// What is required and does not hold.
    unmet: Vec<String>,
    pub(crate) images: Images,
    /// One permit for each operation under way; all of them free means that nothing is.
    tasks: Arc<Semaphore>,
    /// Machines of this process that wait to be asked for.
    pub(super) pools: Mutex<Vec<Weak<pool::Shared>>>,
}

impl Engine {
    pub(super) fn new(
        config: Config,
        store: Arc<Store>,
        backends: Backends,
        choices: Vec<BackendChoice>,
    ) -> Self {
        let layout = config.layout();
        let tasks = Arc::new(Semaphore::new(MAX_TASKS as usize));
        let images = Images::new(
            layout.root(),
            Arc::clone(&backends.hypervisor),
            Arc::clone(&backends.storage),
            Arc::clone(&backends.channel),
        );
        let limited = backends.hypervisor.capabilities().limited;
        let by_root = rustix::process::geteuid().is_root();
        let unmet = native::unmet(&config, &backends.isolation(), limited, by_root);
        Self { config, layout, store, backends, choices, unmet, images, tasks, pools: Mutex::default() }
    }

    /// What stands between machines that are started now and this host.
    pub(super) fn isolation(&self) -> Isolation {
        Isolation { backends: self.choices.clone(), ..self.backends.isolation() }
    }

    /// Refuses to start machines where something does not hold that the configuration requires.
    pub(super) fn check_requirements(&self) -> Result<(), EngineError> {
        match self.unmet.as_slice() {
            [] => Ok(()),
            unmet => Err(EngineError::Requirements { unmet: unmet.to_vec() }),
        }
    }

    /// Runs a query or change of the records away from the async threads: SQLite waits for other processes.
    pub(super) async fn records<T, E>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, E> + Send + 'static,
    ) -> Result<T, EngineError>
    where
        T: Send + 'static,
        E: Into<EngineError> + Send + 'static,
    {
        let store = Arc::clone(&self.store);
        let worked = tokio::task::spawn_blocking(move || work(&store)).await;
        worked.map_err(EngineError::Panicked)?.map_err(Into::into)
    }

    /// Writes the record of a workspace whose lock the caller holds.
    pub(super) async fn save(&self, record: &WorkspaceRecord) -> Result<(), EngineError> {
        let record = record.clone();
        self.records(move |store| store.update(&record)).await
    }

    /// Runs `work` to its end even if the caller stops waiting: what it has begun is then finished, not torn.
    pub(super) async fn finish<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl Future<Output = Result<T, EngineError>> + Send + 'static,
    ) -> Result<T, EngineError> {
        // Never closed, so a permit always comes.
        let permit = Arc::clone(&self.tasks).acquire_owned().await.ok();
        let task = async move {
            let _permit = permit;
            work.await
        };
        tokio::spawn(task).await.map_err(EngineError::Panicked)?
    }

    /// Waits until no operation is under way.
    pub(super) async fn idle(&self) {
        drop(self.tasks.acquire_many(MAX_TASKS).await);
        self.images.idle().await;
    }

    /// Takes a workspace's lock, reads its record and runs `work` on it, to its end.
    ///
    /// `operation` is what is done to the workspace, for the error of one that is busy.
    pub(super) async fn locked<T, F>(self: &Arc<Self>, id: WorkspaceId, work: F) -> Result<T, EngineError>
    where
        T: Send + 'static,
        F: for<'a> FnOnce(&'a Arc<Engine>, &'a mut WorkspaceRecord) -> Work<'a, T> + Send + 'static,
    {
        let engine = Arc::clone(self);
        self.finish(async move {
            let (_lock, mut record) = engine.lock_record(id).await?;
            work(&engine, &mut record).await
        })
        .await
    }

    /// Takes a workspace's lock and reads its record.
    pub(super) async fn lock_record(
        &self,
        id: WorkspaceId,
    ) -> Result<(WorkspaceLock, WorkspaceRecord), EngineError> {
        let lock = self.lock(id).await?;
        match self.record(id).await {
            Ok(record) => Ok((lock, record)),
            Err(error) => {
                // The workspace was destroyed while we waited: taking its lock has made the file anew.
                if matches!(error, EngineError::NoSuchWorkspace { .. }) {
                    lock.remove();
                }
                Err(error)
            }
        }
    }

    /// Takes a workspace's lock.
    pub(super) async fn lock(&self, id: WorkspaceId) -> Result<WorkspaceLock, EngineError> {
        let limit = self.config.lock_timeout;
        match WorkspaceLock::take(&self.layout.locks(), *id.as_uuid(), limit).await {
            Ok(Some(lock)) => Ok(lock),
            Ok(None) => Err(self.busy(id).await),
            Err(source) => Err(self.lock_failed(source)),
        }
    }

    /// Who waited for a workspace's lock in vain.
    async fn busy(&self, id: WorkspaceId) -> EngineError {
        let workspace =
            self.record(id).await.map_or_else(|_| id.to_string(), |record| record.name.to_string());
        EngineError::Busy { workspace, waited: self.config.lock_timeout }
    }

    pub(super) fn lock_failed(&self, source: std::io::Error) -> EngineError {
        EngineError::StateDir { path: self.layout.locks().display().to_string(), source }
    }

    /// Waits until the forks of a workspace that are on their way have begun: they read its memory. The caller holds
    /// its lock, so that no more of them come.
    pub(super) async fn wait_for_forks(&self, id: WorkspaceId) -> Result<(), EngineError> {
        match ForksLock::wait(&self.layout.locks(), *id.as_uuid(), self.config.lock_timeout).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.busy(id).await),
            Err(source) => Err(self.lock_failed(source)),
        }
    }

    /// The record of a workspace.
    pub(super) async fn record(&self, id: WorkspaceId) -> Result<WorkspaceRecord, EngineError> {
        self.records(move |store| store.get(id))
            .await?
            .ok_or_else(|| EngineError::NoSuchWorkspace { given: id.to_string() })
    }

    /// Finds a workspace by its id, the beginning of its id (8 digits or more), or its name.
    pub(super) async fn find(&self, given: &str) -> Result<WorkspaceRecord, EngineError> {
        let none = || EngineError::NoSuchWorkspace { given: shorten(given) };
        // A name never loses against the beginning of an id: names are what people chose.
        if let Ok(name) = WorkspaceName::new(given)
            && let Some(record) = self.records(move |store| store.by_name(&name)).await?
            && !record.pooled
        {
            return Ok(record);
        }
        let Some(prefix) = id_prefix(given) else { return Err(none()) };
        let mut found = self.records(move |store| store.by_id_prefix(&prefix)).await?;
        found.retain(|record| !record.pooled);
        match (found.pop(), found.is_empty()) {
            (None, _) => Err(none()),
            (Some(record), true) => Ok(record),
            (Some(_), false) => Err(EngineError::AmbiguousId { given: shorten(given) }),
        }
    }

    /// The same, among the workspaces that a session may see: one that it may not see is as if it were not there.
    pub(super) async fn find_for(
        &self,
        session: &SessionId,
        given: &str,
    ) -> Result<WorkspaceRecord, EngineError> {
        let name = WorkspaceName::new(given).ok();
        let prefix = id_prefix(given);
        let wanted = (session.clone(), name.clone());
        let mut found = self
            .records(move |store| store.visible(&wanted.0, wanted.1.as_ref(), prefix.as_deref()))
            .await?
            .into_iter();
        match (found.next(), found.next()) {
            (None, _) => Err(EngineError::NoSuchWorkspace { given: shorten(given) }),
            // One of that name comes first.
            (Some(record), None) => Ok(record),
            (Some(record), Some(_)) if Some(&record.name) == name.as_ref() => Ok(record),
            (Some(_), Some(_)) => Err(EngineError::AmbiguousId { given: shorten(given) }),
        }
    }

    /// Where a machine's sockets and logs are.
    pub(super) fn run_dir(&self, id: WorkspaceId) -> PathBuf {
        self.layout.run().join(id.to_string())
    }

    /// A client of a running machine's agent.
    pub(super) fn client(&self, record: &WorkspaceRecord) -> Result<GuestClient, EngineError> {
        match (self.living(record), record.state) {
            (Some(_), WorkspaceState::Paused) => Err(EngineError::WrongState {
                workspace: record.name.to_string(),
                state: WorkspaceState::Paused,
                operation: "used",
                remedy: format!("let it run first: `agentiso resume {}`", record.name),
            }),
            (Some(runtime), _) => Ok(self.client_of(runtime)),
            (None, _) => Err(not_running(record, "used")),
        }
    }
}

/// The error of something that wants a running machine.
pub(super) fn not_running(record: &WorkspaceRecord, operation: &'static str) -> EngineError {
    EngineError::WrongState {
        workspace: record.name.to_string(),
        state: match record.state {
            WorkspaceState::Running | WorkspaceState::Paused => WorkspaceState::Stopped,
            other => other,
        },
        operation,
        remedy: format!("start it first: `agentiso start {}`", record.name),
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What people gave, short enough to be repeated to them.
fn shorten(given: &str) -> String {
    given.chars().take(crate::types::MAX_NAME_BYTES + 1).collect()
}

/// The beginning of an id, as the records have it, if that is what was given.
fn id_prefix(given: &str) -> Option<String> {
    let is_one = given.len() >= 8 && given.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    is_one.then(|| given.to_ascii_lowercase())
}

/// Held by whoever waits for a piece of work; dropping it tells the work that nobody waits any more.
#[derive(Debug)]
pub(super) struct Caller(watch::Sender<()>);

/// The work's end of a [`Caller`].
#[derive(Clone, Debug)]
pub(super) struct Callers(watch::Receiver<()>);

/// A caller and the end that notices its going.
pub(super) fn caller() -> (Caller, Callers) {
    let (sender, receiver) = watch::channel(());
    (Caller(sender), Callers(receiver))
}

impl Caller {
    /// Keeps the caller until here: `result` is what it waited for.
    pub(super) fn received<T>(self, result: T) -> T {
        drop(self.0);
        result
    }
}

impl Callers {
    /// Whether the caller has gone.
    pub(super) fn have_gone(&self) -> bool {
        self.0.has_changed().is_err()
    }

    /// Returns when the caller has gone.
    pub(super) async fn gone(&mut self) {
        while self.0.changed().await.is_ok() {}
    }
}
