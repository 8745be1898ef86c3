//! The lab's state folder, with machines that are reached over vsock.

use std::{any::Any, sync::Arc};

use agentiso_core::{
    Backends, Config, Host, Layout,
    channel::{ChannelDevice, ChannelRecord, ChannelSpec, GuestChannel, Lane, vsock::VsockChannel},
    hypervisor::{
        Hypervisor, LaunchSpec, Machine, MachineMemory, Start,
        qemu::{ChannelKind, DeviceKinds, NicKind, Qemu, QemuConfig},
    },
    leases::{LeaseKind, Leases},
    network::{
        MacAddress, Nic, NicBackend,
        user::{UserNetwork, UserNetworkConfig},
    },
    storage::{
        DiskOrigin, Storage,
        qcow2::{Qcow2Config, Qcow2Storage},
    },
    testkit::{
        contract::{
            PATIENCE,
            channel::{ChannelFixture, ping},
        },
        leases,
    },
    types::{DiskId, MachineUid, SnapshotId, WorkspaceId},
};
use async_trait::async_trait;

use crate::lab::{BOOT_LIMIT, home, throwaway};

/// The id in the names of the processes. Another one than the command line's: tests tidy up after themselves alone.
const STATE_ID: &str = "labvsock";

/// A user id that no workspace of a test has.
const UID: u32 = MachineUid::FIRST + 50_000;

pub(crate) fn leases_of_home() -> Arc<dyn Leases> {
    leases(&Layout::new(home().unwrap()).database()).unwrap()
}

/// Context ids in use, by whom.
pub(crate) fn held() -> Vec<(u32, WorkspaceId)> {
    leases_of_home().held(LeaseKind::VsockCid).unwrap()
}

async fn qemu() -> Qemu {
    let home = home().unwrap();
    let shim = Layout::new(&home).shim();
    let config =
        QemuConfig { state_dir: home, state_id: STATE_ID.to_owned(), program: None, shim, accelerator: None };
    let devices = DeviceKinds { channel: ChannelKind::Vsock, nic: NicKind::Stream };
    Qemu::open(config).await.unwrap().with_devices(devices)
}

async fn storage() -> Qcow2Storage {
    Qcow2Storage::open(Qcow2Config::new(Layout::new(home().unwrap()).disks())).await.unwrap()
}

/// The engine, with this channel.
pub(crate) async fn open_host() -> Host {
    let home = home().unwrap();
    let mut config = Config::at(&home);
    config.boot_timeout = BOOT_LIMIT;
    let backends = Backends {
        hypervisor: Arc::new(qemu().await),
        storage: Arc::new(storage().await),
        network: Arc::new(UserNetwork::new(UserNetworkConfig {
            state_id: STATE_ID.to_owned(),
            shim: Layout::new(&home).shim(),
        })),
        channel: Arc::new(VsockChannel::open(leases_of_home()).unwrap()),
    };
    Host::open_with(config, backends).await.unwrap()
}

/// Machines that begin with the memory of a template, where the agent listens.
pub(crate) struct Fixture {
    image: SnapshotId,
    folder: tempfile::TempDir,
}

impl Fixture {
    pub(crate) async fn new() -> Result<Self, String> {
        home()?;
        let image = match usable_image().await {
            Some(image) => image,
            None => {
                let host = open_host().await;
                throwaway(&host).await.destroy().await.unwrap();
                host.close().await;
                usable_image().await.expect("making a workspace has made a template")
            }
        };
        Ok(Self { image, folder: tempfile::tempdir().unwrap() })
    }
}

async fn usable_image() -> Option<SnapshotId> {
    let qemu = qemu().await;
    for image in qemu.images().await.unwrap() {
        if qemu.image(image).await.is_ok_and(|found| found.obstacle.is_none()) {
            return Some(image);
        }
    }
    None
}

/// A machine that is gone when this was dropped.
struct Running {
    machine: Machine,
    disk: DiskId,
    _peer: std::os::unix::net::UnixStream,
}

impl Drop for Running {
    fn drop(&mut self) {
        let (machine, disk) = (self.machine.clone(), self.disk);
        // On a thread of its own: a test's runtime is the one that is dropping this.
        let tidying = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                qemu().await.kill(&machine).await.unwrap();
                storage().await.destroy_disk(disk).await.unwrap();
            });
        });
        tidying.join().unwrap();
    }
}

#[async_trait]
impl ChannelFixture for Fixture {
    async fn open(&self) -> Box<dyn GuestChannel> {
        Box::new(VsockChannel::open(leases_of_home()).unwrap())
    }

    async fn spec(&self) -> ChannelSpec {
        let id = WorkspaceId::random();
        let run_dir = self.folder.path().join(id.to_string());
        std::fs::create_dir(&run_dir).unwrap();
        ChannelSpec { id, run_dir }
    }

    async fn boot(&self, channel: ChannelDevice, record: &ChannelRecord) -> Box<dyn Any + Send> {
        let (hypervisor, storage) = (qemu().await, storage().await);
        let layout = Layout::new(home().unwrap());
        let image = hypervisor.image(self.image).await.unwrap();
        let (disk, origin) = (DiskId::random(), DiskId::from(*self.image.as_uuid()));
        let run_dir = self.folder.path().join(format!("machine-{}", record.id));
        std::fs::create_dir(&run_dir).unwrap();
        let origin = DiskOrigin::Snapshot { disk: origin, snapshot: self.image };
        let size = agentiso_core::types::Resources::default().disk_gb.bytes();
        storage.create_disk(disk, origin, size).await.unwrap();
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let spec = LaunchSpec {
            id: record.id,
            uid: Some(MachineUid(UID + u32::from(record.id.as_uuid().as_bytes()[0]))),
            start: Start::Restore(self.image),
            vcpus: image.vcpus,
            memory: image.memory,
            kernel: layout.kernel(),
            initramfs: layout.initramfs(),
            agent_options: Vec::new(),
            disk: storage.open_disk(disk).await.unwrap(),
            nic: Some(Nic { mac: MacAddress([2, 0, 0, 0, 0, 1]), backend: NicBackend::Stream(far.into()) }),
            channel,
            run_dir,
        };
        let machine = hypervisor.launch(spec).await.unwrap();
        // Its kernel takes over its new context id first.
        let mut stream = self.open().await.connect(record, Lane::Control, PATIENCE).await.unwrap();
        ping(&mut stream).await;
        Box::new(Running { machine, disk, _peer: near })
    }
}
