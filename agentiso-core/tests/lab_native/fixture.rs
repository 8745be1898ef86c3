//! A state folder of its own whose configuration asks for everything native, with the seed's image on a pool.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use agentiso_core::{
    Backend, Config, Host, Layout, ZfsSetup,
    leases::LeaseKind,
    prepare_zfs,
    storage::zfs::{ZfsConfig, ZfsStorage},
    testkit::leases,
};
use tempfile::TempDir;

pub(crate) use crate::lab::{Undo, run, sh, small as spec};
use crate::{
    homes,
    lab::{self, BOOT_LIMIT},
};

/// Names the pool.
const POOL_VARIABLE: &str = "AGENTISO_TEST_POOL";

/// Which state folder a helper process opens.
pub(crate) const HOME_VARIABLE: &str = "AGENTISO_LAB_NATIVE_HOME";

/// The pool, or why there is none.
pub(crate) fn pool() -> Option<String> {
    let pool = std::env::var(POOL_VARIABLE).ok().filter(|_| std::env::var_os("AGENTISO_LAB").is_some());
    if pool.is_none() {
        println!("skipped: this is not the lab; `cargo xtask lab` runs it");
    }
    pool
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
    pub(crate) home: PathBuf,
    /// None of one that other tests use after this one.
    own: Option<TempDir>,
}

impl Native {
    /// A state folder with the seed's image, gone with the value.
    pub(crate) async fn new() -> Option<Self> {
        let pool = pool()?;
        let folder = lab::home_without_disks(&lab::seed().unwrap());
        let dataset = format!("{pool}/native-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        let native = Self { dataset, home: folder.path().to_owned(), own: Some(folder) };
        native.fill().await;
        Some(native)
    }

    /// The one that tests share which leave in it what was there: the image, and the template that the first of them made,
    /// which takes half a minute here.
    pub(crate) async fn shared() -> Option<Self> {
        let pool = pool()?;
        let seed = lab::seed().unwrap();
        let home = seed.parent().unwrap().join("native");
        let native = Self { dataset: format!("{pool}/native"), home, own: None };
        let complete = native.home.join("complete");
        if !complete.exists() {
            // One that was begun.
            run(&format!(
                "rm -rf {home}; ! zfs list {dataset} 2>/dev/null || zfs destroy -R {dataset}",
                home = native.home.display(),
                dataset = native.dataset
            ));
            std::fs::rename(lab::home_without_disks(&seed).keep(), &native.home).unwrap();
            native.fill().await;
            let host = native.open().await;
            host.warm("debian", spec().resources).await.unwrap();
            host.close().await;
            std::fs::write(complete, "").unwrap();
        }
        Some(native)
    }

    /// Puts disks on the pool, and the seed's image there.
    async fn fill(&self) {
        let set_up = prepare_zfs(&Config::at(&self.home), &self.dataset).await.unwrap();
        let file = self.home.join("agentiso.toml");
        assert_eq!(set_up, ZfsSetup { dataset: self.dataset.clone(), file, written: true });
        lab::copy_image(&lab::seed().unwrap(), &self.storage().await).await;
    }

    pub(crate) fn state_id(&self) -> String {
        run(&format!("zfs get -H -o value agentiso:state {}", self.dataset)).trim().to_owned()
    }

    async fn storage(&self) -> ZfsStorage {
        let lock = Layout::new(&self.home).disks().join("zfs.lock");
        ZfsStorage::open(ZfsConfig::new(&self.dataset, self.state_id(), lock)).await.unwrap()
    }

    pub(crate) async fn open(&self) -> Host {
        Host::open(config(&self.home)).await.unwrap()
    }

    /// What machines have on this host: volumes but for the image's, TAP devices, bridges, tables, elements of rules, groups,
    /// processes, context ids and addresses.
    pub(crate) fn left(&self) -> Vec<String> {
        let state = self.state_id();
        let mut left: Vec<String> = run(&format!("zfs list -H -r -o name -t volume {}", self.dataset))
            .lines()
            .filter(|name| !name.contains("/base/"))
            .map(str::to_owned)
            .collect();
        for kind in ["tun", "bridge"] {
            let links = run(&format!("ip -br link show type {kind} | cut -d' ' -f1"));
            left.extend(links.lines().map(str::to_owned));
        }
        let groups = run("ls -d /sys/fs/cgroup/agentiso/* 2>/dev/null || true");
        left.extend(groups.lines().filter(|group| group.contains(&state)).map(str::to_owned));
        let processes = run("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' || true");
        left.extend(processes.lines().filter(|word| word.starts_with("agentiso-")).map(str::to_owned));
        let held = leases(&Layout::new(&self.home).database()).unwrap();
        for kind in [LeaseKind::VsockCid, LeaseKind::Address] {
            left.extend(held.held(kind).unwrap().iter().map(|lease| format!("{kind:?} {lease:?}")));
        }
        let rules = run("nft list ruleset");
        let own =
            |line: &&str| line.contains("\"at") || line.starts_with("table") && line.contains("agentiso_");
        left.extend(rules.lines().filter(own).map(|line| line.trim().to_owned()));
        left
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Its bridge and addresses would be in the way of the next test.
            homes::destroy_all(config(&self.home));
        }
        if self.own.is_none() {
            return;
        }
        let name = &self.dataset;
        // Of a kind that is only printed: the test has an outcome already.
        let output = Command::new("zfs").args(["destroy", "-R", name]).output();
        if !output.as_ref().is_ok_and(|output| output.status.success()) {
            eprintln!("{name} is left: {output:?}");
        }
    }
}
