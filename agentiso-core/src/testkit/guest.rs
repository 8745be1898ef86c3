use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use agentiso_guest::{hello::Nonce, message::Configuration};
use tokio::{sync::watch, time::Instant};

use super::{
    FakeHost, Faults,
    agent::JobTable,
    host::{HostInner, HostState},
};
use crate::types::WorkspaceId;

/// A file of a fake guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FakeFile {
    /// Its bytes.
    pub content: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
}

/// How a program of a fake guest was started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FakeInvocation {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Its environment.
    pub env: BTreeMap<String, String>,
    /// All of its standard input.
    pub stdin: Vec<u8>,
}

/// What a program of a fake guest did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FakeOutput {
    /// Its exit status.
    pub status: u8,
    /// What it printed on standard output.
    pub stdout: Vec<u8>,
    /// What it printed on standard error.
    pub stderr: Vec<u8>,
}

/// A program of a fake guest.
pub(super) type FakeProgram = Arc<dyn Fn(FakeInvocation) -> FakeOutput + Send + Sync>;

/// Files by absolute path. Folders are there when something is in them.
pub(super) type Files = BTreeMap<String, FakeFile>;

/// The guest in a fake machine. Clones are the same guest.
#[derive(Clone)]
pub struct FakeGuest {
    inner: Arc<GuestInner>,
}

struct GuestInner {
    id: WorkspaceId,
    pid: u32,
    host: Weak<HostInner>,
    /// When the agent begins to answer.
    ready: Instant,
    run: watch::Sender<Run>,
    state: Mutex<GuestState>,
}

/// Whether anything happens in the guest.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    off: bool,
    paused: bool,
    frozen: bool,
}

/// What a capture keeps of a guest. Jobs and connections do not live on in a fake's image.
#[derive(Clone)]
pub(super) struct Memory {
    files: Files,
    env: BTreeMap<String, String>,
    configuration: Configuration,
    next_pid: u32,
    frozen: bool,
}

/// The guest's memory.
#[derive(Default)]
pub(super) struct GuestState {
    /// What its processes see; on the disk only after a sync.
    pub(super) files: Files,
    pub(super) env: BTreeMap<String, String>,
    pub(super) configuration: Configuration,
    pub(super) clones: u32,
    pub(super) jobs: JobTable,
    /// Connections whose request was begun, or was made void and never will be.
    pub(super) fates: HashSet<Nonce>,
    /// Captures that were thawed.
    pub(super) over: Vec<Nonce>,
    pub(super) next_pid: u32,
    pub(super) connections: usize,
    /// By name.
    pub(super) programs: BTreeMap<String, FakeProgram>,
}

/// The guest went away.
#[derive(Debug)]
pub(super) struct PoweredOff;

impl FakeGuest {
    pub(super) fn new(host: &FakeHost, id: WorkspaceId, pid: u32, boot_time: Duration, files: Files) -> Self {
        Self {
            inner: Arc::new(GuestInner {
                id,
                pid,
                host: host.downgrade(),
                ready: Instant::now() + boot_time,
                run: watch::Sender::new(Run::default()),
                state: Mutex::new(GuestState { files, next_pid: 100, ..GuestState::default() }),
            }),
        }
    }

    /// A guest that goes on with the memory of another.
    pub(super) fn with_memory(host: &FakeHost, id: WorkspaceId, pid: u32, memory: Memory) -> Self {
        let Memory { files, env, configuration, next_pid, frozen } = memory;
        let state = GuestState { files, env, configuration, next_pid, ..GuestState::default() };
        Self {
            inner: Arc::new(GuestInner {
                id,
                pid,
                host: host.downgrade(),
                ready: Instant::now(),
                run: watch::Sender::new(Run { frozen, ..Run::default() }),
                state: Mutex::new(state),
            }),
        }
    }

    /// What is in its memory.
    pub(super) fn memory(&self) -> Memory {
        let frozen = self.is_frozen();
        let state = self.state();
        Memory {
            files: state.files.clone(),
            env: state.env.clone(),
            configuration: state.configuration.clone(),
            next_pid: state.next_pid,
            frozen,
        }
    }

    /// A guest without a machine around it, for whoever wants an agent on a stream of his own.
    pub fn detached(host: &FakeHost) -> Self {
        Self::new(host, WorkspaceId::random(), 0, Duration::ZERO, Files::new())
    }

    /// Whose guest.
    pub fn id(&self) -> WorkspaceId {
        self.inner.id
    }

