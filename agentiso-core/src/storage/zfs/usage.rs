//! What there is, and what disks take up.
//!
//! What was written between two snapshots and is still there is a layer: ZFS counts it (`written`), and it is part of
//! each newer snapshot and of the disk, as a qcow2 layer is.

use super::shared::{Shared, chain, missing};
use crate::{
    storage::{DiskUsage, Inventory, StorageError},
    types::DiskId,
};

pub(super) fn usage(shared: &Shared, disk: DiskId) -> Result<DiskUsage, StorageError> {
    let _lock = shared.lock_shared()?;
    let world = shared.all()?;
    let (name, volume) = world.disk(disk).ok_or_else(|| missing(format_args!("disk {disk}")))?;
    let of_others = world.held_by_others(disk);
    let history = world.history(volume);
    let names: Vec<&str> = history.iter().map(|layer| layer.name).chain([name]).collect();
    let written = shared.kernel.written(&names).map_err(|error| error.during("measure", name))?;
    let written = |name: &str| written.get(name).copied().unwrap_or(0);
    let mut usage =
        DiskUsage { bytes: volume.tag.bytes, unique_bytes: written(name), ..DiskUsage::default() };
    let mut unique = Vec::new();
    for layer in history.into_iter().rev() {
        if layer.tag.base().is_some() || of_others.contains(layer.name) {
            usage.shared_bytes += written(layer.name);
        } else {
            usage.unique_bytes += written(layer.name);
            unique.push(layer);
        }
    }
    let mut layers = unique.into_iter().peekable();
    for (id, snapshot) in world.snapshots(disk) {
        let mut held = 0;
        while let Some(layer) = layers.next_if(|layer| layer.tag.order <= snapshot.tag.order) {
            held += written(layer.name);
        }
        usage.snapshots.push((id, held));
    }
    Ok(usage)
}

pub(super) fn inventory(shared: &Shared) -> Result<Inventory, StorageError> {
    let _lock = shared.lock_alone()?;
    let (world, swept) = shared.sweep(shared.all()?)?;
    if let Err(error) = swept {
        tracing::warn!(error = chain(&error), "what destroyed disks left could not be removed");
    }
    let pending = world.disks().filter_map(|(disk, ..)| Some((disk, world.pending(disk)?, None)));
    Ok(Inventory {
        bases: world.bases().collect(),
        disks: world.disks().map(|(disk, ..)| disk).collect(),
        pending: pending.collect(),
    })
}
