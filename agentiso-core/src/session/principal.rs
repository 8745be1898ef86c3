//! The engine as one session may see and use it: what fronts translate to.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, task::AbortHandle};
use uuid::Uuid;

use super::{AuthError, AuthManager, Class, Clock, SessionQuota, SessionUsage};
use crate::error::EngineError;
use crate::store::StoreError;
use crate::types::{Owner, SessionId, WorkspaceId};
use crate::workspace::{
    DiffSide, DiffSpec, DiffStream, ForkReport, ForkSpec, Host, PromoteReport, PromoteSpec, TreeNode,
    Workspace, WorkspaceInfo, WorkspaceSpec, WorkspaceSummary,
};

/// How often a call that is under way counts as activity: well within the time after which a session is idle.
const HEARTBEAT: Duration = Duration::from_secs(20);

/// A call that took less is activity at its beginning only.
const SHORT_CALL: Duration = Duration::from_secs(1);

/// The sessions of a state folder. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sessions {
    host: Host,
    auth: AuthManager,
}

impl Sessions {
    pub(crate) fn new(host: Host, auth: AuthManager) -> Self {
        Self { host, auth }
    }

    /// The same sessions, with another clock.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { auth: self.auth.with_clock(clock), ..self }
    }

    /// Their books.
    pub fn auth(&self) -> &AuthManager {
        &self.auth
    }

    /// The state folder, as its operator sees it.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Begins a session, or goes on with the one of that name: whoever comes with a name is that session, so a front
    /// asks for a token first.
    ///
    /// # Errors
    /// The name is not valid, see [`SessionId::new`]; the records cannot be written.
    pub async fn open(&self, name: impl Into<String>) -> Result<Session, EngineError> {
        let id = self.auth.register_session(name.into()).await?;
        Ok(Session { host: self.host.clone(), auth: self.auth.clone(), id })
    }
}

/// One session: its own workspaces, which it uses, and those of nobody, which it sees and can adopt. Anything else is as
/// if it were not there. Cheap to clone.
///
/// A front begins each call with [`Session::enter`] and keeps what that returns until the call has ended. A
/// [`Workspace`] that it got is for that call: whose it is was looked at when it was got. What makes workspaces or
/// concerns several goes through the session, which a [`Workspace`] knows nothing of.
#[derive(Clone, Debug)]
pub struct Session {
    host: Host,
    auth: AuthManager,
    id: SessionId,
}

/// A workspace that a session sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen<T> {
    /// What there is to see.
    #[serde(flatten)]
    pub seen: T,
    /// Whether it is the session's own; nobody's otherwise.
    pub owned: bool,
}

/// What an adoption of all orphans did.
#[derive(Debug, Default)]
pub struct Adoption {
    /// Those that are the session's now, in order of their creation.
    pub adopted: Vec<Workspace>,
    /// Those that are still nobody's, with the reason.
    pub left: Vec<(Workspace, EngineError)>,
}

impl Session {
    /// What it is known by.
    pub fn id(&self) -> &SessionId {
        &self.id
    }

    /// What it may have.
    pub fn quota(&self) -> SessionQuota {
        self.auth.quota()
    }

    /// What it has.
    ///
    /// # Errors
    /// It has ended.
    pub async fn usage(&self) -> Result<SessionUsage, EngineError> {
        Ok(self.auth.get_usage(&self.id).await?)
    }

    /// Begins a call: takes a token of this kind and notes that the session is active, now and as long as what this
    /// returns is held. A session that had ended meanwhile, with its client still there, begins anew.
    ///
    /// # Errors
    /// [`AuthError::RateLimited`], which says how long to wait.
    pub async fn enter(&self, class: Class) -> Result<Call, EngineError> {
        match self.auth.enter(&self.id, class).await {
            Err(AuthError::UnknownSession { .. }) => {
                self.auth.register_session(self.id.to_string()).await?;
                self.auth.enter(&self.id, class).await?;
            }
            entered => entered?,
        }
        Ok(Call::begin(self.clone()))
    }

    /// A workspace of its own, found by its name, its id, or the beginning of its id (8 digits or more).
    ///
    /// # Errors
    /// There is none that it may see; [`AuthError::NotOwner`]: it is nobody's, and can be adopted.
    pub async fn workspace(&self, given: &str) -> Result<Workspace, EngineError> {
        let (workspace, owner) = self.host.workspace_for(&self.id, given).await?;
        if owner.is_session(&self.id) {
            return Ok(workspace);
        }
        Err(AuthError::NotOwner { session: self.id.clone(), workspace: workspace.id() }.into())
    }

