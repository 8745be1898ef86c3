//! One workspace.

use std::sync::Arc;

use super::engine::Engine;
use super::info::{
    ForkReport, PortForward, RestoreReport, SnapshotInfo, WorkspaceInfo, WorkspaceState, WorkspaceSummary,
};
use super::lifecycle::PolicyChange;
use super::promote::{PromoteReport, PromoteSpec};
use super::spec::{ForkSpec, RestoreSpec, SnapshotSpec};
use crate::channel::client::{CollectOptions, ExecOutput, ExecSpec, GuestClient};
use crate::error::EngineError;
use crate::hypervisor::MachineLog;
use crate::network::NetworkPolicy;
use crate::session::Claimant;
use crate::storage::{DiskUsage, StorageError};
use crate::store::WorkspaceRecord;
use crate::types::{GuestPort, HostPort, SessionId, SnapshotName, WorkspaceId, WorkspaceName};

/// A workspace: a machine with a disk, running or not.
///
/// A handle holds nothing of it: the workspace lives on when the handle is dropped, and can be gone while there is one.
/// Operations that change it wait for each other; commands, files and queries wait for none.
#[derive(Clone, Debug)]
pub struct Workspace {
    engine: Arc<Engine>,
    id: WorkspaceId,
    name: WorkspaceName,
    from_pool: bool,
}

impl Workspace {
    pub(super) fn new(engine: Arc<Engine>, id: WorkspaceId, name: WorkspaceName) -> Self {
        Self { engine, id, name, from_pool: false }
    }

    pub(super) fn taken_from_pool(self, from_pool: bool) -> Self {
        Self { from_pool, ..self }
    }

    /// Whether its machine had been waiting in a [`Pool`](crate::Pool) when this handle's creation asked for it.
    pub fn is_from_pool(&self) -> bool {
        self.from_pool
    }

    /// Its id.
    pub fn id(&self) -> WorkspaceId {
        self.id
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Everything about it.
    ///
    /// # Errors
    /// It is gone, or records or disk cannot be read.
    pub async fn info(&self) -> Result<WorkspaceInfo, EngineError> {
        self.engine.info(self.id).await
    }

    /// Boots its machine, or lets a paused one run. Runs already: no effect. On failure it is stopped.
    ///
    /// # Errors
    /// The machine does not start; the error carries the end of its console.
    pub async fn start(&self) -> Result<(), EngineError> {
        self.engine.start(self.id).await
    }

    /// Shuts its machine down, disks flushed: the agent is asked, then the power button pressed, then the plug pulled.
    /// Stopped already: no effect.
    ///
    /// # Errors
    /// What belonged to the machine could not be removed; asking again tries again.
    pub async fn stop(&self) -> Result<(), EngineError> {
        self.engine.stop(self.id).await
    }

    /// Stops its vCPUs; memory and connections stay. Paused already: no effect.
    ///
    /// # Errors
    /// It does not run.
    pub async fn pause(&self) -> Result<(), EngineError> {
        self.engine.pause(self.id, true).await
    }

    /// Lets its vCPUs run again, with the clock set. Runs already: the clock is set.
    ///
    /// # Errors
    /// It has no machine.
    pub async fn resume(&self) -> Result<(), EngineError> {
        self.engine.pause(self.id, false).await
    }

    /// Removes it with its disk and its snapshots, running or not. Forks of it live on; forks that are on their way are
    /// waited for.
    ///
    /// # Errors
    /// Forks were still on their way after `lock_timeout`: nothing is changed. Something could not be removed; asking
    /// again, or opening the state folder again, tries again.
    pub async fn destroy(&self) -> Result<(), EngineError> {
        self.engine.destroy(self.id).await
    }

    /// A client of the agent in its machine: commands with streams, files, archives, background jobs. After an adoption
    /// the environment that the earlier owner had set is removed first.
    ///
    /// # Errors
    /// It does not run, or is paused; that environment could not be removed.
    pub async fn guest(&self) -> Result<GuestClient, EngineError> {
        let record = self.engine.record(self.id).await?;
        let client = self.engine.client(&record)?;
        if record.inherited {
            self.engine.clear_inherited_environment(self.id).await?;
        }
        Ok(client)
    }

    /// Runs a command with `/bin/sh -c` and returns what it printed: at most 120 s, at most 256 KiB of each stream.
    ///
    /// # Errors
    /// It does not run, or its agent cannot be reached. A command that fails or runs out of time is no error.
    pub async fn exec(&self, command: &str) -> Result<ExecOutput, EngineError> {
        self.exec_with(ExecSpec::shell(command), CollectOptions::default()).await
    }

    /// Runs a command with these options and returns what it printed.
    ///
    /// # Errors
    /// As [`Workspace::exec`].
    pub async fn exec_with(
        &self,
        spec: ExecSpec,
        options: CollectOptions,
    ) -> Result<ExecOutput, EngineError> {
        let guest = self.guest().await?;
        guest
            .exec_collect(spec, options)
            .await
            .map_err(|source| EngineError::operation("run a command in", self.name.as_str(), source))
    }

    /// Takes a snapshot of its disk, and of memory and processes if it runs; a running machine goes on.
    ///
    /// # Errors
    /// See [`Workspace::snapshot_with`].
    pub async fn snapshot(&self, name: &str) -> Result<SnapshotInfo, EngineError> {
        self.snapshot_with(SnapshotSpec::new(SnapshotName::new(name)?)).await
    }

    /// Takes a snapshot; a running machine goes on, and stands still for a moment if its memory is kept.
    ///
    /// # Errors
    /// The name is taken; there are 20 snapshots already; memory was asked for and it does not run; the guest did not
    /// flush its file systems within 15 s, or its processes did not stand still within 2 s; the host's disk is full. No
    /// snapshot is left then, and the machine goes on as before.
    pub async fn snapshot_with(&self, spec: SnapshotSpec) -> Result<SnapshotInfo, EngineError> {
        self.engine.snapshot(self.id, spec).await
    }

    /// Its snapshots, oldest first.
    ///
    /// # Errors
    /// Records or disk cannot be read.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotInfo>, EngineError> {
        let record = self.engine.record(self.id).await?;
        let usage = self.engine.disk_usage(&record).await?;
        self.engine.snapshot_infos(self.id, &usage.snapshots.into_iter().collect()).await
    }

