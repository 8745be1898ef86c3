//! From a disk to a running, configured machine, and back.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use agentiso_guest::message::NetworkConfiguration;
use rustix::rand::{GetRandomFlags, getrandom};

use super::engine::Engine;
use super::info::WorkspaceState;
use super::warm_up::warm_up;
use crate::channel::client::{Configure, GuestClient, GuestError};
use crate::channel::{ChannelSpec, PreparedChannel};
use crate::error::EngineError;
use crate::hypervisor::{HypervisorError, LaunchSpec, MachineLog, Start, printable};
use crate::network::{AttachSpec, Attachment};
use crate::store::{Runtime, WorkspaceRecord};
use crate::types::{SnapshotId, WorkspaceId, guest_hostname};

/// What a machine begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// Its disk: it boots.
    Boot,
    /// The memory of a template, in which no process of a user's is.
    Template(SnapshotId),
    /// The memory of a machine whose processes were frozen when it was captured.
    Clone(SnapshotId),
}

impl Begin {
    fn start(self) -> Start {
        match self {
            Self::Boot => Start::Boot,
            Self::Template(image) | Self::Clone(image) => Start::Restore(image),
        }
    }
}

/// Bytes of a machine's log that an error shows.
const ERROR_LOG_BYTES: u64 = 4096;

/// Bytes of host entropy that a machine gets: 256 bits twice over.
const ENTROPY_BYTES: usize = 64;

/// See [`Engine::patient_client_of`].
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How long a machine that has confirmed its shutdown may take until its process is gone.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(20);

/// How long a machine has after its power button was pressed.
const POWER_BUTTON_LIMIT: Duration = Duration::from_secs(10);

impl Engine {
    /// Starts a workspace's machine and configures its guest. The caller holds its lock; its record says `Running` when
    /// this returns, and is written.
    ///
    /// On failure nothing is left of the machine and the record says `Stopped`; the error carries the console's end.
    pub(super) async fn boot(&self, record: &mut WorkspaceRecord, begin: Begin) -> Result<(), EngineError> {
        self.check_requirements()?;
        let begun = Instant::now();
        record.state = WorkspaceState::Starting;
        record.crashed = false;
        self.save(record).await?;
        match self.try_boot(record, begin).await {
            Ok(()) => {
                record.state = WorkspaceState::Running;
                record.boot_time_ms = u64::try_from(begun.elapsed().as_millis()).ok();
                self.save(record).await
            }
            Err(cause) => {
                let console = self.error_log(record.id).await;
                let cleared = self.clear_machine(record).await;
                record.state = WorkspaceState::Stopped;
                self.save(record).await?;
                let workspace = record.name.to_string();
                let error =
                    EngineError::Start { workspace: workspace.clone(), console, source: Box::new(cause) };
                Err(match cleared {
                    Ok(()) => error,
                    Err(undo) => {
                        EngineError::Undo { workspace, undo: undo.report(), source: Box::new(error) }
                    }
                })
            }
        }
    }

    async fn try_boot(&self, record: &mut WorkspaceRecord, begin: Begin) -> Result<(), EngineError> {
        let run_dir = self.run_dir(record.id);
        let begun = Instant::now();
        fresh_folder(&run_dir)?;
        let guest_network = self.launch(record, &run_dir, begin.start()).await?;
        let launched = begun.elapsed();
        self.save(record).await?;
        let saved = begun.elapsed();
        // One that is gone already would be told as a workspace that is starting.
        let Some(runtime) = self.living(record) else {
            return Err(HypervisorError::Gone { id: record.id }.into());
        };
        let client = self.patient_client_of(runtime);
        if begin == Begin::Boot {
            let ready = client.clone().with_connect_limit(self.config.boot_timeout);
            self.unless_it_ends(record, runtime, "reach the agent of", ready.ping()).await?;
        }
        // Before any process of the user's runs again in a machine that was one before.
        let configuration = self.configuration(record, guest_network, begin)?;
        let configured = self.unless_it_ends(record, runtime, "configure", client.configure(configuration));
        if matches!(begin, Begin::Template(_)) && self.warms_up(record) {
            let warmed = async {
                if let Err(error) = warm_up(&client).await {
                    tracing::debug!(machine = %record.id, %error, "a first command did not run");
                }
                Ok(())
            };
            tokio::try_join!(configured, warmed)?;
        } else {
            configured.await?;
        }
        tracing::debug!(machine = %record.id, ?launched, ?saved, configured = ?begun.elapsed(), "booted");
        if let Begin::Clone(memory) = begin {
            if self.records(move |store| store.is_snapshot_inherited(memory)).await? {
                client.env_clear().await.map_err(|source| {
                    EngineError::operation("clear the environment of", record.name.as_str(), source)
                })?;
            }
            client
                .thaw(*memory.as_uuid())
                .await
                .map_err(|source| EngineError::operation("thaw", record.name.as_str(), source))?;
        }
        Ok(())
    }

