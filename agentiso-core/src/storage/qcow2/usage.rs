//! What disks take up, counted in layers by who uses them.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    disks::read,
    files::{Folder, allocated},
    manifest::Layer,
    sweep::Records,
};
use crate::{
    storage::{DiskUsage, LayerId, StorageError},
    types::DiskId,
};

pub(super) fn usage(folder: &Folder, disk: DiskId) -> Result<DiskUsage, StorageError> {
    let _lock = folder.lock_shared()?;
    let manifest = read(folder, disk)?;
    let records = Records::read(folder)?;
    let of_others = records.named_by_others(disk);
    let named: BTreeMap<&LayerId, &Layer> = manifest.named_layers().map(|layer| (&layer.id, layer)).collect();
    let mut usage = DiskUsage { bytes: manifest.bytes, ..DiskUsage::default() };
    let mut unique = BTreeMap::new();
    for (id, layer) in named {
        let used = allocated(&layer.path(folder))?;
        if layer.base.is_some() || of_others.contains(id) {
            usage.shared_bytes += used;
        } else {
            usage.unique_bytes += used;
            unique.insert(id, used);
        }
    }
    for snapshot in &manifest.snapshots {
        // Taken out, so that no layer counts for a second one.
        let held = snapshot.layers.iter().filter_map(|layer| unique.remove(&layer.id)).sum();
        usage.snapshots.push((snapshot.id, held));
    }
    Ok(usage)
}

impl Records {
    /// The layers that disks other than this one, or their snapshots, use.
    pub(super) fn named_by_others(&self, disk: DiskId) -> BTreeSet<&LayerId> {
        self.disks
            .values()
            .filter(|other| other.id != disk)
            .flat_map(|other| other.named_layers().map(|layer| &layer.id))
            .collect()
    }
}
