use std::{sync::Arc, time::Duration};

use tokio::sync::OnceCell;
use uuid::Uuid;

use super::{
    AuthError, Claimant, Class, Clock, RateLimit, SessionQuota, SessionUsage, SystemClock, clock::millis,
};
use crate::store::{Ledger, Ownership, Store, StoreError};
use crate::types::{Owner, SessionId, WorkspaceId};

/// How long a session lives after its last call.
pub const SESSION_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a session must have made no call before a workspace can be taken from it.
pub const FORCED_ADOPTION_IDLE: Duration = Duration::from_secs(60);

/// Who the bucket of all sessions together belongs to; no session has that name.
const EVERYBODY: &str = "";

/// The books of sessions: who there is, what each owns and may own, how often each may call.
///
/// Every question and every change is one transaction. Over the records of a state folder all processes that use it
/// agree; by itself it keeps its books in memory. Cheap to clone, for the same books.
///
/// Each call of a session's counts as activity of it, whatever comes of it, except for [`AuthManager::get_usage`].
#[derive(Clone, Debug)]
pub struct AuthManager {
    books: Books,
    quota: SessionQuota,
    clock: Arc<dyn Clock>,
}

/// Where the books are.
#[derive(Clone, Debug)]
enum Books {
    /// In memory, made when they are first needed. Workspaces are known by what is said of them here.
    Memory(Arc<OnceCell<Arc<Store>>>),
    /// With the records of workspaces, which say what workspaces there are and of what size.
    Records(Arc<Store>),
}

impl AuthManager {
    /// Books of their own, in memory.
    pub fn new(quota: SessionQuota) -> Self {
        Self { books: Books::Memory(Arc::default()), quota, clock: Arc::new(SystemClock) }
    }

    /// The books that are kept with the records of a state folder.
    pub(crate) fn open(store: Arc<Store>, quota: SessionQuota) -> Self {
        Self { books: Books::Records(store), quota, clock: Arc::new(SystemClock) }
    }

