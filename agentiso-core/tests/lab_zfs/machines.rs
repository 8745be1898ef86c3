//! Workspaces whose disks are volumes: the whole engine with real machines, and this storage.

use std::sync::Arc;

use agentiso_core::{
    Backends, Config, ForkSpec, Host, Layout, Workspace,
    channel::serial::SerialChannel,
    hypervisor::qemu::{Qemu, QemuConfig},
    network::user::{UserNetwork, UserNetworkConfig},
    storage::{Inventory, Storage},
    types::BaseId,
};
use tempfile::TempDir;

use crate::{
    fixture::Fixture,
    lab::{self, BOOT_LIMIT, sh},
};

struct Machines {
    host: Host,
    base: BaseId,
    fixture: Fixture,
    _home: TempDir,
}

impl Machines {
    /// A host with the seed's image, on a pool.
    async fn open() -> Self {
        let seed = lab::seed().unwrap();
        let fixture = Fixture::new().await.unwrap();
        let home = lab::home_without_disks(&seed);
        let storage = fixture.storage().await;
        let base = lab::copy_image(&seed, &storage).await;

        let mut config = Config::at(home.path());
        config.boot_timeout = BOOT_LIMIT;
        let shim = Layout::new(home.path()).shim();
        let (state_dir, state_id) = (config.state_dir.clone(), fixture.state.clone());
        let qemu = QemuConfig {
            state_dir,
            state_id: state_id.clone(),
            program: None,
            shim: shim.clone(),
            accelerator: None,
        };
        let backends = Backends {
            hypervisor: Arc::new(Qemu::open(qemu).await.unwrap()),
            storage: Arc::new(storage),
            network: Arc::new(UserNetwork::new(UserNetworkConfig { state_id, shim })),
            channel: Arc::new(SerialChannel::new()),
        };
        let host = Host::open_with(config, backends).await.unwrap();
        Self { host, base, fixture, _home: home }
    }

    async fn create(&self) -> Workspace {
        self.host.create(lab::small()).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workspace_lives_forks_and_goes_back_on_volumes() {
    let machines = Machines::open().await;
    let parent = machines.create().await;
    sh(&parent, "echo one > /root/file; sync; echo two > /root/late; echo in memory > /dev/shm/file").await;

    let snapshot = parent.snapshot("before").await.unwrap();
    println!("snapshot: {snapshot:?}");
    let report = parent.fork(ForkSpec { count: 3, ..ForkSpec::default() }).await.unwrap();
    println!("fork: the parent stood still {:?}", report.standstill);
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    sh(&parent, "echo changed > /root/file; sync").await;
    for worker in &report.workers {
        let fork = machines.host.workspace(&worker.name).await.unwrap();
        assert_eq!(sh(&fork, "cat /root/file /root/late /dev/shm/file").await, "one\ntwo\nin memory");
        sh(&fork, "echo $(hostname) > /root/file; sync").await;
    }
    parent.restore("before").await.unwrap();
    assert_eq!(sh(&parent, "cat /root/file /root/late /dev/shm/file").await, "one\ntwo\nin memory");
    parent.destroy().await.unwrap();
    for worker in &report.workers {
        let fork = machines.host.workspace(&worker.name).await.unwrap();
        assert_eq!(sh(&fork, "cat /root/file").await, worker.name);
        fork.destroy().await.unwrap();
    }

    // What is left is the image, and the template that the first workspace was made from.
    let storage = machines.fixture.storage().await;
    let Inventory { bases, disks, pending } = storage.inventory().await.unwrap();
    assert_eq!((bases, pending), (vec![machines.base], vec![]));
    assert!(disks.len() <= 1, "{disks:?}");
    assert_eq!(machines.fixture.listed("volume").len(), 1 + disks.len());
    machines.host.remove_image("debian").await.unwrap();
    assert_eq!(machines.fixture.listed("volume,snapshot"), [""; 0]);
    machines.host.close().await;
}
