//! The engine on fakes.

mod crash;
mod diff;
mod dying;
mod faults;
mod forks;
mod full;
mod lifecycle;
mod memory;
mod model;
mod names;
mod network;
mod pool;
mod promote;
mod records;
mod recovery;
mod sessions;
mod shorten;
mod snapshots;
mod tree;

use std::{sync::Arc, time::Duration};

use crate::storage::Storage;
use crate::testkit::FakeHost;
use crate::types::{BaseId, Resources};
use crate::{Backends, Config, EngineError, Host, Workspace, WorkspaceSpec};

/// A state folder with an image `test`, on a pretended host.
struct Scene {
    folder: tempfile::TempDir,
    fakes: FakeHost,
    base: BaseId,
    templates: bool,
}

impl Scene {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fakes = FakeHost::new();
        let mut scene = Self { folder, fakes, base: BaseId::random(), templates: false };
        scene.config().layout().prepare().unwrap();
        scene.base = scene.add_image("test", 1 << 30).await;
        scene
    }

    /// The same, with workspaces made from templates.
    async fn with_templates() -> Self {
        Self { templates: true, ..Self::new().await }
    }

    async fn add_image(&self, name: &str, bytes: u64) -> BaseId {
        crate::testkit::add_image(&self.open().await, name, bytes).await.unwrap()
    }

    fn config(&self) -> Config {
        Config {
            lock_timeout: Duration::from_secs(20),
            boot_timeout: Duration::from_secs(10),
            stop_grace: Duration::from_millis(10),
            templates: self.templates,
            ..Config::at(self.folder.path().join("state"))
        }
    }

    fn backends(&self) -> Backends {
        Backends {
            hypervisor: Arc::new(self.fakes.hypervisor()),
            storage: Arc::new(self.fakes.storage()),
            network: Arc::new(self.fakes.network()),
            channel: Arc::new(self.fakes.channel()),
        }
    }

    /// Another process opens the state folder.
    async fn open(&self) -> Host {
        Host::open_with(self.config(), self.backends()).await.unwrap()
    }

    /// What is on the pretended host and in the state folder, apart from the image.
    async fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        let inventory = self.fakes.storage().inventory().await.unwrap();
        found.extend(inventory.disks.iter().map(|disk| format!("disk {disk}")));
        found.extend(
            inventory.bases.iter().filter(|base| **base != self.base).map(|base| format!("base {base}")),
        );
        found.extend(inventory.pending.iter().map(|pending| format!("pending {pending:?}")));
        found.extend(self.fakes.images().iter().map(|image| format!("memory image {image}")));
        let backends = self.backends();
        found.extend(backends.hypervisor.processes().await.unwrap().iter().map(|p| format!("machine {p:?}")));
        found.extend(backends.network.processes().await.unwrap().iter().map(|p| format!("network {p:?}")));
        found.extend(backends.network.leftovers().await.unwrap().iter().map(|card| format!("card {card:?}")));
        found
            .extend(backends.channel.leftovers().await.unwrap().iter().map(|one| format!("channel {one:?}")));
        let layout = self.config().layout();
        for folder in [layout.run(), layout.locks()] {
            let names =
                std::fs::read_dir(folder).unwrap().map(|entry| format!("{:?}", entry.unwrap().path()));
            // The catalogue of images has one lock that stays.
            found.extend(names.filter(|name| !name.contains("images.lock")));
        }
        found
    }
}

async fn create(host: &Host, name: &str) -> Workspace {
    try_create(host, name).await.unwrap()
}

async fn try_create(host: &Host, name: &str) -> Result<Workspace, EngineError> {
    host.create(WorkspaceSpec::new("test").name(name).unwrap().resources(Resources::default())).await
}

/// Waits for a condition; fails the test after 20 s.
async fn eventually(what: &str, condition: impl AsyncFnMut() -> bool) {
    crate::testkit::contract::eventually(what, condition).await;
}