    /// The same books, with another clock.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock, ..self }
    }

    /// What each session may have.
    pub fn quota(&self) -> SessionQuota {
        self.quota
    }

    /// Begins a session. One of that name that has not ended is the same session, with what it owns.
    ///
    /// # Errors
    /// [`AuthError::InvalidSession`], or the books cannot be written.
    pub async fn register_session(&self, name: String) -> Result<SessionId, AuthError> {
        let session = SessionId::new(name)?;
        let registered = session.clone();
        self.ask(None, move |ledger| Ok(ledger.register(&registered)?)).await?;
        Ok(session)
    }

    /// Gives a session a workspace that nobody owns, and that no session was given before. Owns it already: no effect.
    /// `memory_mb` and `disk_gb` count for a workspace that the records do not know.
    ///
    /// # Errors
    /// [`AuthError::UnknownSession`]; [`AuthError::NotOwner`]: somebody else owns it; [`AuthError::QuotaExceeded`];
    /// [`AuthError::UnknownWorkspace`]: these are the books of a state folder, and it is not there.
    pub async fn register_workspace(
        &self,
        session: &SessionId,
        workspace: Uuid,
        memory_mb: u64,
        disk_gb: u64,
    ) -> Result<(), AuthError> {
        let takeover = self.takeover(session, workspace, SessionUsage::of(1, memory_mb, disk_gb), false);
        self.ask(Some(session), move |ledger| takeover.perform(ledger)).await
    }

    /// Whether a session owns a workspace.
    ///
    /// # Errors
    /// [`AuthError::UnknownSession`], [`AuthError::NotOwner`].
    pub async fn check_ownership(&self, session: &SessionId, workspace: Uuid) -> Result<(), AuthError> {
        let (id, workspace) = (session.clone(), WorkspaceId::from(workspace));
        self.ask(Some(session), move |ledger| match ledger.ownership(workspace)? {
            Some(Ownership { owner, .. }) if owner.is_session(&id) => Ok(()),
            _ => Err(AuthError::NotOwner { session: id, workspace }),
        })
        .await
    }

    /// What a session owns, as a sum.
    ///
    /// # Errors
    /// [`AuthError::UnknownSession`].
    pub async fn get_usage(&self, session: &SessionId) -> Result<SessionUsage, AuthError> {
        let id = session.clone();
        self.ask(None, move |ledger| {
            ledger.idle(&id)?;
            ledger.usage(&id)
        })
        .await
    }

    /// Gives a session a workspace that nobody owns or, with `force`, takes it from a session that has made no call for
    /// [`FORCED_ADOPTION_IDLE`]. Owns it already: no effect. The quota is checked before anybody loses anything, and a
    /// refused adoption changes nothing. `memory_mb` and `disk_gb` count for a workspace that the records do not know.
    ///
    /// # Errors
    /// In this order: [`AuthError::UnknownSession`]; [`AuthError::UnknownWorkspace`]; [`AuthError::NotOwner`]: it is owned
    /// and `force` was not given; [`AuthError::QuotaExceeded`]; [`AuthError::OwnerActive`] and
    /// [`AuthError::OperatorOwned`].
    pub async fn adopt_workspace(
        &self,
        session: &SessionId,
        workspace: &Uuid,
        memory_mb: u64,
        disk_gb: u64,
        force: bool,
    ) -> Result<(), AuthError> {
        let takeover = self.takeover(session, *workspace, SessionUsage::of(1, memory_mb, disk_gb), force);
        self.ask(Some(session), move |ledger| takeover.perform(ledger)).await
    }

    /// Forgets a session's workspace that is gone. Not there, or not that session's: no effect. One that the records
    /// know is forgotten when they forget it, and not here.
    ///
    /// # Errors
    /// [`AuthError::UnknownSession`].
    pub async fn unregister_workspace(&self, session: &SessionId, workspace: Uuid) -> Result<(), AuthError> {
        let id = session.clone();
        self.ask(Some(session), move |ledger| ledger.forget(workspace.into(), &id)).await
    }

    /// Takes a token for a call of this kind, the session's and one that all sessions share. Comes first in every call.
    ///
    /// # Errors
    /// [`AuthError::UnknownSession`]; [`AuthError::RateLimited`], which says how long to wait, and no token was taken.
    pub async fn enter(&self, session: &SessionId, class: Class) -> Result<(), AuthError> {
        let id = session.clone();
        self.ask(Some(session), move |ledger| {
            let now = ledger.now();
            let take = |holder: &str, limit: RateLimit| {
                let full_at = ledger.bucket(holder, class.as_str())?;
                limit.take(full_at, now).map_err(|wait| AuthError::RateLimited {
                    class,
                    everybody: holder == EVERYBODY,
                    burst: limit.burst,
                    per_minute: limit.per_minute,
                    wait,
                })
            };
            let own = take(id.as_str(), class.limit())?;
            let shared = take(EVERYBODY, class.ceiling())?;
            ledger.set_bucket(id.as_str(), class.as_str(), own)?;
            ledger.set_bucket(EVERYBODY, class.as_str(), shared)
        })
        .await
    }

    /// Notes that a session is active.
    ///
    /// # Errors
    /// [`AuthError::UnknownSession`].
    pub async fn touch(&self, session: &SessionId) -> Result<(), AuthError> {
        self.ask(Some(session), |_| Ok(())).await
    }

    /// The workspaces of nobody, in order of their creation.
    pub(super) async fn orphans(&self, session: &SessionId) -> Result<Vec<WorkspaceId>, AuthError> {
        self.ask(Some(session), |ledger| ledger.orphans()).await
    }

    /// For whom the engine makes a session's workspaces.
    pub(super) fn claimant(&self, session: &SessionId) -> Claimant {
        Claimant::Session { id: session.clone(), quota: self.quota, clock: Arc::clone(&self.clock) }
    }

    fn takeover(&self, session: &SessionId, workspace: Uuid, size: SessionUsage, force: bool) -> Takeover {
        Takeover {
            session: session.clone(),
            workspace: workspace.into(),
            unknown: matches!(self.books, Books::Memory(_)).then_some(size),
            quota: self.quota,
            force,
        }
    }

    pub(super) async fn store(&self) -> Result<Arc<Store>, StoreError> {
        match &self.books {
            Books::Records(store) => Ok(Arc::clone(store)),
            Books::Memory(cell) => {
                let made = cell.get_or_try_init(async || Ok::<_, StoreError>(Arc::new(Store::in_memory()?)));
                Ok(Arc::clone(made.await?))
            }
        }
    }

    /// Runs `work` in a transaction, away from the async threads: SQLite waits for other processes.
    async fn ask<T: Send + 'static>(
        &self,
        caller: Option<&SessionId>,
        work: impl FnOnce(&Ledger<'_>) -> Result<T, AuthError> + Send + 'static,
    ) -> Result<T, AuthError> {
        let store = self.store().await?;
        let (clock, caller) = (Arc::clone(&self.clock), caller.cloned());
        let asked = tokio::task::spawn_blocking(move || {
            store.with_ledger(millis(clock.now()), caller.as_ref(), work)
        });
        asked.await.map_err(AuthError::Panicked)?
    }
}

/// A session wants to own a workspace.
struct Takeover {
    session: SessionId,
    workspace: WorkspaceId,
    /// What it takes up of a quota if nothing is known of it; none if it must be known.
    unknown: Option<SessionUsage>,
    quota: SessionQuota,
    force: bool,
}

impl Takeover {
    fn perform(self, ledger: &Ledger<'_>) -> Result<(), AuthError> {
        let Self { session, workspace, unknown, quota, force } = self;
        let known = match (ledger.ownership(workspace)?, unknown) {
            (Some(known), _) => known,
            (None, Some(usage)) => {
                ledger.add_orphan(workspace, usage)?;
                Ownership { owner: Owner::Nobody, usage }
            }
            (None, None) => return Err(AuthError::UnknownWorkspace { workspace }),
        };
        if known.owner.is_session(&session) {
            return Ok(());
        }
        if known.owner != Owner::Nobody && !force {
            return Err(AuthError::NotOwner { session, workspace });
        }
        quota.check(ledger.usage(&session)?, known.usage)?;
        match &known.owner {
            Owner::Nobody => {}
            Owner::Operator => return Err(AuthError::OperatorOwned { workspace }),
            Owner::Session(previous) => {
                let idle = Duration::from_millis(ledger.idle(previous)?.unsigned_abs());
                if let Some(wait) = FORCED_ADOPTION_IDLE.checked_sub(idle).filter(|wait| !wait.is_zero()) {
                    return Err(AuthError::OwnerActive { workspace, wait });
                }
            }
        }
        ledger.give(workspace, &Owner::Session(session))
    }
}