    /// Goes back to a snapshot. One with memory: the machine runs on from there, processes and all. One without: a
    /// machine that runs is ended and boots from there. Snapshots that are newer are removed; the report names them.
    /// Forks that are on their way are waited for.
    ///
    /// # Errors
    /// Forks were still on their way after `lock_timeout`, no such snapshot, or its memory cannot be used here: nothing
    /// is changed. The machine does not start: the disk has been put back.
    pub async fn restore(&self, name: &str) -> Result<RestoreReport, EngineError> {
        self.restore_with(RestoreSpec { name: SnapshotName::new(name)?, disk_only: false }).await
    }

    /// Goes back to a snapshot, or to its disk alone.
    ///
    /// # Errors
    /// As [`Workspace::restore`].
    pub async fn restore_with(&self, spec: RestoreSpec) -> Result<RestoreReport, EngineError> {
        self.engine.restore(self.id, spec).await
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// No such snapshot; workspaces were forked from it (the error names them).
    pub async fn delete_snapshot(&self, name: &str) -> Result<(), EngineError> {
        self.engine.delete_snapshot(self.id, SnapshotName::new(name)?).await
    }

    /// Makes forks of it, as a snapshot has it or as it is now, and starts them. Those of a running workspace, and of a
    /// snapshot with memory, run on from that moment, processes and all; the others boot.
    ///
    /// Each succeeds or fails for itself; the report says which. They inherit policy and resources, no forward.
    ///
    /// # Errors
    /// No such snapshot, or its memory cannot be used here; its processes did not stand still within 2 s; the name is
    /// taken; the host's disk is full. Nothing was made then, and it runs on.
    pub async fn fork(&self, spec: ForkSpec) -> Result<ForkReport, EngineError> {
        self.fork_for(spec, Claimant::Operator).await
    }

    /// Makes forks of it for somebody.
    pub(crate) async fn fork_for(
        &self,
        spec: ForkSpec,
        claimant: Claimant,
    ) -> Result<ForkReport, EngineError> {
        self.engine.fork(self.id, spec, claimant).await
    }

    /// Lets it, a fork, take the place of the workspace it was forked from: it gets that one's name, forwards, owner and
    /// lifetime. The old parent is stopped and kept as NAME-old (NAME-old-2, ... if that is taken), or destroyed
    /// together with its other forks; what was forked from those lives on. Whatever happens meanwhile, exactly one
    /// workspace has the name. This handle goes on to lead to it, and to tell its old name.
    ///
    /// # Errors
    /// It is no fork, or its parent is gone; both forward the same port; somebody is busy with one of them. Nothing was
    /// changed then. The records cannot be written: the parent is stopped then. Whatever fails once the names are
    /// exchanged is told by the report.
    pub async fn promote(&self, spec: PromoteSpec) -> Result<PromoteReport, EngineError> {
        self.engine.promote(self.id, spec, None).await
    }

    /// The same for a session, which must own all that is concerned.
    pub(crate) async fn promote_for(
        &self,
        session: &SessionId,
        spec: PromoteSpec,
    ) -> Result<PromoteReport, EngineError> {
        self.engine.promote(self.id, spec, Some(session.clone())).await
    }

    /// Forwards a TCP port of the host's loopback to a port of the guest, and does so again after each start. A free
    /// port is picked if none is given.
    ///
    /// # Errors
    /// It does not run; the host's port is taken; the guest's port is forwarded already.
    pub async fn add_forward(
        &self,
        guest: GuestPort,
        host: Option<HostPort>,
    ) -> Result<PortForward, EngineError> {
        self.engine.add_forward(self.id, guest, host).await
    }

    /// Ends a forward.
    ///
    /// # Errors
    /// The port is not forwarded.
    pub async fn remove_forward(&self, guest: GuestPort) -> Result<(), EngineError> {
        self.engine.remove_forward(self.id, guest).await
    }

    /// Its forwards.
    ///
    /// # Errors
    /// The records cannot be read.
    pub async fn forwards(&self) -> Result<Vec<PortForward>, EngineError> {
        self.engine.record(self.id).await?;
        self.engine.port_forwards(self.id).await
    }

    /// Changes what it may reach. Forwards, and connections that stay allowed, are not touched. Returns what is now in
    /// force.
    ///
    /// # Errors
    /// The network in use cannot do that; nothing is changed then.
    pub async fn set_policy(&self, change: PolicyChange) -> Result<NetworkPolicy, EngineError> {
        self.engine.set_policy(self.id, change).await
    }

    /// The newest bytes of a log of its machine, running or not, as the guest wrote them: they may hold anything.
    ///
    /// # Errors
    /// The log cannot be read.
    pub async fn logs(&self, log: MachineLog, max_bytes: u64) -> Result<Vec<u8>, EngineError> {
        self.engine.record(self.id).await?;
        Ok(self.engine.backends.hypervisor.log_tail(&self.engine.run_dir(self.id), log, max_bytes).await?)
    }

    /// Makes a throwaway workspace an ordinary one, that outlives the process that created it.
    ///
    /// # Errors
    /// It is gone.
    pub async fn keep(&self) -> Result<(), EngineError> {
        self.engine.keep(self.id).await
    }
}

impl Engine {
    pub(super) fn summary(&self, record: &WorkspaceRecord) -> WorkspaceSummary {
        let (state, crashed) = self.present_state(record);
        WorkspaceSummary {
            workspace_id: record.id,
            name: record.name.to_string(),
            state,
            crashed,
            image: record.image.to_string(),
            created_at: record.created_at,
            resources: record.resources,
            ip: record
                .runtime
                .as_ref()
                .filter(|_| state != WorkspaceState::Stopped)
                .map(|runtime| runtime.network.address.clone()),
            owner: record.owner.clone(),
            throwaway: record.throwaway_of.is_some(),
        }
    }

