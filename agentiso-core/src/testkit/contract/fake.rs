//! Fixtures of the fakes. The contract suites run on them as on any backend.

use std::{any::Any, path::PathBuf};

use async_trait::async_trait;

use super::{
    channel::ChannelFixture, hypervisor::HypervisorFixture, network::NetworkFixture, storage::StorageFixture,
};
use crate::{
    channel::{ChannelDevice, ChannelRecord, ChannelSpec, GuestChannel},
    hypervisor::{Hypervisor, LaunchSpec, Machine, Start},
    network::{AttachSpec, Network, NetworkPolicy, NetworkRecord},
    storage::{
        DiskChain, DiskLayer, DiskOrigin, LayerId, PendingSnapshot, ShortenPlan, SnapshotMethod, Storage,
    },
    testkit::{FakeFile, FakeHost, FakeStorage},
    types::{BaseId, DiskId, HostPort, MemoryMib, SnapshotId, VcpuCount, WorkspaceId},
};

/// Size of a disk in checks.
const DISK_BYTES: u64 = 1 << 30;

/// A file whose only byte is the marker.
const MARKER: &str = "/marker";

/// What to launch on a fake host: a new disk from its base each time.
async fn fake_spec(host: &FakeHost, base: BaseId) -> LaunchSpec {
    let storage = host.storage();
    let disk = DiskId::random();
    storage.create_disk(disk, DiskOrigin::Base(base), DISK_BYTES).await.unwrap();
    let id = WorkspaceId::random();
    LaunchSpec {
        id,
        uid: None,
        start: Start::Boot,
        vcpus: VcpuCount::default(),
        memory: MemoryMib::default(),
        kernel: PathBuf::from("/fake/vmlinux"),
        initramfs: PathBuf::from("/fake/initramfs"),
        agent_options: Vec::new(),
        disk: storage.open_disk(disk).await.unwrap(),
        nic: None,
        channel: ChannelDevice::Serial(Vec::new()),
        run_dir: PathBuf::from(format!("/fake/run/{id}")),
    }
}

async fn fake_base(host: &FakeHost) -> BaseId {
    let base = BaseId::random();
    let storage = host.storage();
    storage.begin_base(base, DISK_BYTES).await.unwrap();
    storage.seal_base(base).await.unwrap();
    base
}

/// For [`FakeHypervisor`](crate::testkit::FakeHypervisor).
pub struct FakeHypervisorFixture {
    host: FakeHost,
    base: BaseId,
}

impl FakeHypervisorFixture {
    /// Machines on that host.
    pub async fn new(host: FakeHost) -> Self {
        let base = fake_base(&host).await;
        Self { host, base }
    }
}

#[async_trait]
impl HypervisorFixture for FakeHypervisorFixture {
    async fn open(&self) -> Box<dyn Hypervisor> {
        Box::new(self.host.hypervisor())
    }

    async fn spec(&self) -> LaunchSpec {
        fake_spec(&self.host, self.base).await
    }

    async fn broken_specs(&self) -> Vec<(&'static str, LaunchSpec)> {
        let mut no_disk = self.spec().await;
        no_disk.disk.layers.clear();
        let mut missing_layer = self.spec().await;
        missing_layer.disk.layers[0].id = LayerId::random();
        vec![("no disk", no_disk), ("missing layer", missing_layer)]
    }

    async fn empty_layer(&self, _: &Machine) -> DiskLayer {
        let disk = DiskId::random();
        let storage = self.host.storage();
        storage.create_disk(disk, DiskOrigin::Base(self.base), DISK_BYTES).await.unwrap();
        match storage.begin_snapshot(disk, SnapshotId::random()).await.unwrap() {
            PendingSnapshot::Pivot { to } => to,
            PendingSnapshot::Instant => panic!("a storage that pivots"),
        }
    }

    async fn crash(&self, machine: &Machine) {
        self.host.crash(machine);
    }
}

/// For [`FakeStorage`].
pub struct FakeStorageFixture {
    host: FakeHost,
    method: SnapshotMethod,
}

impl FakeStorageFixture {
    /// Disks on that host, snapshotted by pivoting.
    pub fn pivot(host: FakeHost) -> Self {
        Self { host, method: SnapshotMethod::Pivot }
    }

