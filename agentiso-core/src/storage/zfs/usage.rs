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
    let world = shared.look(true)?;
    let (_, volume) = world.disk(disk).ok_or_else(|| missing(format_args!("disk {disk}")))?;
    let of_others = world.held_by_others(disk);
    let mut usage = DiskUsage { bytes: volume.bytes, unique_bytes: volume.written, ..DiskUsage::default() };
    let mut unique = Vec::new();
    for layer in world.history(volume).into_iter().rev() {
        let written = layer.snapshot.written;
        if layer.snapshot.base().is_some() || of_others.contains(layer.name) {
            usage.shared_bytes += written;
        } else {
            usage.unique_bytes += written;
            unique.push(layer);
        }
    }
    let mut layers = unique.into_iter().peekable();
    for (id, snapshot) in world.snapshots(disk) {
        let mut held = 0;
        while let Some(layer) = layers.next_if(|layer| layer.snapshot.created <= snapshot.snapshot.created) {
            held += layer.snapshot.written;
        }
        usage.snapshots.push((id, held));
    }
    Ok(usage)
}

pub(super) fn inventory(shared: &Shared) -> Result<Inventory, StorageError> {
    let _lock = shared.lock_alone()?;
    let world = shared.look(false)?;
    if !world.chores().is_empty()
        && let Err(error) = shared.sweep(shared.look(false)?)
    {
        tracing::warn!(error = chain(&error), "what destroyed disks left could not be removed");
    }
    let pending = world.disks().filter_map(|(disk, ..)| Some((disk, world.pending(disk)?, None)));
    Ok(Inventory {
        bases: world.bases().collect(),
        disks: world.disks().map(|(disk, ..)| disk).collect(),
        pending: pending.collect(),
    })
}
