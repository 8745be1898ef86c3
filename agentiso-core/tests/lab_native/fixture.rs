//! A state folder of its own whose configuration asks for everything native, with the seed's image on a pool.

use std::{
    fs::File,
    io::Read,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use agentiso_core::{
    Backend, Config, Host, Layout, Workspace, WorkspaceSpec, ZfsSetup,
    leases::LeaseKind,
    prepare_zfs,
    storage::{
        Storage,
        zfs::{ZfsConfig, ZfsStorage},
    },
    testkit::leases,
    types::{BaseId, DiskGib, MemoryMib, Resources},
};
use tempfile::TempDir;

/// A state folder with an image, whose disk is a file.
const SEED_VARIABLE: &str = "AGENTISO_TEST_SEED";

/// Names the pool.
const POOL_VARIABLE: &str = "AGENTISO_TEST_POOL";

/// What a machine may take to boot where everything is emulated.
const BOOT_LIMIT: Duration = Duration::from_secs(240);

/// Which state folder a helper process opens.
pub(crate) const HOME_VARIABLE: &str = "AGENTISO_LAB_NATIVE_HOME";

/// Runs a program to its end.
pub(crate) fn run(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{line}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Runs something in a guest that must succeed.
pub(crate) async fn sh(workspace: &Workspace, line: &str) -> String {
    let output = workspace.exec(line).await.unwrap();
    assert!(output.success(), "{line}: {}", output.stderr_text());
    output.stdout_text().trim().to_owned()
}

/// The pool, or why there is none.
pub(crate) fn pool() -> Option<String> {
    let pool = std::env::var(POOL_VARIABLE).ok().filter(|_| std::env::var_os("AGENTISO_LAB").is_some());
    if pool.is_none() {
        println!("skipped: this is not the lab; `cargo xtask lab` runs it");
    }
    pool
}

/// A small machine.
pub(crate) fn spec() -> WorkspaceSpec {
    let resources = Resources {
        memory_mb: MemoryMib::new(256).unwrap(),
        disk_gb: DiskGib::new(1).unwrap(),
        ..Resources::default()
    };
    WorkspaceSpec::new("debian").resources(resources)
}

/// The configuration of a state folder: what its file says, and the rest by the builder.
pub(crate) fn config(home: &Path) -> Config {
    let config = Config::at(home);
    let file = config.file();
    let text = std::fs::read_to_string(&file).unwrap();
    let mut config = config
        .with_file(&file, &text)
        .unwrap()
        .force(Backend::Kvm)
        .force(Backend::Netlink)
        .force(Backend::Vsock)
        .force(Backend::Cgroup);
    config.boot_timeout = BOOT_LIMIT;
    config
}

pub(crate) struct Native {
    pub(crate) dataset: String,
    pub(crate) home: TempDir,
}

impl Native {
    /// A state folder with the seed's image.
    pub(crate) async fn new() -> Option<Self> {
        let pool = pool()?;
        let seed = PathBuf::from(std::env::var_os(SEED_VARIABLE).expect("a state folder with an image"));
        let private = std::fs::Permissions::from_mode(0o700);
        let home = tempfile::Builder::new().permissions(private).tempdir_in(seed.parent().unwrap()).unwrap();
        for part in ["lib", "images"] {
            run(&format!("cp -a {}/{part} {}/", seed.display(), home.path().display()));
        }
        let dataset = format!("{pool}/native-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        let native = Self { dataset, home };
        let set_up = prepare_zfs(&Config::at(native.home.path()), &native.dataset).await.unwrap();
        let expected = ZfsSetup {
            dataset: native.dataset.clone(),
            file: native.home.path().join("agentiso.toml"),
            written: true,
        };
        assert_eq!(set_up, expected);
        native.copy_image(&seed).await;
        Some(native)
    }

    async fn copy_image(&self, seed: &Path) {
        let bases = std::fs::read_dir(seed.join("disks/bases")).unwrap();
        let mut bases = bases.map(|entry| entry.unwrap().path());
        let file = bases.find(|path| path.extension().is_some_and(|extension| extension == "raw")).unwrap();
        let base: BaseId = file.file_stem().unwrap().to_str().unwrap().parse().unwrap();
        let storage = self.storage().await;
        let chain = storage.begin_base(base, file.metadata().unwrap().len()).await.unwrap();
        copy(&file, &chain.layers[0].path);
        storage.seal_base(base).await.unwrap();
    }

    pub(crate) fn state_id(&self) -> String {
        run(&format!("zfs get -H -o value agentiso:state {}", self.dataset)).trim().to_owned()
    }

    async fn storage(&self) -> ZfsStorage {
        let lock = Layout::new(self.home.path()).disks().join("zfs.lock");
        ZfsStorage::open(ZfsConfig::new(&self.dataset, self.state_id(), lock)).await.unwrap()
    }

    pub(crate) async fn open(&self) -> Host {
        Host::open(config(self.home.path())).await.unwrap()
    }

    /// What machines have on this host: volumes but for the image's, TAP devices, elements of rules, groups, processes and
    /// context ids.
    pub(crate) fn left(&self) -> Vec<String> {
        let state = self.state_id();
        let mut left: Vec<String> = run(&format!("zfs list -H -r -o name -t volume {}", self.dataset))
            .lines()
            .filter(|name| !name.contains("/base/"))
            .map(str::to_owned)
            .collect();
        left.extend(run("ip -o link show type tun").lines().map(str::to_owned));
        let groups = run("ls -d /sys/fs/cgroup/agentiso/* 2>/dev/null || true");
        left.extend(groups.lines().filter(|group| group.contains(&state)).map(str::to_owned));
        let processes = run("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' || true");
        left.extend(processes.lines().filter(|word| word.starts_with("agentiso-")).map(str::to_owned));
        let held = leases(&Layout::new(self.home.path()).database()).unwrap();
        for kind in [LeaseKind::VsockCid, LeaseKind::Address] {
            left.extend(held.held(kind).unwrap().iter().map(|lease| format!("{kind:?} {lease:?}")));
        }
        let rules = run("nft list ruleset");
        left.extend(rules.lines().filter(|line| line.contains("\"at")).map(|line| line.trim().to_owned()));
        left
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        let name = &self.dataset;
        // Of a kind that is only printed: the test has an outcome already.
        let output = Command::new("zfs").args(["destroy", "-R", name]).output();
        if !output.as_ref().is_ok_and(|output| output.status.success()) {
            eprintln!("{name} is left: {output:?}");
        }
    }
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