    /// A file as the guest's processes see it.
    pub fn file(&self, path: &str) -> Option<FakeFile> {
        self.state().files.get(path).cloned()
    }

    /// Puts a file there, as a process of the guest would; not synced.
    pub fn write_file(&self, path: &str, content: impl Into<Vec<u8>>) {
        self.state().files.insert(path.to_owned(), FakeFile { content: content.into(), mode: 0o644 });
    }

    /// Removes a file, as a process of the guest would; not synced. Not there: no effect.
    pub fn remove_file(&self, path: &str) {
        self.state().files.remove(path);
    }

    /// Puts a program there, for commands that begin with its name. A clone of the guest does not have it.
    pub fn add_program(
        &self,
        name: &str,
        program: impl Fn(FakeInvocation) -> FakeOutput + Send + Sync + 'static,
    ) {
        self.state().programs.insert(name.to_owned(), Arc::new(program));
    }

    pub(super) fn program(&self, name: &str) -> Option<FakeProgram> {
        self.state().programs.get(name).cloned()
    }

    /// The environment that was set for all commands.
    pub fn env(&self) -> BTreeMap<String, String> {
        self.state().env.clone()
    }

    /// All that the guest was configured with, one configure on top of the other.
    pub fn configuration(&self) -> Configuration {
        self.state().configuration.clone()
    }

    /// How often the agent was told that its machine is a copy of another.
    pub fn clone_configurations(&self) -> u32 {
        self.state().clones
    }

    /// Whether user processes are frozen.
    pub fn is_frozen(&self) -> bool {
        self.inner.run.borrow().frozen
    }

    /// Connections that the agent is serving.
    pub fn connections(&self) -> usize {
        self.state().connections
    }

    /// Cuts the guest's power, and with it every connection.
    pub fn power_off(&self) {
        self.inner.run.send_modify(|run| run.off = true);
    }

    pub(super) fn is_off(&self) -> bool {
        self.inner.run.borrow().off
    }

    pub(super) fn is_paused(&self) -> bool {
        self.inner.run.borrow().paused
    }

    pub(super) fn set_paused(&self, paused: bool) {
        self.inner.run.send_modify(|run| run.paused = paused);
    }

    pub(super) fn set_frozen(&self, frozen: bool) {
        self.inner.run.send_modify(|run| run.frozen = frozen);
    }

    pub(super) fn state(&self) -> MutexGuard<'_, GuestState> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Faults of the host it runs on; none if that is gone.
    pub(super) fn faults(&self) -> Faults {
        FakeHost::upgrade(&self.inner.host).map(|host| host.faults().clone()).unwrap_or_default()
    }

    /// Returns when the power is off.
    pub(super) async fn off(&self) {
        // The sender lives as long as `self`: waiting cannot fail.
        let _ = self.inner.run.subscribe().wait_for(|run| run.off).await;
    }

    /// Returns once the agent can run: booted and not paused.
    pub(super) async fn agent_runs(&self) -> Result<(), PoweredOff> {
        tokio::time::sleep_until(self.inner.ready).await;
        self.wait(|run| !run.paused).await
    }

    /// Returns once user processes can run: not paused and not frozen.
    pub(super) async fn processes_run(&self) -> Result<(), PoweredOff> {
        self.wait(|run| !run.paused && !run.frozen).await
    }

    async fn wait(&self, condition: impl Fn(&Run) -> bool) -> Result<(), PoweredOff> {
        let mut run = self.inner.run.subscribe();
        let run = run.wait_for(|run| run.off || condition(run)).await.map_err(|_| PoweredOff)?;
        if run.off { Err(PoweredOff) } else { Ok(()) }
    }

    /// Writes the guest's files to the layer its machine writes to.
    pub(super) fn sync(&self) {
        let files = self.state().files.clone();
        if let Some(host) = FakeHost::upgrade(&self.inner.host) {
            write_to_disk(&mut host.state(), self.inner.pid, files);
        }
    }

    /// Presses the power button: the guest syncs and powers off, or ignores it if a fault says so.
    pub(super) async fn press_power_button(&self) {
        if self.faults().enter("agent.power_button").await.is_ok() && self.agent_runs().await.is_ok() {
            self.sync();
            self.power_off();
        }
    }
}

fn write_to_disk(host: &mut HostState, pid: u32, files: Files) {
    if let Some(machine) = host.machines.get(&pid)
        && let Some(top) = machine.layers.first()
    {
        let top = top.id.clone();
        host.disks.write(&top, files);
    }
}