    /// Starts the machine and what it is connected to. Each part that was made is in the record at once, so that a
    /// failure of the next one finds it.
    async fn launch(
        &self,
        record: &mut WorkspaceRecord,
        run_dir: &Path,
        start: Start,
    ) -> Result<NetworkConfiguration, EngineError> {
        let (id, begun) = (record.id, Instant::now());
        let forwards = self.records(move |store| store.forwards(id)).await?;
        let disk = self.backends.storage.open_disk(record.disk()).await?;
        let PreparedChannel { device, record: channel } =
            self.backends.channel.prepare(ChannelSpec { id, run_dir: run_dir.to_owned() }).await?;
        let attached = self
            .backends
            .network
            .attach(AttachSpec {
                id,
                uid: record.uid,
                policy: record.policy.clone(),
                forwards,
                run_dir: run_dir.to_owned(),
            })
            .await;
        let Attachment { nic, record: network, guest } = match attached {
            Ok(attachment) => attachment,
            Err(error) => {
                report_failed_undo(record, self.backends.channel.release(&channel).await);
                return Err(error.into());
            }
        };
        tracing::debug!(machine = %id, surroundings = ?begun.elapsed(), "made what a machine is connected to");
        let launched = self
            .backends
            .hypervisor
            .launch(LaunchSpec {
                id,
                uid: record.uid,
                start,
                vcpus: record.resources.vcpus,
                memory: record.resources.memory_mb,
                kernel: self.layout.kernel(),
                initramfs: self.layout.initramfs(),
                agent_options: Vec::new(),
                disk,
                nic: Some(nic),
                channel: device,
                run_dir: run_dir.to_owned(),
            })
            .await;
        match launched {
            Ok(machine) => {
                record.runtime = Some(Runtime { machine, network, channel });
                Ok(guest)
            }
            Err(error) => {
                report_failed_undo(record, self.backends.network.detach(&network).await);
                report_failed_undo(record, self.backends.channel.release(&channel).await);
                Err(error.into())
            }
        }
    }

    /// A client of the agent of a machine that is being started or was just paused, which may be silent for longer than
    /// one of a machine that runs: the host may be busy with starting many.
    pub(super) fn patient_client_of(&self, runtime: &Runtime) -> GuestClient {
        self.client_of(runtime).with_connect_limit(ANSWER_LIMIT.min(self.config.boot_timeout))
    }

    /// Waits for an answer of the agent, or for the end of the machine.
    async fn unless_it_ends<T>(
        &self,
        record: &WorkspaceRecord,
        runtime: &Runtime,
        doing: &'static str,
        answer: impl Future<Output = Result<T, GuestError>>,
    ) -> Result<T, EngineError> {
        let limit = self.config.boot_timeout;
        let gone = async {
            // A machine that is there when the time is over is the agent's silence, which has its own error.
            while !self.backends.hypervisor.wait_exit(&runtime.machine, limit).await? {}
            Ok(())
        };
        tokio::select! {
            answer = answer => {
                answer.map_err(|source| EngineError::operation(doing, record.name.as_str(), source))
            }
            ended = gone => {
                ended.map_err(|error: HypervisorError| EngineError::from(error))?;
                Err(HypervisorError::Gone { id: record.id }.into())
            }
        }
    }

    /// What makes this machine this machine. Fresh entropy and the present time each time it is made.
    fn configuration(
        &self,
        record: &WorkspaceRecord,
        network: NetworkConfiguration,
        begin: Begin,
    ) -> Result<Configure, EngineError> {
        let is_clone = matches!(begin, Begin::Clone(_));
        Ok(Configure {
            hostname: Some(guest_hostname(&record.name)),
            machine_id: Some(record.id.as_uuid().simple().to_string()),
            network: Some(network),
            entropy: Some(self.entropy(record)?),
            grow_root: true,
            set_clock: true,
            clone: is_clone,
            run_hooks: is_clone,
        })
    }

