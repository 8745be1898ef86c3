use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{runtime::Handle, sync::Semaphore};

use super::{
    FakeChannel, FakeGuest, FakeHypervisor, FakeNetwork, FakeStorage, Faults, InjectedFault,
    disks::FakeDisks, memory::FakeImage,
};
use crate::{
    hypervisor::{Machine, MemoryUsage},
    network::NetworkPolicy,
    storage::{DiskLayer, ShortenPlan},
    types::{GuestPort, HostPort, MemoryMib, ProcessRef, SnapshotId, VcpuCount, WorkspaceId},
};

/// The pretended host that the four fakes share. Clones are the same host.
#[derive(Clone)]
pub struct FakeHost {
    inner: Arc<HostInner>,
}

pub(super) struct HostInner {
    faults: Faults,
    state: Mutex<HostState>,
    /// Where the host was made: its guests run on there, whoever connected to them and is gone.
    runtime: Option<Handle>,
}

/// Everything there is on the host. Never locked across an await.
#[derive(Default)]
pub(super) struct HostState {
    pub(super) machines: BTreeMap<u32, FakeMachine>,
    pub(super) images: BTreeMap<SnapshotId, FakeImage>,
    pub(super) logs: BTreeMap<PathBuf, String>,
    pub(super) disks: FakeDisks,
    pub(super) cards: BTreeMap<u32, FakeCard>,
    pub(super) taken_ports: BTreeSet<HostPort>,
    pub(super) channels: BTreeMap<WorkspaceId, FakeLanes>,
    pub(super) memory: BTreeMap<WorkspaceId, MemoryUsage>,
    pub(super) boot_time: Duration,
    pub(super) copies_slowly: bool,
    next_pid: u32,
}

/// A machine that was launched and not yet removed.
pub(super) struct FakeMachine {
    pub(super) record: Machine,
    pub(super) guest: FakeGuest,
    /// Topmost first.
    pub(super) layers: Vec<DiskLayer>,
    pub(super) vcpus: VcpuCount,
    pub(super) memory: MemoryMib,
    /// Down to which layer it copies others up.
    pub(super) streaming: Option<ShortenPlan>,
}

/// A network card, by the number of its process.
pub(super) struct FakeCard {
    pub(super) id: WorkspaceId,
    pub(super) process: ProcessRef,
    pub(super) alive: bool,
    pub(super) policy: NetworkPolicy,
    pub(super) forwards: BTreeMap<GuestPort, HostPort>,
}

/// The lanes of a channel.
#[derive(Clone)]
pub(super) struct FakeLanes {
    pub(super) work: Arc<Semaphore>,
    pub(super) control: Arc<Semaphore>,
    /// Whether a machine was launched on them: until then a connection waits for one.
    pub(super) machine_seen: bool,
}

impl Default for FakeHost {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeHost {
    /// A host on which there is nothing yet.
    pub fn new() -> Self {
        let state = HostState { next_pid: 1000, ..HostState::default() };
        Self {
            inner: Arc::new(HostInner {
                faults: Faults::default(),
                state: Mutex::new(state),
                runtime: Handle::try_current().ok(),
            }),
        }
    }

    /// Its hypervisor.
    pub fn hypervisor(&self) -> FakeHypervisor {
        FakeHypervisor::new(self.clone())
    }

    /// Its storage, which snapshots by pivoting.
    pub fn storage(&self) -> FakeStorage {
        FakeStorage::new(self.clone(), crate::storage::SnapshotMethod::Pivot)
    }

    /// Its storage, with snapshots that are instant.
    pub fn instant_storage(&self) -> FakeStorage {
        FakeStorage::new(self.clone(), crate::storage::SnapshotMethod::Instant)
    }

    /// Its network.
    pub fn network(&self) -> FakeNetwork {
        FakeNetwork::new(self.clone())
    }

    /// Its channel to guests.
    pub fn channel(&self) -> FakeChannel {
        FakeChannel::new(self.clone())
    }