    /// Everything about a workspace that it sees, its own or nobody's.
    ///
    /// # Errors
    /// There is none; records or disk cannot be read.
    pub async fn info(&self, given: &str) -> Result<Seen<WorkspaceInfo>, EngineError> {
        let (workspace, owner) = self.host.workspace_for(&self.id, given).await?;
        let mut info = workspace.info().await?;
        if let Some(origin) = &info.forked_from {
            let origin = origin.workspace_id;
            if !self.visible().await?.contains(&origin) {
                info.forked_from = None;
            }
        }
        Ok(Seen { seen: info, owned: owner.is_session(&self.id) })
    }

    /// All workspaces that it sees, in order of their creation.
    ///
    /// # Errors
    /// The records cannot be read.
    pub async fn list(&self) -> Result<Vec<Seen<WorkspaceSummary>>, EngineError> {
        let seen = self.host.list().await?.into_iter().filter_map(|summary| {
            let owned = summary.owner.is_session(&self.id);
            (owned || summary.owner == Owner::Nobody).then_some(Seen { seen: summary, owned })
        });
        Ok(seen.collect())
    }

    /// All workspaces that it sees as trees of forks, or the one tree below a workspace. What it does not see has no node;
    /// what was forked from that stands for itself.
    ///
    /// # Errors
    /// The records cannot be read; there is no such workspace.
    pub async fn tree(&self, root: Option<&str>) -> Result<Vec<TreeNode>, EngineError> {
        let root = match root {
            Some(given) => Some(self.host.workspace_for(&self.id, given).await?.0.id().to_string()),
            None => None,
        };
        let forest = self.host.tree(root.as_deref()).await?;
        Ok(TreeNode::only(forest, &self.visible().await?))
    }

    /// Makes a workspace and boots its machine, as [`Host::create`]. It belongs to the session, whose quota is checked in
    /// the transaction that makes its record.
    ///
    /// # Errors
    /// [`AuthError::QuotaExceeded`]; those of [`Host::create`]. Nothing was made then.
    pub async fn create(&self, spec: WorkspaceSpec) -> Result<Workspace, EngineError> {
        match self.host.create_for(spec, self.auth.claimant(&self.id)).await {
            Ok(workspace) => Ok(workspace),
            Err(error) => Err(self.conceal(error).await),
        }
    }

    /// Makes forks of a workspace of its own, as [`Workspace::fork`]. They belong to the session, whose quota must hold for
    /// all of them before anything is started; those that fail do not count any more.
    ///
    /// # Errors
    /// Those of [`Session::workspace`] and [`Workspace::fork`]; [`AuthError::QuotaExceeded`]. Nothing was made then.
    pub async fn fork(&self, given: &str, spec: ForkSpec) -> Result<ForkReport, EngineError> {
        self.workspace(given).await?.fork_for(spec, self.auth.claimant(&self.id)).await
    }

    /// Lets a fork take the place of the workspace it was forked from, as [`Workspace::promote`]. All that are concerned
    /// must be the session's.
    ///
    /// # Errors
    /// Those of [`Session::workspace`] and [`Workspace::promote`]; one of those concerned is not the session's.
    pub async fn promote(&self, given: &str, spec: PromoteSpec) -> Result<PromoteReport, EngineError> {
        self.workspace(given).await?.promote_for(&self.id, spec).await
    }

    /// Compares the files of two workspaces of its own, as [`Host::diff`].
    ///
    /// # Errors
    /// Those of [`Session::workspace`] and [`Host::diff`].
    pub async fn diff(&self, spec: DiffSpec) -> Result<DiffStream, EngineError> {
        let own = async |side: DiffSide| {
            let workspace = self.workspace(&side.workspace).await?.id().to_string();
            Ok::<_, EngineError>(DiffSide { workspace, ..side })
        };
        let spec = DiffSpec { from: own(spec.from).await?, to: own(spec.to).await?, path: spec.path };
        self.host.diff(spec).await
    }

    /// Takes over a workspace of nobody's; with `force`, given its full UUID, also one of a session that has made no call
    /// for a minute. Its own already: no effect. What the earlier owner had set in its environment is gone before anybody
    /// can use it.
    ///
    /// # Errors
    /// There is none that it may see; [`AuthError::QuotaExceeded`]; [`AuthError::OwnerActive`];
    /// [`AuthError::OperatorOwned`]. Nothing was changed then.
    pub async fn adopt(&self, given: &str, force: bool) -> Result<Workspace, EngineError> {
        let workspace = match self.host.workspace_for(&self.id, given).await {
            Ok((workspace, _)) => workspace,
            // Nobody guesses a UUID: whoever knows it was told.
            Err(EngineError::NoSuchWorkspace { .. }) if force && Uuid::parse_str(given).is_ok() => {
                self.host.workspace(given).await?
            }
            Err(error) => return Err(error),
        };
        self.take_over(&workspace, force).await?;
        Ok(workspace)
    }

