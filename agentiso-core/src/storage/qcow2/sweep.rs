//! What there is, and what nothing names.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{
    files::{Folder, TEMPORARY_PREFIX, extension, names},
    manifest::DiskManifest,
};
use crate::{
    storage::{Inventory, LayerFormat, LayerId, StorageError},
    types::{BaseId, DiskId},
};

/// Every manifest of a storage.
#[derive(Debug)]
pub(super) struct Records {
    /// Bases that have a manifest, whatever is in it.
    pub(super) bases: BTreeSet<BaseId>,
    /// Disks whose manifest can be read.
    pub(super) disks: BTreeMap<DiskId, DiskManifest>,
    /// Disks whose manifest is damaged.
    pub(super) damaged: BTreeSet<DiskId>,
}

/// Names in a folder that are an id with this ending.
fn ids_in<T: Ord>(
    folder: &Path,
    ending: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<BTreeSet<T>, StorageError> {
    Ok(names(folder)?.iter().filter_map(|name| name.strip_suffix(ending).and_then(&parse)).collect())
}

impl Records {
    /// Reads them all. The caller holds the lock.
    pub(super) fn read(folder: &Folder) -> Result<Self, StorageError> {
        let mut records = Self {
            bases: ids_in(&folder.bases, ".json", |text| text.parse().ok())?,
            disks: BTreeMap::new(),
            damaged: BTreeSet::new(),
        };
        for disk in ids_in(&folder.disks, ".json", |text| text.parse::<DiskId>().ok())? {
            match folder.read_manifest(&folder.disk_manifest(disk)) {
                Ok(Some(manifest)) => {
                    records.disks.insert(disk, manifest);
                }
                Ok(None) => {}
                Err(StorageError::Damaged { record, reason }) => {
                    tracing::warn!(
                        record,
                        reason,
                        "a disk's record is damaged: no layer is removed until it is destroyed"
                    );
                    records.damaged.insert(disk);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }
}

/// Removes unfinished files, and the layers and bases that nothing names. The caller has the lock alone, so that none
/// of them is one that is being made.
pub(super) fn sweep(folder: &Folder, records: &Records) -> Result<(), StorageError> {
    for part in [&folder.bases, &folder.disks] {
        for name in names(part)?.iter().filter(|name| name.starts_with(TEMPORARY_PREFIX)) {
            folder.remove_unnamed(&part.join(name))?;
        }
    }
    if !records.damaged.is_empty() {
        // Each could be what a damaged manifest named.
        return Ok(());
    }
    let named: BTreeSet<&LayerId> =
        records.disks.values().flat_map(|disk| disk.named_layers().map(|layer| &layer.id)).collect();
    for layer in ids_in(&folder.layers, extension(LayerFormat::Qcow2), LayerId::parse)? {
        if !named.contains(&layer) {
            folder.remove_unnamed(&folder.layer_file(&layer))?;
        }
    }
    let stood_on: BTreeSet<BaseId> = records
        .disks
        .values()
        .flat_map(|disk| disk.named_layers().filter_map(|layer| layer.base))
        .chain(records.bases.iter().copied())
        .collect();
    for base in ids_in(&folder.bases, extension(LayerFormat::Raw), |text| text.parse::<BaseId>().ok())? {
        if !stood_on.contains(&base) {
            folder.remove_unnamed(&folder.base_file(base))?;
        }
    }
    Ok(())
}

pub(super) fn inventory(folder: &Folder) -> Result<Inventory, StorageError> {
    let _lock = folder.lock_alone()?;
    let records = Records::read(folder)?;
    sweep(folder, &records)?;
    let pending = records
        .disks
        .values()
        .filter_map(|disk| {
            disk.pending.as_ref().map(|pending| (disk.id, pending.snapshot, Some(pending.layer.id.clone())))
        })
        .collect();
    let mut disks: Vec<DiskId> = records.disks.into_keys().chain(records.damaged).collect();
    disks.sort();
    Ok(Inventory { bases: records.bases.into_iter().collect(), disks, pending })
}
