//! Machines in a state folder of a test's own.

use std::{
    os::{
        fd::OwnedFd,
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use agentiso_core::{
    channel::ChannelDevice,
    hypervisor::{
        Accelerator, Hypervisor, LaunchSpec, Machine, Start,
        qemu::{Qemu, QemuConfig},
    },
    network::{MacAddress, Nic, NicBackend},
    storage::{
        DiskChain, DiskLayer, DiskOrigin, LayerId, PendingSnapshot, Storage,
        qcow2::{Qcow2Config, Qcow2Storage},
    },
    testkit::contract::hypervisor::HypervisorFixture,
    types::{BaseId, DiskId, MachineUid, MemoryMib, SnapshotId, VcpuCount, WorkspaceId},
};
use async_trait::async_trait;

use crate::guest;

/// Bytes of the disks.
const DISK_BYTES: u64 = 64 * 1024 * 1024;

/// A state folder with what machines need. Dropping it ends every machine that was started from it.
pub(crate) struct Fixture {
    state: tempfile::TempDir,
    pub(crate) state_id: String,
    storage: Qcow2Storage,
    disks: Mutex<Vec<(WorkspaceId, DiskId)>>,
    peers: Mutex<Vec<UnixStream>>,
}

impl Fixture {
    /// `Err` says why machines cannot be started here.
    pub(crate) async fn new() -> Result<Self, String> {
        let has_qemu = Command::new("qemu-system-x86_64").arg("--version").output().is_ok();
        if !has_qemu {
            return Err("qemu-system-x86_64 is not installed".to_owned());
        }
        if crate::ACCELERATOR == Accelerator::Kvm && std::env::var_os("AGENTISO_LAB").is_none() {
            return Err("this is not the lab; `cargo xtask lab` runs it".to_owned());
        }
        let state = tempfile::Builder::new().prefix("agentiso-qemu-").tempdir().unwrap();
        guest::write_kernel(&state.path().join("vmlinux"));
        std::fs::write(state.path().join("initramfs"), [0; 512]).unwrap();
        std::fs::copy(shim_built_with_this_test(), state.path().join("agentiso-shim")).unwrap();
        for (name, mode) in [("vmlinux", 0o644), ("initramfs", 0o644), ("agentiso-shim", 0o755), ("", 0o700)]
        {
            set_mode(&state.path().join(name), mode);
        }
        let storage = Qcow2Storage::open(Qcow2Config::new(state.path().join("disks"))).await.unwrap();
        let state_id = WorkspaceId::random().as_uuid().simple().to_string();
        Ok(Self { state, state_id, storage, disks: Mutex::default(), peers: Mutex::default() })
    }

    pub(crate) fn path(&self) -> &Path {
        self.state.path()
    }

    pub(crate) async fn qemu(&self) -> Qemu {
        let config = QemuConfig {
            state_dir: self.path().to_owned(),
            state_id: self.state_id.clone(),
            program: None,
            shim: self.path().join("agentiso-shim"),
            accelerator: Some(crate::ACCELERATOR),
        };
        Qemu::open(config).await.unwrap()
    }

    pub(crate) async fn new_spec(&self) -> LaunchSpec {
        let id = WorkspaceId::random();
        let run_dir = self.new_folder("run");
        LaunchSpec {
            id,
            uid: uid(),
            start: Start::Boot,
            vcpus: VcpuCount::default(),
            memory: MemoryMib::new(128).unwrap(),
            kernel: self.path().join("vmlinux"),
            initramfs: self.path().join("initramfs"),
            agent_options: Vec::new(),
            disk: self.new_disk(id).await,
            nic: Some(self.new_nic()),
            channel: ChannelDevice::Serial(self.new_sockets(31)),
            run_dir,
        }
    }

    async fn new_disk(&self, id: WorkspaceId) -> DiskChain {
        let (base, disk) = (BaseId::random(), DiskId::random());
        self.storage.begin_base(base, DISK_BYTES).await.unwrap();
        self.storage.seal_base(base).await.unwrap();
        self.storage.create_disk(disk, DiskOrigin::Base(base), DISK_BYTES).await.unwrap();
        self.disks.lock().unwrap().push((id, disk));
        self.storage.open_disk(disk).await.unwrap()
    }

    /// Where the disks are.
    pub(crate) fn storage(&self) -> &Qcow2Storage {
        &self.storage
    }

    /// A machine's disk.
    pub(crate) fn disk_of(&self, id: WorkspaceId) -> DiskId {
        self.disks.lock().unwrap().iter().find(|(owner, _)| *owner == id).unwrap().1
    }

    /// Begins a snapshot of a machine's disk.
    pub(crate) async fn new_layer(&self, id: WorkspaceId) -> DiskLayer {
        let disk = self.disk_of(id);
        let snapshot = SnapshotId::random();
        match self.storage.begin_snapshot(disk, snapshot).await.unwrap() {
            PendingSnapshot::Pivot { to } => to,
            PendingSnapshot::Instant => unreachable!("qcow2 pivots"),
        }
    }

    fn new_nic(&self) -> Nic {
        let (near, far) = UnixStream::pair().unwrap();
        self.peers.lock().unwrap().push(near);
        Nic { mac: MacAddress([2, 0, 0, 0, 0, 1]), backend: NicBackend::Stream(far.into()) }
    }

    fn new_sockets(&self, count: usize) -> Vec<OwnedFd> {
        let folder = self.new_folder("sockets");
        let listen = |slot| UnixListener::bind(folder.join(format!("s{slot:02}"))).unwrap().into();
        (0..count).map(listen).collect()
    }

    pub(crate) fn new_folder(&self, kind: &str) -> PathBuf {
        let folder = self.path().join(kind).join(WorkspaceId::random().to_string());
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // Whatever a failed test left. On a thread of its own: a test's runtime may be the one that is dropping this.
        let config = QemuConfig {
            state_dir: self.path().to_owned(),
            state_id: self.state_id.clone(),
            program: None,
            shim: self.path().join("agentiso-shim"),
            accelerator: Some(crate::ACCELERATOR),
        };
        let tidying = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let qemu = Qemu::open(config).await.unwrap();
                for (_, process) in qemu.processes().await.unwrap() {
                    qemu.kill_process(&process).await.unwrap();
                }
            });
        });
        tidying.join().unwrap();
    }
}

