//! Workspaces whose disks are volumes: the whole engine with real machines, and this storage.

use std::{
    fs::File,
    io::Read,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use agentiso_core::{
    Backends, Config, ForkSpec, Host, Layout, Workspace, WorkspaceSpec,
    channel::serial::SerialChannel,
    hypervisor::qemu::{Qemu, QemuConfig},
    network::user::{UserNetwork, UserNetworkConfig},
    storage::{Inventory, Storage},
    types::{BaseId, DiskGib, MemoryMib, Resources},
};
use tempfile::TempDir;

use crate::fixture::Fixture;

/// A state folder with an image, whose disk is a file.
const SEED_VARIABLE: &str = "AGENTISO_TEST_SEED";

/// What a machine may take to boot where everything is emulated.
const BOOT_LIMIT: Duration = Duration::from_secs(240);

struct Machines {
    host: Host,
    base: BaseId,
    fixture: Fixture,
    _home: TempDir,
}

/// Copies a file onto a device, but for the zeros.
fn copy(from: &Path, to: &Path) {
    let (mut from, to) = (File::open(from).unwrap(), File::options().write(true).open(to).unwrap());
    let zeros = vec![0; 1 << 20];
    let (mut chunk, mut at) = (zeros.clone(), 0);
    loop {
        let count = from.read(&mut chunk).unwrap();
        if count == 0 {
            break;
        }
        if chunk[..count] != zeros[..count] {
            to.write_all_at(&chunk[..count], at).unwrap();
        }
        at += count as u64;
    }
    to.sync_all().unwrap();
}

impl Machines {
    /// A host with the seed's image, on a pool.
    async fn open() -> Self {
        let seed = PathBuf::from(std::env::var_os(SEED_VARIABLE).expect("a state folder with an image"));
        let fixture = Fixture::new().await.unwrap();
        // Where there is room for memory.
        let private = std::fs::Permissions::from_mode(0o700);
        let home = tempfile::Builder::new().permissions(private).tempdir_in(seed.parent().unwrap()).unwrap();
        for part in ["lib", "images"] {
            let copied =
                Command::new("cp").arg("-a").args([seed.join(part), home.path().join(part)]).status();
            assert!(copied.unwrap().success());
        }
        let bases = std::fs::read_dir(seed.join("disks/bases")).unwrap();
        let mut bases = bases.map(|entry| entry.unwrap().path());
        let file = bases.find(|path| path.extension().is_some_and(|extension| extension == "raw")).unwrap();
        let base: BaseId = file.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        let storage = fixture.storage().await;
        let chain = storage.begin_base(base, file.metadata().unwrap().len()).await.unwrap();
        copy(&file, &chain.layers[0].path);
        storage.seal_base(base).await.unwrap();

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
        let resources = Resources {
            memory_mb: MemoryMib::new(256).unwrap(),
            disk_gb: DiskGib::new(1).unwrap(),
            ..Resources::default()
        };
        self.host.create(WorkspaceSpec::new("debian").resources(resources)).await.unwrap()
    }
}

async fn sh(workspace: &Workspace, line: &str) -> String {
    let output = workspace.exec(line).await.unwrap();
    assert!(output.success(), "{line}: {}", output.stderr_text());
    output.stdout_text().trim().to_owned()
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