    /// What a workspace's disk takes, also while somebody makes or destroys it: nobody asks for its lock to look.
    async fn disk_usage(&self, record: &WorkspaceRecord) -> Result<DiskUsage, EngineError> {
        match self.backends.storage.usage(record.disk()).await {
            // Its disk is not made yet, or removed already, perhaps since the record was read.
            Err(StorageError::NotFound { .. }) if self.record(record.id).await?.state.is_passing() => {
                Ok(DiskUsage::default())
            }
            usage => Ok(usage?),
        }
    }

    async fn info(&self, id: WorkspaceId) -> Result<WorkspaceInfo, EngineError> {
        let record = self.record(id).await?;
        let usage = self.disk_usage(&record).await?;
        let memory = self.memory_usage(&record).await;
        Ok(WorkspaceInfo {
            summary: self.summary(&record),
            pid: self.living(&record).map(|runtime| runtime.machine.process.pid),
            boot_time_ms: record.boot_time_ms,
            snapshots: self.snapshot_infos(id, &usage.snapshots.iter().copied().collect()).await?,
            network: record.policy.clone(),
            port_forwards: self.port_forwards(id).await?,
            disk_used_bytes: usage.unique_bytes,
            disk_shared_bytes: usage.shared_bytes,
            memory_unique_bytes: memory.map(|memory| memory.unique_bytes),
            memory_shared_bytes: memory.map(|memory| memory.shared_bytes),
            usage: self
                .living(&record)
                .and_then(|runtime| self.backends.hypervisor.limited_usage(&runtime.machine)),
            forked_from: record.forked_from.clone(),
            isolation: self.isolation(),
        })
    }

    pub(super) async fn port_forwards(&self, id: WorkspaceId) -> Result<Vec<PortForward>, EngineError> {
        let forwards = self.records(move |store| store.forwards(id)).await?;
        Ok(forwards
            .into_iter()
            .map(|(guest_port, host_port)| PortForward { guest_port, host_port })
            .collect())
    }
}