/// The `agentiso-shim` that cargo built for this test, or the one that a test names which runs this one again.
fn shim_built_with_this_test() -> PathBuf {
    std::env::var_os("AGENTISO_TEST_SHIM")
        .map_or_else(|| env!("CARGO_BIN_EXE_agentiso-shim").into(), PathBuf::from)
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The group of an ordinary user who may start such machines.
pub(crate) fn ordinary_group() -> u32 {
    use std::os::unix::fs::MetadataExt;
    const NOGROUP: u32 = 65534;
    match crate::ACCELERATOR {
        Accelerator::Kvm => std::fs::metadata("/dev/kvm").unwrap().gid(),
        _ => NOGROUP,
    }
}

/// Another one each time, if machines have user ids of their own here.
pub(crate) fn uid() -> Option<MachineUid> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    is_root().then(|| MachineUid(MachineUid::FIRST + 1_000 + NEXT.fetch_add(1, Ordering::Relaxed)))
}

#[async_trait]
impl HypervisorFixture for Fixture {
    async fn open(&self) -> Box<dyn Hypervisor> {
        Box::new(self.qemu().await)
    }

    async fn spec(&self) -> LaunchSpec {
        self.new_spec().await
    }

    async fn broken_specs(&self) -> Vec<(&'static str, LaunchSpec)> {
        let garbage = self.path().join("garbage");
        std::fs::write(&garbage, "this is no kernel").unwrap();
        set_mode(&garbage, 0o644);
        let good = || self.new_spec();
        let mut missing_layer = good().await;
        missing_layer.disk.layers[1].path = self.path().join("missing");
        let mut damaged_layer = good().await;
        damaged_layer.disk.layers[0].path = garbage.clone();
        let mut folder_as_layer = good().await;
        folder_as_layer.disk.layers[0].path = self.path().to_owned();
        let mut no_layer = good().await;
        no_layer.disk.layers.clear();
        let mut twice_the_same_layer = good().await;
        let first = twice_the_same_layer.disk.layers[0].id.clone();
        twice_the_same_layer.disk.layers[1].id = first;
        vec![
            ("no kernel", LaunchSpec { kernel: self.path().join("missing"), ..good().await }),
            ("a kernel that is none", LaunchSpec { kernel: garbage.clone(), ..good().await }),
            ("no initramfs", LaunchSpec { initramfs: self.path().join("missing"), ..good().await }),
            ("a layer that is not there", missing_layer),
            ("a layer that is damaged", damaged_layer),
            ("a layer that is a folder", folder_as_layer),
            ("no layer", no_layer),
            ("two layers of one name", twice_the_same_layer),
            ("no serial port", LaunchSpec { channel: ChannelDevice::Serial(Vec::new()), ..good().await }),
            (
                "a port more than there are",
                LaunchSpec { channel: ChannelDevice::Serial(self.new_sockets(32)), ..good().await },
            ),
            (
                "a user id where none belongs, or none",
                LaunchSpec { uid: uid_that_does_not_belong(), ..good().await },
            ),
        ]
    }

    async fn empty_layer(&self, machine: &Machine) -> DiskLayer {
        let chain = self.new_disk(WorkspaceId::random()).await;
        // A layer of nobody's is as good as one that a snapshot of this disk begins.
        let _ = machine;
        DiskLayer { id: LayerId::random(), ..chain.layers[0].clone() }
    }

    async fn crash(&self, machine: &Machine) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(machine.process.pid).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::SEGV).unwrap();
    }
}

fn uid_that_does_not_belong() -> Option<MachineUid> {
    (!is_root()).then_some(MachineUid(MachineUid::FIRST))
}

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
