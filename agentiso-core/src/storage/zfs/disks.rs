//! Disks: made, found, put back, destroyed.

use super::{
    kernel::Change,
    names::{self, Container, REMOVED},
    shared::{Shared, exists, layer, missing},
};
use crate::{
    storage::{DiskChain, DiskOrigin, StorageError},
    types::{DiskId, SnapshotId},
};

pub(super) fn create(
    shared: &Shared,
    disk: DiskId,
    origin: DiskOrigin,
    bytes: u64,
) -> Result<(), StorageError> {
    // Whoever removes or promotes has the lock alone: the origin stays where it is found.
    let _lock = shared.lock_shared()?;
    let world = shared.look(false)?;
    if world.disk(disk).is_some() {
        return Err(exists(format_args!("disk {disk}")));
    }
    let (container, found, made_from) = match origin {
        DiskOrigin::Base(base) => {
            let sealed = world.sealed(base).ok_or_else(|| missing(format_args!("sealed base {base}")))?;
            (Container::Workspaces, sealed, None)
        }
        DiskOrigin::Snapshot { disk, snapshot } => {
            if world.disk(disk).is_none() {
                return Err(missing(format_args!("disk {disk}")));
            }
            let found = world.snapshot(disk, snapshot);
            let found = found.ok_or_else(|| missing(format_args!("snapshot {snapshot}")))?;
            (Container::Forks, found, Some(snapshot))
        }
    };
    let needed = found.snapshot.bytes;
    if bytes < needed {
        return Err(StorageError::TooSmall { given: bytes, needed });
    }
    shared.check_free_space(&world, bytes, format_args!("disk {disk}"))?;
    let tags = names::disk_tags(&shared.state, disk, made_from);
    let name = shared.root.volume(container, disk);
    match shared.kernel.clone_snapshot(&name, found.name, bytes, &tags) {
        // What was destroyed under that id is still there for others.
        Err(error) if error.exists() => clone_anywhere(shared, container, found.name, bytes, &tags),
        result => result.map_err(|error| error.during("make the volume", &name)),
    }
}

/// Makes a clone under a name of its own.
fn clone_anywhere(
    shared: &Shared,
    container: Container,
    origin: &str,
    bytes: u64,
    tags: &names::Tags,
) -> Result<(), StorageError> {
    let name = shared.root.volume(container, uuid::Uuid::new_v4());
    let made = shared.kernel.clone_snapshot(&name, origin, bytes, tags);
    made.map_err(|error| error.during("make the volume", &name))
}

pub(super) fn open(shared: &Shared, disk: DiskId) -> Result<DiskChain, StorageError> {
    let world = shared.look(false)?;
    let (name, volume) = world.disk(disk).ok_or_else(|| missing(format_args!("disk {disk}")))?;
    let path = shared.kernel.device(name).map_err(|error| error.during("find the device of", name))?;
    Ok(DiskChain { layers: vec![layer(disk.as_uuid(), path, volume.bytes)] })
}

/// A rollback is a clone of the snapshot that takes the disk's place: the newest volume with a disk's tag is the disk.
/// So it takes effect at once or not at all, whoever still has the old device open, and disks that were made from newer
/// snapshots keep them. What is left of the old volume is waste.
pub(super) fn rollback(
    shared: &Shared,
    disk: DiskId,
    snapshot: SnapshotId,
) -> Result<Vec<SnapshotId>, StorageError> {
    let _lock = shared.lock_alone()?;
    let world = shared.look(false)?;
    let (_, volume) = world.disk(disk).ok_or_else(|| missing(format_args!("disk {disk}")))?;
    let snapshots = world.snapshots(disk);
    let at = snapshots.iter().position(|(id, _)| *id == snapshot);
    let at = at.ok_or_else(|| missing(format_args!("snapshot {snapshot}")))?;
    let removed = snapshots[at + 1..].iter().map(|(id, _)| *id).collect();
    let made_from = volume.made_from();
    let container = if made_from.is_some() { Container::Forks } else { Container::Workspaces };
    let tags = names::disk_tags(&shared.state, disk, made_from);
    clone_anywhere(shared, container, snapshots[at].1.name, volume.bytes, &tags)?;
    shared.begun().remove(&disk);
    shared.sweep_after(disk);
    Ok(removed)
}

pub(super) fn destroy(shared: &Shared, disk: DiskId) -> Result<(), StorageError> {
    let _lock = shared.lock_alone()?;
    let world = shared.look(false)?;
    let volumes = world.volumes_of(disk);
    shared.begun().remove(&disk);
    if let [(name, volume)] = volumes.as_slice()
        && volume.snapshots.is_empty()
        && shared.kernel.change(name, Change::Destroy).is_ok()
    {
        return Ok(());
    }
    // The newest last: with it the disk is gone, and without it an older one would take its place.
    for (name, _) in volumes.iter().filter(|(_, volume)| !volume.is_removed()) {
        match shared.kernel.change(name, Change::Set(REMOVED, "yes")) {
            Err(error) if !error.missing() => return Err(error.during("mark as removed", name)),
            _ => {}
        }
    }
    if !volumes.is_empty() {
        shared.sweep_after(disk);
    }
    Ok(())
}

pub(super) fn check_exists(shared: &Shared, disk: DiskId) -> Result<(), StorageError> {
    shared.look(false)?.disk(disk).map(drop).ok_or_else(|| missing(format_args!("disk {disk}")))
}