    /// Runs what happens in a guest.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        match &self.inner.runtime {
            Some(runtime) => drop(runtime.spawn(task)),
            None => drop(tokio::spawn(task)),
        }
    }

    /// What goes wrong on it.
    pub fn faults(&self) -> &Faults {
        &self.inner.faults
    }

    /// How long guests launched from now on take before their agent answers. Nothing at first.
    pub fn set_boot_time(&self, time: Duration) {
        self.state().boot_time = time;
    }

    /// Whether machines that copy layers of their disks up never come to an end of it. At first they have copied all
    /// when somebody asks how far they are.
    pub fn set_copies_slowly(&self, slowly: bool) {
        self.state().copies_slowly = slowly;
    }

    /// How much memory a workspace's machines take up from now on. A little of each kind at first.
    pub fn set_memory_usage(&self, id: WorkspaceId, usage: MemoryUsage) {
        self.state().memory.insert(id, usage);
    }

    /// Whether the host's disk is full from now on.
    pub fn set_disk_full(&self, full: bool) {
        self.state().disks.full = full;
    }

    /// Lets something foreign listen on a port of the host.
    pub fn occupy_port(&self, port: HostPort) {
        self.state().taken_ports.insert(port);
    }

    /// Whether anything listens on a port of the host's loopback.
    pub fn is_listening(&self, port: HostPort) -> bool {
        self.state().port_is_taken(port)
    }

    /// The guest of a workspace's machine, while that runs.
    pub fn guest(&self, id: WorkspaceId) -> Option<FakeGuest> {
        self.state().running_guest(id)
    }

    /// The policy in force for a workspace's network card.
    pub fn policy(&self, id: WorkspaceId) -> Option<NetworkPolicy> {
        self.state().cards.values().find(|card| card.alive && card.id == id).map(|card| card.policy.clone())
    }

    /// Makes every memory image unusable, as a newer hypervisor would, or usable again.
    pub fn set_images_obstacle(&self, obstacle: Option<&str>) {
        for image in self.state().images.values_mut() {
            image.obstacle = obstacle.map(str::to_owned);
        }
    }

    /// The memory images there are.
    pub fn images(&self) -> Vec<SnapshotId> {
        self.state().images.keys().copied().collect()
    }

    /// Ends a machine's process as a crash of it would: nothing is flushed, nothing removed.
    pub fn crash(&self, machine: &Machine) {
        self.state().end_machine(machine.process.pid);
    }

    /// Ends the process behind a workspace's network card, if there is one.
    pub fn crash_network(&self, id: WorkspaceId) {
        for card in self.state().cards.values_mut().filter(|card| card.id == id) {
            card.alive = false;
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, HostState> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn downgrade(&self) -> Weak<HostInner> {
        Arc::downgrade(&self.inner)
    }

    pub(super) fn upgrade(weak: &Weak<HostInner>) -> Option<Self> {
        weak.upgrade().map(|inner| Self { inner })
    }

    /// One call of a fake: the fault armed for it, then its effect, all at once.
    pub(super) async fn call<T, E: From<InjectedFault>>(
        &self,
        method: &'static str,
        act: impl FnOnce(&mut HostState) -> Result<T, E> + Send,
    ) -> Result<T, E> {
        let entered = self.faults().enter(method).await?;
        let result = act(&mut self.state());
        entered.leave().await;
        result
    }
}

impl HostState {
    /// A process of this host that no other process of it is ever taken for.
    pub(super) fn new_process(&mut self) -> ProcessRef {
        self.next_pid += 1;
        ProcessRef {
            pid: self.next_pid,
            start_ticks: u64::from(self.next_pid) * 100,
            boot_id: "fake".to_owned(),
        }
    }

    /// The machine of a record, if its process is still there.
    pub(super) fn running(&mut self, record: &Machine) -> Option<&mut FakeMachine> {
        self.machines
            .get_mut(&record.process.pid)
            .filter(|machine| machine.record.process == record.process && !machine.guest.is_off())
    }

    pub(super) fn running_guest(&self, id: WorkspaceId) -> Option<FakeGuest> {
        self.machines
            .values()
            .find(|machine| machine.record.id == id && !machine.guest.is_off())
            .map(|machine| machine.guest.clone())
    }

    pub(super) fn end_machine(&mut self, pid: u32) {
        if let Some(machine) = self.machines.get(&pid) {
            machine.guest.power_off();
        }
    }

    pub(super) fn port_is_taken(&self, port: HostPort) -> bool {
        self.taken_ports.contains(&port)
            || self
                .cards
                .values()
                .any(|card| card.alive && card.forwards.values().any(|forwarded| *forwarded == port))
    }
}
