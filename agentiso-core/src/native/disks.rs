//! The storage of a state folder.
//!
//! Disks, images and templates are in one place. A configuration that names another one is refused as long as anything is
//! in the old one: workspaces would seem to have lost their disks.

use std::sync::Arc;

use super::choice::{self, BackendChoice};
use crate::config::{Backend, Config, ConfigError};
use crate::error::EngineError;
use crate::storage::{
    Storage,
    qcow2::{Qcow2Config, Qcow2Storage},
    zfs::{ZfsConfig, ZfsStorage},
};
use crate::store::Store;

/// Under which the records keep the dataset, if disks are in one.
const KEY: &str = "disks";

/// What is beside the qcow2 storage and guards the other.
const ZFS_LOCK: &str = "zfs.lock";

/// Opens the storage that is configured.
pub(super) async fn open(
    config: &Config,
    store: &Arc<Store>,
) -> Result<(Arc<dyn Storage>, BackendChoice), EngineError> {
    let choice = choice::disks(config)?;
    let dataset = config.zfs.dataset.clone().filter(|_| choice.used == Backend::Zfs);
    let storage = open_at(config, store, dataset.as_deref()).await?;
    expect_unmoved(config, store, dataset.as_deref()).await?;
    Ok((storage, choice))
}

/// Whether the storage that is configured can be opened.
pub(super) async fn try_open(config: &Config, store: &Arc<Store>) -> Result<(), EngineError> {
    open_at(config, store, config.zfs.dataset.as_deref()).await.map(drop)
}

/// Refuses to go on with disks in another place than where some are; notes the place otherwise.
pub(super) async fn expect_unmoved(
    config: &Config,
    store: &Arc<Store>,
    dataset: Option<&str>,
) -> Result<(), EngineError> {
    let before = meta(store, |store| store.note(KEY)).await?;
    if before.as_deref() == dataset {
        return Ok(());
    }
    let shown =
        |dataset: Option<&str>| dataset.map_or("qcow2 files".to_owned(), |name| format!("ZFS, in {name}"));
    let moved = |reason: String| {
        let backend = if dataset.is_some() { Backend::Zfs } else { Backend::Qcow2 };
        let remedy = match before.as_deref() {
            None => "take the dataset out of the configuration to go on with them".to_owned(),
            Some(name) => format!("configure `dataset = {name:?}` under [zfs] again to go on with them"),
        };
        let reason = format!(
            "the disks of this state folder are kept as {} ({reason}): {remedy}, or remove them first (`agentiso rm`, \
             `agentiso image rm`), or set AGENTISO_HOME to another folder",
            shown(before.as_deref())
        );
        EngineError::from(ConfigError::Unusable { backend, reason })
    };
    let old = open_at(config, store, before.as_deref()).await;
    let inventory = match old {
        Ok(old) => old.inventory().await?,
        Err(error) => return Err(moved(format!("which cannot be looked at, {}", error.report()))),
    };
    let (bases, disks) = (inventory.bases.len(), inventory.disks.len());
    if bases + disks > 0 {
        return Err(moved(format!("{bases} of images, {disks} of workspaces and templates")));
    }
    let place = dataset.map(str::to_owned);
    meta(store, move |store| store.set_note(KEY, place.as_deref())).await
}

async fn open_at(
    config: &Config,
    store: &Arc<Store>,
    dataset: Option<&str>,
) -> Result<Arc<dyn Storage>, EngineError> {
    let folder = config.layout().disks();
    Ok(match dataset {
        None => Arc::new(Qcow2Storage::open(Qcow2Config::new(folder)).await?),
        Some(dataset) => {
            let wanted = ZfsConfig::new(dataset, store.state_id(), folder.join(ZFS_LOCK));
            let wanted = ZfsConfig { reserve_bytes: config.zfs.reserve_bytes, ..wanted };
            Arc::new(ZfsStorage::open(wanted).await?)
        }
    })
}

async fn meta<T: Send + 'static>(
    store: &Arc<Store>,
    work: impl FnOnce(&Store) -> Result<T, crate::store::StoreError> + Send + 'static,
) -> Result<T, EngineError> {
    let store = Arc::clone(store);
    Ok(tokio::task::spawn_blocking(move || work(&store)).await.map_err(EngineError::Panicked)??)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::DiskOrigin;
    use crate::types::{BaseId, DiskId};

    fn state() -> (tempfile::TempDir, Config, Arc<Store>) {
        let folder = tempfile::tempdir().unwrap();
        let config = Config::at(folder.path().join("state"));
        config.layout().prepare().unwrap();
        let store = Arc::new(Store::open(&config.layout().database()).unwrap());
        (folder, config, store)
    }

    #[tokio::test]
    async fn other_place_is_refused_as_long_as_something_is_in_the_old_one() {
        let (_folder, config, store) = state();
        let (storage, _) = open(&config, &store).await.unwrap();
        let (base, disk) = (BaseId::random(), DiskId::random());
        storage.begin_base(base, 1 << 20).await.unwrap();
        storage.seal_base(base).await.unwrap();
        storage.create_disk(disk, DiskOrigin::Base(base), 1 << 20).await.unwrap();

        let refused = expect_unmoved(&config, &store, Some("tank/a")).await.unwrap_err().report();
        storage.destroy_disk(disk).await.unwrap();
        storage.delete_base(base).await.unwrap();
        expect_unmoved(&config, &store, Some("tank/a")).await.unwrap();

        assert!(refused.contains("qcow2 files") && refused.contains("agentiso image rm"), "{refused}");
        assert_eq!(store.note(KEY).unwrap().as_deref(), Some("tank/a"));
    }

    #[tokio::test]
    async fn place_that_cannot_be_looked_at_is_not_left_and_is_named() {
        let (_folder, config, store) = state();
        store.set_note(KEY, Some("no-such-pool/a")).unwrap();

        let refused = open(&config, &store).await.map(drop).unwrap_err().report();

        assert!(refused.contains("dataset = \"no-such-pool/a\""), "{refused}");
        assert_eq!(store.note(KEY).unwrap().as_deref(), Some("no-such-pool/a"));
    }
}
