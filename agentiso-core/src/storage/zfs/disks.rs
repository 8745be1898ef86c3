//! Disks: made, found, put back, destroyed.

use super::{
    kernel::{Change, Detail, Volume},
    names::{Container, REMOVED, Subject, Tag, order_after},
    pool::BLOCK_BYTES,
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
    let of = match origin {
        DiskOrigin::Base(base) => *base.as_uuid(),
        DiskOrigin::Snapshot { disk, .. } => *disk.as_uuid(),
    };
    let world = shared.find(&[*disk.as_uuid(), of], Detail::Space)?;
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
    let needed = found.tag.bytes;
    if bytes < needed {
        return Err(StorageError::TooSmall { given: bytes, needed });
    }
    shared.check_free_space(&world, bytes, format_args!("disk {disk}"))?;
    let bytes = bytes.next_multiple_of(BLOCK_BYTES);
    let order = order_after(world.last_order(disk));
    let tag = Tag { subject: Subject::Disk(disk), bytes, order, made_from };
    let name = shared.root.volume(container, disk);
    match shared.kernel.clone_snapshot(&name, found.name, &tag) {
        // What was destroyed under that id is still there for others.
        Err(error) if error.exists() => clone_beside(shared, container, disk, found.name, &tag),
        result => result.map_err(|error| error.during("make the volume", &name)),
    }
}

/// Makes a clone whose name is more than the disk's id.
fn clone_beside(
    shared: &Shared,
    container: Container,
    disk: DiskId,
    origin: &str,
    tag: &Tag,
) -> Result<(), StorageError> {
    let name = shared.root.another_volume(container, disk);
    let made = shared.kernel.clone_snapshot(&name, origin, tag);
    made.map_err(|error| error.during("make the volume", &name))
}

pub(super) fn open(shared: &Shared, disk: DiskId) -> Result<DiskChain, StorageError> {
    let world = shared.find_disk(disk, Detail::Volumes)?;
    let (name, volume) = world.disk(disk).ok_or_else(|| missing(format_args!("disk {disk}")))?;
    let path = shared.kernel.device(name).map_err(|error| error.during("find the device of", name))?;
    Ok(DiskChain { layers: vec![layer(disk.as_uuid(), path, volume.tag.bytes)] })
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
    let world = shared.find_disk(disk, Detail::Histories)?;
    let (_, volume) = world.disk(disk).ok_or_else(|| missing(format_args!("disk {disk}")))?;
    let snapshots = world.snapshots(disk);
    let at = snapshots.iter().position(|(id, _)| *id == snapshot);
    let at = at.ok_or_else(|| missing(format_args!("snapshot {snapshot}")))?;
    let removed = snapshots[at + 1..].iter().map(|(id, _)| *id).collect();
    let container = if volume.tag.made_from.is_some() { Container::Forks } else { Container::Workspaces };
    let tag = Tag { order: order_after(world.last_order(disk)), ..volume.tag.clone() };
    clone_beside(shared, container, disk, snapshots[at].1.name, &tag)?;
    shared.begun().remove(&disk);
    shared.sweep_after(disk);
    Ok(removed)
}

pub(super) fn destroy(shared: &Shared, disk: DiskId) -> Result<(), StorageError> {
    let _lock = shared.lock_alone()?;
    let world = shared.find_disk(disk, Detail::Histories)?;
    let volumes = world.volumes_of(disk);
    shared.begun().remove(&disk);
    // The newest last: with it the disk is gone, and without it an older one would take its place.
    for (name, volume) in volumes.iter().filter(|(_, volume)| !volume.removed) {
        if let ([_], true) = (volumes.as_slice(), volume.snapshots.is_empty())
            && shared.kernel.change(name, Change::Destroy).is_ok()
        {
            return Ok(());
        }
        match shared.kernel.change(name, Change::Set(REMOVED, "yes")) {
            Err(error) if !error.missing() => return Err(error.during("mark as removed", name)),
            _ => {}
        }
    }
    if let [(name, volume)] = volumes.as_slice()
        && destroy_whole(shared, disk, name, volume)
    {
        return Ok(());
    }
    if !volumes.is_empty() {
        shared.sweep_after(disk);
    }
    Ok(())
}

/// Removes a volume with its snapshots, if they are the disk's and nobody stands on them: true if it is gone.
fn destroy_whole(shared: &Shared, disk: DiskId, name: &str, volume: &Volume) -> bool {
    let mut snapshots = volume.snapshots.values();
    snapshots.all(|snapshot| snapshot.disk() == Some(disk) && snapshot.clones.is_empty())
        && volume.snapshots.keys().all(|snapshot| shared.kernel.change(snapshot, Change::Destroy).is_ok())
        && shared.kernel.change(name, Change::Destroy).is_ok()
}

pub(super) fn check_exists(shared: &Shared, disk: DiskId) -> Result<(), StorageError> {
    let world = shared.find_disk(disk, Detail::Volumes)?;
    world.disk(disk).map(drop).ok_or_else(|| missing(format_args!("disk {disk}")))
}
