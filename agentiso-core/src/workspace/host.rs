//! A state folder, opened.

use std::sync::Arc;

use super::create::Created;
use super::diff::{DiffSpec, DiffStream};
use super::engine::Engine;
use super::handle::Workspace;
use super::info::{Isolation, PruneReport, Pruned, WorkspaceSummary};
use super::pool::{Pool, PoolSpec};
use super::spec::WorkspaceSpec;
use super::tree::TreeNode;
use crate::backends::Backends;
use crate::config::Config;
use crate::error::EngineError;
use crate::image::Images;
use crate::session::{AuthManager, Claimant, SessionQuota, Sessions, SystemClock};
use crate::store::{Store, WorkspaceRecord};
use crate::types::{ImageName, Owner, ProcessRef, Resources, SessionId};

/// A state folder and the workspaces in it.
///
/// Cheap to clone. Any number of processes can have the same state folder open; machines outlive all of them.
#[derive(Clone, Debug)]
pub struct Host {
    engine: Arc<Engine>,
}

impl Host {
    /// Opens a state folder, or makes it, with the backends this host offers, and puts right what an interrupted
    /// process left there.
    ///
    /// # Errors
    /// The folder is not usable or not private; its records are of a newer version; QEMU is missing or too old.
    pub async fn open(config: Config) -> Result<Self, EngineError> {
        let store = open_store(&config).await?;
        let backends = crate::native::backends(&config, store.state_id()).await?;
        Self::assemble(config, store, backends).await
    }

    /// As [`Host::open`], with backends of the caller's choice.
    ///
    /// # Errors
    /// As [`Host::open`], without those of the backends.
    pub async fn open_with(config: Config, backends: Backends) -> Result<Self, EngineError> {
        let store = open_store(&config).await?;
        Self::assemble(config, store, backends).await
    }

    async fn assemble(config: Config, store: Store, backends: Backends) -> Result<Self, EngineError> {
        let engine = Arc::new(Engine::new(config, store, backends));
        let reconciling = Arc::clone(&engine);
        engine.finish(async move { reconciling.reconcile().await }).await?;
        Ok(Self { engine })
    }

    /// Makes a workspace and boots its machine; it runs and answers when this returns.
    ///
    /// On failure, and when the future is dropped, nothing of it is left ([`Host::close`] waits for the removal).
    ///
    /// # Errors
    /// Unknown image, name taken, disk too small for the image, a policy this network cannot enforce, host port taken,
    /// a machine that does not start (the error carries the end of its console).
    pub async fn create(&self, spec: WorkspaceSpec) -> Result<Workspace, EngineError> {
        self.create_for(spec, Claimant::Operator).await
    }

    /// Makes a workspace for somebody.
    pub(crate) async fn create_for(
        &self,
        spec: WorkspaceSpec,
        claimant: Claimant,
    ) -> Result<Workspace, EngineError> {
        self.engine.check_policy(&spec.policy)?;
        let Created { record, from_pool } = self.engine.create(spec, claimant).await?;
        Ok(self.handle(record).taken_from_pool(from_pool))
    }

    /// All workspaces, in order of their creation. Takes no lock: it never waits for a machine.
    ///
    /// # Errors
    /// The records cannot be read. One that is damaged is left out with a warning.
    pub async fn list(&self) -> Result<Vec<WorkspaceSummary>, EngineError> {
        let rows = self.engine.records(|store| store.all()).await?;
        let mut summaries = Vec::with_capacity(rows.len());
        for row in rows {
            match row {
                Ok(record) if record.pooled => {}
                Ok(record) => summaries.push(self.engine.summary(&record)),
                Err(error) => tracing::warn!(%error, "left a damaged record out"),
            }
        }
        Ok(summaries)
    }

    /// All workspaces as trees of forks, roots in order of their creation, or the one tree below a workspace. A parent
    /// that was destroyed stands for itself as long as forks of it are there. Takes no lock.
    ///
    /// # Errors
    /// The records cannot be read; there is no such workspace.
    pub async fn tree(&self, root: Option<&str>) -> Result<Vec<TreeNode>, EngineError> {
        self.engine.tree(root).await
    }

    /// Compares the files of two workspaces, or of snapshots of them, inside their guests. Differences come as they are
    /// found, in the order of their paths.
    ///
    /// A running machine is asked itself. What is stopped, and every snapshot, is read by a helper: a throwaway workspace
    /// named `diff-...` without network, forked from it and destroyed when the stream has ended or was dropped
    /// ([`Host::close`] waits for that). A paused machine must be resumed first.
    ///
    /// # Errors
    /// The path is not absolute. All else is told by the stream.
    pub async fn diff(&self, spec: DiffSpec) -> Result<DiffStream, EngineError> {
        self.engine.diff(spec).await
    }

    /// Finds a workspace by its name, its id, or the beginning of its id (8 digits or more).
    ///
    /// # Errors
    /// There is none, or several ids begin that way.
    pub async fn workspace(&self, name_or_id: &str) -> Result<Workspace, EngineError> {
        Ok(self.handle(self.engine.find(name_or_id).await?))
    }

