//! A dataset of its own for each test, removed when the test ends.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use agentiso_core::{
    storage::{
        DiskChain, DiskOrigin, Outcome, ShortenPlan, Storage,
        zfs::{ZfsConfig, ZfsStorage},
    },
    testkit::contract::storage::StorageFixture,
    types::{BaseId, DiskId, SnapshotId},
};
use async_trait::async_trait;
use tempfile::TempDir;

/// Names the pool.
const POOL_VARIABLE: &str = "AGENTISO_TEST_POOL";

/// Where on a disk the mark is, in bytes.
const MARKER_OFFSET: u64 = 5 << 20;
const MARKER_BYTES: usize = 4096;

/// Size of disks, in bytes.
pub(crate) const BYTES: u64 = 64 << 20;

/// Space that must be free beside a new disk, in bytes: the lab's pool is small.
const RESERVE_BYTES: u64 = 64 << 20;

pub(crate) struct Fixture {
    pub(crate) pool: String,
    pub(crate) dataset: String,
    pub(crate) state: String,
    folder: TempDir,
}

/// Runs a command of ZFS, which knows nothing of agentiso.
pub(crate) fn command(words: &[&str]) -> Output {
    Command::new(words[0]).args(&words[1..]).output().unwrap_or_else(|error| panic!("{words:?}: {error}"))
}

pub(crate) fn run(words: &[&str]) -> String {
    let output = command(words);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Fixture {
    /// Says why not, without a pool.
    pub(crate) async fn new() -> Result<Self, String> {
        let pool = std::env::var(POOL_VARIABLE).map_err(|_| format!("{POOL_VARIABLE} names no pool"))?;
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let (state, dataset) = (format!("state{}", &unique[..8]), format!("{pool}/test-{}", &unique[..8]));
        ZfsStorage::prepare(&dataset, &state).await.unwrap();
        Ok(Self { pool, dataset, state, folder: tempfile::tempdir().unwrap() })
    }

    pub(crate) fn config(&self) -> ZfsConfig {
        let lock = self.folder.path().join("zfs.lock");
        ZfsConfig { reserve_bytes: RESERVE_BYTES, ..ZfsConfig::new(&self.dataset, &self.state, lock) }
    }

    pub(crate) async fn storage(&self) -> ZfsStorage {
        ZfsStorage::open(self.config()).await.unwrap()
    }

    /// What there is below the dataset, as `zfs list` shows it: names without the dataset's own.
    pub(crate) fn listed(&self, kinds: &str) -> Vec<String> {
        let list = run(&["zfs", "list", "-H", "-r", "-o", "name", "-t", kinds, &self.dataset]);
        let prefix = format!("{}/", self.dataset);
        list.lines().filter_map(|line| line.strip_prefix(&prefix)).map(str::to_owned).collect()
    }

    /// A sealed base with a mark; none if it is 0.
    pub(crate) async fn base(&self, marker: u8) -> BaseId {
        let storage = self.storage().await;
        let base = BaseId::random();
        let chain = storage.begin_base(base, BYTES).await.unwrap();
        if marker != 0 {
            write_marker(&chain, marker);
        }
        storage.seal_base(base).await.unwrap();
        base
    }

    pub(crate) async fn disk(&self, origin: DiskOrigin) -> DiskId {
        let disk = DiskId::random();
        self.storage().await.create_disk(disk, origin, BYTES).await.unwrap();
        disk
    }

    pub(crate) async fn path(&self, disk: DiskId) -> PathBuf {
        self.storage().await.open_disk(disk).await.unwrap().layers[0].path.clone()
    }

    pub(crate) async fn write(&self, disk: DiskId, marker: u8) {
        write_marker(&self.storage().await.open_disk(disk).await.unwrap(), marker);
    }

    pub(crate) async fn read(&self, disk: DiskId) -> u8 {
        read_marker(&self.storage().await.open_disk(disk).await.unwrap())
    }

    pub(crate) async fn snapshot(&self, disk: DiskId) -> SnapshotId {
        let (storage, snapshot) = (self.storage().await, SnapshotId::random());
        storage.begin_snapshot(disk, snapshot).await.unwrap();
        storage.finish_snapshot(disk, snapshot, Outcome::Commit).await.unwrap();
        snapshot
    }

    pub(crate) async fn snapshots(&self, disk: DiskId) -> Vec<SnapshotId> {
        let usage = self.storage().await.usage(disk).await.unwrap();
        usage.snapshots.into_iter().map(|(id, _)| id).collect()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // Of a kind that is only printed: the test has an outcome already.
        let output = command(&["zfs", "destroy", "-R", &self.dataset]);
        if !output.status.success() {
            eprintln!("{} is left: {}", self.dataset, String::from_utf8_lossy(&output.stderr));
        }
    }
}

fn device(chain: &DiskChain) -> &Path {
    &chain.layers[0].path
}

pub(crate) fn write_marker(chain: &DiskChain, marker: u8) {
    let device = File::options().read(true).write(true).open(device(chain)).unwrap();
    device.write_all_at(&[marker; MARKER_BYTES], MARKER_OFFSET).unwrap();
    device.sync_all().unwrap();
}

pub(crate) fn read_marker(chain: &DiskChain) -> u8 {
    let mut byte = [0];
    File::open(device(chain)).unwrap().read_exact_at(&mut byte, MARKER_OFFSET).unwrap();
    byte[0]
}

#[async_trait]
impl StorageFixture for Fixture {
    async fn open(&self) -> Box<dyn Storage> {
        Box::new(self.storage().await)
    }

    async fn open_full(&self) -> Box<dyn Storage> {
        let config = ZfsConfig { reserve_bytes: u64::MAX, ..self.config() };
        Box::new(ZfsStorage::open(config).await.unwrap())
    }

    async fn write_marker(&self, chain: &DiskChain, marker: u8) {
        write_marker(chain, marker);
    }

    async fn read_marker(&self, chain: &DiskChain) -> u8 {
        read_marker(chain)
    }

    async fn pull_up(&self, _chain: &DiskChain, _plan: &ShortenPlan) {
        unreachable!("this storage makes no plans");
    }
}