    /// Random bytes of the host's for a guest, as hexadecimal digits.
    pub(super) fn entropy(&self, record: &WorkspaceRecord) -> Result<String, EngineError> {
        let mut entropy = [0; ENTROPY_BYTES];
        let mut filled = 0;
        while filled < entropy.len() {
            filled += getrandom(&mut entropy[filled..], GetRandomFlags::empty())
                .map_err(|source| EngineError::operation("get entropy for", record.name.as_str(), source))?;
        }
        Ok(entropy.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// A client of the agent of a machine that lives.
    pub(super) fn client_of(&self, runtime: &Runtime) -> GuestClient {
        GuestClient::new(Arc::clone(&self.backends.channel), runtime.channel.clone())
    }

    /// Shuts a workspace's machine down: the agent first, then the power button, then the plug. The caller holds its
    /// lock; its record says `Stopped` when this returns, and is written.
    pub(super) async fn shut_down(&self, record: &mut WorkspaceRecord) -> Result<(), EngineError> {
        record.state = WorkspaceState::Stopping;
        self.save(record).await?;
        if let Some(runtime) = record.runtime.clone() {
            let hypervisor = &self.backends.hypervisor;
            if hypervisor.is_alive(&runtime.machine) {
                // A paused guest cannot shut down.
                let resumed = hypervisor.resume(&runtime.machine).await;
                let gone = match resumed {
                    Ok(()) => self.ask_to_power_off(record, &runtime).await,
                    Err(error) => Err(error.into()),
                };
                match gone {
                    Ok(true) => {}
                    Ok(false) => {
                        tracing::warn!(workspace = %record.name, "did not shut down; pulling the plug")
                    }
                    Err(error) => {
                        tracing::warn!(workspace = %record.name, error = %error.report(), "pulling the plug");
                    }
                }
            }
        }
        self.clear_machine(record).await?;
        record.state = WorkspaceState::Stopped;
        self.save(record).await
    }

    /// The two polite steps of the ladder. `true` when the machine is gone.
    async fn ask_to_power_off(
        &self,
        record: &WorkspaceRecord,
        runtime: &Runtime,
    ) -> Result<bool, EngineError> {
        let hypervisor = &self.backends.hypervisor;
        match self.client_of(runtime).shutdown(self.config.stop_grace).await {
            Ok(()) => {
                if hypervisor.wait_exit(&runtime.machine, POWER_OFF_LIMIT).await? {
                    return Ok(true);
                }
            }
            Err(error) => {
                tracing::warn!(workspace = %record.name, %error, "the agent did not shut down; pressing the power button");
            }
        }
        hypervisor.power_button(&runtime.machine).await?;
        Ok(hypervisor.wait_exit(&runtime.machine, POWER_BUTTON_LIMIT).await?)
    }

    /// Ends a workspace's machine, if there is one, and removes what belonged to it. The record's `runtime` is empty
    /// afterwards; the caller writes it.
    pub(super) async fn clear_machine(&self, record: &mut WorkspaceRecord) -> Result<(), EngineError> {
        if let Some(runtime) = &record.runtime {
            self.backends.hypervisor.kill(&runtime.machine).await?;
            self.backends.network.detach(&runtime.network).await?;
            self.backends.channel.release(&runtime.channel).await?;
            record.runtime = None;
        }
        Ok(())
    }

    /// The end of a machine's console, for an error.
    async fn error_log(&self, id: WorkspaceId) -> String {
        let log =
            self.backends.hypervisor.log_tail(&self.run_dir(id), MachineLog::Console, ERROR_LOG_BYTES).await;
        log.map(|bytes| printable(&bytes).trim().to_owned()).unwrap_or_default()
    }

    /// Removes a machine's sockets and logs. Not there: no effect.
    pub(super) fn remove_run_dir(&self, id: WorkspaceId) -> Result<(), EngineError> {
        remove_folder(&self.run_dir(id))
    }
}

/// Makes an empty folder that only its owner may enter, whatever was there.
fn fresh_folder(path: &Path) -> Result<(), EngineError> {
    use std::os::unix::fs::DirBuilderExt;
    remove_folder(path)?;
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(|source| EngineError::StateDir { path: path.display().to_string(), source })
}

fn remove_folder(path: &Path) -> Result<(), EngineError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(EngineError::StateDir { path: path.display().to_string(), source: error })
        }
        _ => Ok(()),
    }
}

/// Says that something of a failed launch is left, for the failure itself is what the caller is told. Opening the state
/// folder finds and removes it.
fn report_failed_undo<E: std::error::Error>(record: &WorkspaceRecord, undone: Result<(), E>) {
    if let Err(error) = undone {
        tracing::warn!(workspace = %record.name, %error, "could not clean up after a failed launch");
    }
}