    /// Takes over all workspaces of nobody's, as far as the quota goes; no session's.
    ///
    /// # Errors
    /// The records cannot be read.
    pub async fn adopt_orphans(&self) -> Result<Adoption, EngineError> {
        let mut adoption = Adoption::default();
        for id in self.auth.orphans(&self.id).await? {
            let workspace = match self.host.workspace_for(&self.id, &id.to_string()).await {
                Ok((workspace, Owner::Nobody)) => workspace,
                // Another session was quicker, or it has gone.
                Ok(_) | Err(EngineError::NoSuchWorkspace { .. }) => continue,
                Err(error) => return Err(error),
            };
            match self.take_over(&workspace, false).await {
                Ok(()) => adoption.adopted.push(workspace),
                Err(
                    EngineError::NoSuchWorkspace { .. }
                    | EngineError::Session(AuthError::NotOwner { .. } | AuthError::UnknownWorkspace { .. }),
                ) => {}
                Err(error @ EngineError::Session(_)) => adoption.left.push((workspace, error)),
                Err(error) => return Err(error),
            }
        }
        Ok(adoption)
    }

    /// An error as this session may read it: what the engine says of workspaces that it does not see is left out. For
    /// errors of a [`Workspace`] that it got here.
    pub async fn conceal(&self, error: EngineError) -> EngineError {
        let seen: BTreeSet<String> = match self.list().await {
            Ok(list) => list.into_iter().map(|seen| seen.seen.name).collect(),
            // Better to say too little.
            Err(_) => BTreeSet::new(),
        };
        without_names(error, &seen)
    }

    async fn take_over(&self, workspace: &Workspace, force: bool) -> Result<(), EngineError> {
        // The records know its size.
        let adopted = self.auth.adopt_workspace(&self.id, workspace.id().as_uuid(), 0, 0, force).await;
        adopted.map_err(|error| match error {
            // Between looking and taking it went, or somebody else took it.
            AuthError::UnknownWorkspace { workspace } | AuthError::NotOwner { workspace, .. } => {
                EngineError::NoSuchWorkspace { given: workspace.to_string() }
            }
            error => error.into(),
        })
    }

    /// The ids of all that it sees.
    async fn visible(&self) -> Result<BTreeSet<WorkspaceId>, EngineError> {
        Ok(self.list().await?.into_iter().map(|seen| seen.seen.workspace_id).collect())
    }
}

/// Replaces the names of other workspaces, unless they are among these.
fn without_names(error: EngineError, seen: &BTreeSet<String>) -> EngineError {
    match error {
        EngineError::SnapshotInUse { workspace, snapshot, mut dependents } => {
            let all = dependents.len();
            dependents.retain(|name| seen.contains(name));
            match all - dependents.len() {
                0 => {}
                hidden => dependents.push(format!("{hidden} of other owners")),
            }
            EngineError::SnapshotInUse { workspace, snapshot, dependents }
        }
        EngineError::Store(StoreError::PortTaken { port, workspace }) if !seen.contains(&workspace) => {
            EngineError::Store(StoreError::PortTaken { port, workspace: "of another owner".to_owned() })
        }
        EngineError::Undo { workspace, undo, source } => {
            EngineError::Undo { workspace, undo, source: Box::new(without_names(*source, seen)) }
        }
        error => error,
    }
}

/// A call of a session's that is under way. The session is active until it is dropped.
#[derive(Debug)]
#[must_use = "a call has ended when this is dropped"]
pub struct Call {
    session: Session,
    begun: Instant,
    heartbeat: AbortHandle,
}

impl Call {
    fn begin(session: Session) -> Self {
        let active = session.clone();
        let heartbeat = tokio::spawn(async move {
            loop {
                tokio::time::sleep(HEARTBEAT).await;
                active.note_activity().await;
            }
        });
        Self { session, begun: Instant::now(), heartbeat: heartbeat.abort_handle() }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.heartbeat.abort();
        // The beginning was noted: the end of a short call says nothing new.
        if self.begun.elapsed() < SHORT_CALL {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            let session = self.session.clone();
            runtime.spawn(async move { session.note_activity().await });
        }
    }
}

impl Session {
    async fn note_activity(&self) {
        if let Err(error) = self.auth.touch(&self.id).await {
            tracing::warn!(session = %self.id, %error, "could not note that a session is active");
        }
    }
}
