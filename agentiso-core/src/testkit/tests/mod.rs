//! The fakes together, with the real client of the guest's agent.

mod agent;
mod machine;

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::{FakeGuest, FakeHost};
use crate::{
    channel::{ChannelRecord, ChannelSpec, GuestChannel, client::GuestClient},
    hypervisor::{Hypervisor, LaunchSpec, Machine, Start},
    storage::{DiskOrigin, Storage},
    types::{BaseId, DiskId, MemoryMib, VcpuCount, WorkspaceId},
};

const DISK_BYTES: u64 = 1 << 30;

/// A machine on a pretended host, with its disk and its channel.
struct Scene {
    host: FakeHost,
    disk: DiskId,
    machine: Machine,
    record: ChannelRecord,
    /// The run folder.
    _folder: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        let host = FakeHost::new();
        let (base, disk) = (BaseId::random(), DiskId::random());
        let storage = host.storage();
        storage.begin_base(base, DISK_BYTES).await.unwrap();
        storage.seal_base(base).await.unwrap();
        storage.create_disk(disk, DiskOrigin::Base(base), DISK_BYTES).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (machine, record) = launch(&host, disk, folder.path().to_owned()).await;
        Self { host, disk, machine, record, _folder: folder }
    }

    fn client(&self) -> GuestClient {
        client(&self.host, &self.record)
    }

    fn guest(&self) -> FakeGuest {
        self.host.guest(self.machine.id).unwrap()
    }
}

fn client(host: &FakeHost, record: &ChannelRecord) -> GuestClient {
    GuestClient::new(Arc::new(host.channel()), record.clone()).with_connect_limit(Duration::from_secs(10))
}

/// Starts a machine of its own on a disk.
async fn launch(host: &FakeHost, disk: DiskId, run_dir: PathBuf) -> (Machine, ChannelRecord) {
    let id = WorkspaceId::random();
    let channel = host.channel().prepare(ChannelSpec { id, run_dir: run_dir.clone() }).await.unwrap();
    let spec = LaunchSpec {
        id,
        uid: None,
        start: Start::Boot,
        vcpus: VcpuCount::default(),
        memory: MemoryMib::default(),
        kernel: PathBuf::new(),
        initramfs: PathBuf::new(),
        agent_options: Vec::new(),
        disk: host.storage().open_disk(disk).await.unwrap(),
        nic: None,
        channel: channel.device,
        run_dir,
    };
    (host.hypervisor().launch(spec).await.unwrap(), channel.record)
}