    /// Disks on that host, snapshotted at once.
    pub fn instant(host: FakeHost) -> Self {
        Self { host, method: SnapshotMethod::Instant }
    }

    fn storage(&self) -> FakeStorage {
        match self.method {
            SnapshotMethod::Pivot => self.host.storage(),
            SnapshotMethod::Instant => self.host.instant_storage(),
        }
    }
}

#[async_trait]
impl StorageFixture for FakeStorageFixture {
    async fn open(&self) -> Box<dyn Storage> {
        self.host.set_disk_full(false);
        Box::new(self.storage())
    }

    async fn open_full(&self) -> Box<dyn Storage> {
        self.host.set_disk_full(true);
        Box::new(self.storage())
    }

    async fn write_marker(&self, chain: &DiskChain, marker: u8) {
        let file = FakeFile { content: vec![marker; 4096], mode: 0o644 };
        self.host.state().disks.write(&chain.layers[0].id, [(MARKER.to_owned(), file)].into());
    }

    async fn pull_up(&self, _: &DiskChain, plan: &ShortenPlan) {
        self.host.state().disks.pull_up(plan);
    }

    async fn read_marker(&self, chain: &DiskChain) -> u8 {
        let files = self.host.state().disks.read(chain.layers.iter().map(|layer| &layer.id));
        files.get(MARKER).map_or(0, |file| file.content[0])
    }
}

/// For [`FakeNetwork`](crate::testkit::FakeNetwork).
pub struct FakeNetworkFixture {
    host: FakeHost,
}

impl FakeNetworkFixture {
    /// Cards on that host.
    pub fn new(host: FakeHost) -> Self {
        Self { host }
    }
}

#[async_trait]
impl NetworkFixture for FakeNetworkFixture {
    async fn open(&self) -> Box<dyn Network> {
        Box::new(self.host.network())
    }

    async fn spec(&self) -> AttachSpec {
        AttachSpec {
            id: WorkspaceId::random(),
            uid: None,
            policy: NetworkPolicy::default(),
            forwards: [].into(),
            run_dir: PathBuf::from("/fake/run"),
        }
    }

    async fn crash(&self, attachment: &NetworkRecord) {
        self.host.crash_network(attachment.id);
    }

    async fn occupy_port(&self) -> (HostPort, Box<dyn Any + Send>) {
        let port = HostPort::new(9000).unwrap();
        self.host.occupy_port(port);
        (port, Box::new(()))
    }

    async fn free_port(&self) -> HostPort {
        HostPort::new(9001).unwrap()
    }

    async fn is_listening(&self, port: HostPort) -> bool {
        self.host.is_listening(port)
    }
}

/// For [`FakeChannel`](crate::testkit::FakeChannel).
pub struct FakeChannelFixture {
    host: FakeHost,
    base: BaseId,
    /// Run folders, which a channel looks for.
    root: PathBuf,
}

impl FakeChannelFixture {
    /// Channels on that host.
    pub async fn new(host: FakeHost) -> Self {
        let base = fake_base(&host).await;
        let root = std::env::temp_dir().join(format!("agentiso-fake-{}", WorkspaceId::random()));
        std::fs::create_dir(&root).unwrap();
        Self { host, base, root }
    }
}

impl Drop for FakeChannelFixture {
    fn drop(&mut self) {
        // Nothing can be done about a folder that will not go.
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// Ends a machine when dropped.
struct Running {
    host: FakeHost,
    machine: Machine,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.host.crash(&self.machine);
    }
}

#[async_trait]
impl ChannelFixture for FakeChannelFixture {
    async fn open(&self) -> Box<dyn GuestChannel> {
        Box::new(self.host.channel())
    }

    async fn spec(&self) -> ChannelSpec {
        let id = WorkspaceId::random();
        let run_dir = self.root.join(id.to_string());
        std::fs::create_dir(&run_dir).unwrap();
        ChannelSpec { id, run_dir }
    }

    async fn boot(&self, device: ChannelDevice, record: &ChannelRecord) -> Box<dyn Any + Send> {
        let mut spec = fake_spec(&self.host, self.base).await;
        spec.id = record.id;
        spec.channel = device;
        let machine = self.host.hypervisor().launch(spec).await.unwrap();
        Box::new(Running { host: self.host.clone(), machine })
    }
}
