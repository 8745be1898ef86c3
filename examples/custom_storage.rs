//! A storage of one's own under the engine: it counts what the engine asks for and leaves the rest to another one. All
//! else is a fake, so this runs anywhere, without QEMU and without an image.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use agentiso_core::{
    Backends, Config, Host, WorkspaceSpec,
    storage::{
        BaseInfo, DiskChain, DiskOrigin, DiskUsage, Inventory, Outcome, PendingSnapshot, ShortenPlan,
        Storage, StorageCapabilities, StorageError,
    },
    testkit::FakeHost,
    types::{BaseId, DiskId, SnapshotId},
};
use async_trait::async_trait;

/// Counts the disks that are made.
struct Counting<S> {
    inner: S,
    disks_made: AtomicUsize,
}

#[async_trait]
impl<S: Storage> Storage for Counting<S> {
    fn capabilities(&self) -> StorageCapabilities {
        let inner = self.inner.capabilities();
        StorageCapabilities { name: format!("counted {}", inner.name), ..inner }
    }

    async fn create_disk(&self, disk: DiskId, origin: DiskOrigin, bytes: u64) -> Result<(), StorageError> {
        self.inner.create_disk(disk, origin, bytes).await?;
        self.disks_made.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn begin_base(&self, base: BaseId, bytes: u64) -> Result<DiskChain, StorageError> {
        self.inner.begin_base(base, bytes).await
    }

    async fn seal_base(&self, base: BaseId) -> Result<BaseInfo, StorageError> {
        self.inner.seal_base(base).await
    }

    async fn delete_base(&self, base: BaseId) -> Result<(), StorageError> {
        self.inner.delete_base(base).await
    }

    async fn open_disk(&self, disk: DiskId) -> Result<DiskChain, StorageError> {
        self.inner.open_disk(disk).await
    }

    async fn begin_snapshot(
        &self,
        disk: DiskId,
        snapshot: SnapshotId,
    ) -> Result<PendingSnapshot, StorageError> {
        self.inner.begin_snapshot(disk, snapshot).await
    }

    async fn finish_snapshot(
        &self,
        disk: DiskId,
        snapshot: SnapshotId,
        outcome: Outcome,
    ) -> Result<(), StorageError> {
        self.inner.finish_snapshot(disk, snapshot, outcome).await
    }

    async fn rollback(&self, disk: DiskId, snapshot: SnapshotId) -> Result<Vec<SnapshotId>, StorageError> {
        self.inner.rollback(disk, snapshot).await
    }

    async fn delete_snapshot(&self, disk: DiskId, snapshot: SnapshotId) -> Result<(), StorageError> {
        self.inner.delete_snapshot(disk, snapshot).await
    }

    async fn destroy_disk(&self, disk: DiskId) -> Result<(), StorageError> {
        self.inner.destroy_disk(disk).await
    }

    async fn shorten_plan(&self, disk: DiskId, most: usize) -> Result<Option<ShortenPlan>, StorageError> {
        self.inner.shorten_plan(disk, most).await
    }

    async fn finish_shorten(&self, disk: DiskId, plan: &ShortenPlan) -> Result<(), StorageError> {
        self.inner.finish_shorten(disk, plan).await
    }

    async fn usage(&self, disk: DiskId) -> Result<DiskUsage, StorageError> {
        self.inner.usage(disk).await
    }

    async fn inventory(&self) -> Result<Inventory, StorageError> {
        self.inner.inventory().await
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::temp_dir().join(format!("agentiso-custom-storage-{}", std::process::id()));
    let made = embed(&folder).await;
    std::fs::remove_dir_all(&folder)?;
    println!("the engine made {} disks", made?);
    Ok(())
}

async fn embed(folder: &std::path::Path) -> Result<usize, Box<dyn std::error::Error>> {
    let fakes = FakeHost::new();
    let storage = Arc::new(Counting { inner: fakes.storage(), disks_made: AtomicUsize::new(0) });
    let backends = Backends {
        hypervisor: Arc::new(fakes.hypervisor()),
        storage: storage.clone(),
        network: Arc::new(fakes.network()),
        channel: Arc::new(fakes.channel()),
    };
    let host = Host::open_with(Config::at(folder), backends).await?;
    agentiso_core::testkit::add_image(&host, "fake", 1 << 30).await?;
    let workspace = host.create(WorkspaceSpec::new("fake")).await?;
    print!("{}", workspace.exec("echo hello from a pretended machine").await?.stdout_text());
    workspace.destroy().await?;
    Ok(storage.disks_made.load(Ordering::Relaxed))
}