    /// Finds a workspace that a session may see, its own or an orphan, and says whose it is.
    pub(crate) async fn workspace_for(
        &self,
        session: &SessionId,
        given: &str,
    ) -> Result<(Workspace, Owner), EngineError> {
        let record = self.engine.find_for(session, given).await?;
        let owner = record.owner.clone();
        Ok((self.handle(record), owner))
    }

    /// The sessions of the state folder, each of which may have this much.
    pub fn sessions(&self, quota: SessionQuota) -> Sessions {
        Sessions::new(self.clone(), AuthManager::open(Arc::clone(&self.engine.store), quota))
    }

    /// Lets sessions see and adopt a workspace of the operator's: it is nobody's then. Nobody's already: no effect.
    ///
    /// # Errors
    /// There is none, or it belongs to a session.
    pub async fn share(&self, name_or_id: &str) -> Result<Workspace, EngineError> {
        self.give_orphan(name_or_id, Owner::Nobody).await
    }

    /// Takes a workspace back that was shared and that no session has adopted. The operator's already: no effect.
    ///
    /// # Errors
    /// There is none, or it belongs to a session.
    pub async fn unshare(&self, name_or_id: &str) -> Result<Workspace, EngineError> {
        self.give_orphan(name_or_id, Owner::Operator).await
    }

    /// Gives a workspace that is no session's to the operator, or to nobody.
    async fn give_orphan(&self, name_or_id: &str, to: Owner) -> Result<Workspace, EngineError> {
        let record = self.engine.find(name_or_id).await?;
        let id = record.id;
        self.engine.records(move |store| store.give_orphan(Claimant::now(&SystemClock), id, &to)).await?;
        Ok(self.handle(record))
    }

    /// The base images.
    pub fn images(&self) -> Images {
        self.engine.images.clone()
    }

    /// Makes ready what new workspaces of an image and size begin with, so that the first one is as quick as the next.
    /// Ready already: no effect.
    ///
    /// # Errors
    /// Unknown image; a disk too small for it; a machine that does not boot.
    pub async fn warm(&self, image: &str, resources: Resources) -> Result<(), EngineError> {
        self.engine.warm(&ImageName::new(image)?, resources).await
    }

    /// Keeps machines of an image and size ready, for the creations of this process: they have booted, answered and been
    /// paused. Returns at once; [`Pool::filled`] waits for them.
    ///
    /// # Errors
    /// Unknown image; a disk too small for it; a size out of bounds.
    pub async fn pool(&self, spec: PoolSpec) -> Result<Pool, EngineError> {
        self.engine.pool(spec).await
    }

    /// Removes an image and what was made ready from it.
    ///
    /// # Errors
    /// There is none; workspaces were made from it, and nothing but what was made ready is changed.
    pub async fn remove_image(&self, name: &str) -> Result<(), EngineError> {
        self.engine.discard_templates_of(&ImageName::new(name)?).await?;
        Ok(self.engine.images.remove(name).await?)
    }

    /// What stands between workspaces and this host.
    pub fn isolation(&self) -> Isolation {
        self.engine.backends.isolation()
    }

    /// Removes the images that no workspace needs and all throwaway workspaces whose owner is gone, or only says what
    /// it would remove.
    ///
    /// # Errors
    /// The records cannot be read. What could not be removed is left out of the report, with a warning.
    pub async fn prune(&self, dry_run: bool) -> Result<PruneReport, EngineError> {
        let mut report = PruneReport { done: !dry_run, ..PruneReport::default() };
        for row in self.engine.records(|store| store.all()).await? {
            let Ok(record) = row else { continue };
            if record.throwaway_of.as_ref().is_none_or(ProcessRef::is_alive) {
                continue;
            }
            let bytes =
                self.engine.backends.storage.usage(record.disk()).await.unwrap_or_default().unique_bytes;
            if dry_run || self.engine.destroy(record.id).await.is_ok() {
                report.workspaces.push(Pruned { name: record.name.to_string(), bytes });
            }
        }
        let mut used = std::collections::BTreeSet::new();
        for row in self.engine.records(|store| store.all()).await? {
            // A record that cannot be read may need any image: keep them all.
            used.insert(row?.base);
        }
        for image in self.images().list().await? {
            if !used.contains(&image.base)
                && (dry_run || self.remove_image(image.name.as_str()).await.is_ok())
            {
                report.images.push(Pruned { name: image.name.to_string(), bytes: image.used_bytes });
            }
        }
        report.total_bytes = report.images.iter().chain(&report.workspaces).map(|pruned| pruned.bytes).sum();
        Ok(report)
    }

    /// Waits until nothing that was begun is under way any more: creations that were abandoned are undone then.
    pub async fn close(&self) {
        self.engine.idle().await;
    }

    /// The records, for the books that tests keep with a clock of their own.
    #[cfg(test)]
    pub(super) fn store(&self) -> &Arc<Store> {
        &self.engine.store
    }

    fn handle(&self, record: WorkspaceRecord) -> Workspace {
        Workspace::new(Arc::clone(&self.engine), record.id, record.name)
    }
}

async fn open_store(config: &Config) -> Result<Store, EngineError> {
    let layout = config.layout();
    tokio::task::spawn_blocking(move || {
        layout.prepare()?;
        Ok(Store::open(&layout.database())?)
    })
    .await
    .map_err(EngineError::Panicked)?
}
