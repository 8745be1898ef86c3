//! Snapshots of disks.

use super::{
    kernel::{Change, Detail},
    names::{PENDING, REMOVED, Tag, order_after},
    shared::{Begun, Shared, exists, missing},
};
use crate::{
    storage::{Outcome, PendingSnapshot, StorageError},
    types::{DiskId, SnapshotId},
};

pub(super) fn begin(
    shared: &Shared,
    disk: DiskId,
    snapshot: SnapshotId,
) -> Result<PendingSnapshot, StorageError> {
    let _lock = shared.lock_shared()?;
    let world = shared.find_disk(disk, Detail::Histories)?;
    let (name, volume) = world.disk(disk).ok_or_else(|| missing(format_args!("disk {disk}")))?;
    if let Some(pending) = world.pending(disk) {
        return Err(exists(format_args!("the unfinished snapshot {pending} of disk {disk}")));
    }
    if world.snapshot(disk, snapshot).is_some() {
        return Err(exists(format_args!("snapshot {snapshot}")));
    }
    shared
        .kernel
        .change(name, Change::Set(PENDING, &snapshot.to_string()))
        .map_err(|error| error.during("note a snapshot of", name))?;
    let tag = Tag { order: order_after(world.last_order(disk)), made_from: None, ..volume.tag.clone() };
    shared.begun().insert(disk, Begun { snapshot, volume: name.to_owned(), tag });
    Ok(PendingSnapshot::Instant)
}

pub(super) fn finish(
    shared: &Shared,
    disk: DiskId,
    snapshot: SnapshotId,
    outcome: Outcome,
) -> Result<(), StorageError> {
    let _lock = shared.lock_shared()?;
    let begun = shared.begun().remove(&disk).filter(|begun| begun.snapshot == snapshot);
    if let (Outcome::Commit, Some(Begun { volume, tag, .. })) = (outcome, begun) {
        // The machine stands still meanwhile, so nothing is looked up that `begin` has found: whoever holds the disk's
        // lock begins and finishes, and nobody else has changed the disk in between.
        return take(shared, snapshot, &volume, &tag);
    }
    let world = shared.find_disk(disk, Detail::Histories)?;
    let (name, volume) = world.disk(disk).ok_or_else(|| missing(format_args!("disk {disk}")))?;
    let kept = world.snapshot(disk, snapshot).is_some();
    let pending = world.pending(disk) == Some(snapshot);
    match outcome {
        Outcome::Commit if kept => Ok(()),
        Outcome::Commit if pending => {
            let order = order_after(world.last_order(disk));
            take(shared, snapshot, name, &Tag { order, made_from: None, ..volume.tag.clone() })
        }
        Outcome::Commit => Err(missing(format_args!("snapshot {snapshot}"))),
        Outcome::Abort if kept => Err(exists(format_args!("snapshot {snapshot}"))),
        Outcome::Abort if pending => shared
            .kernel
            .change(name, Change::Clear(PENDING))
            .map_err(|error| error.during("forget the snapshot that was begun of", name)),
        Outcome::Abort => Ok(()),
    }
}

/// Takes it. That it was begun stays noted until the next one is, or until it is deleted: a snapshot that
/// is there is not pending any more.
fn take(shared: &Shared, snapshot: SnapshotId, volume: &str, tag: &Tag) -> Result<(), StorageError> {
    let name = format!("{volume}@{snapshot}");
    match shared.kernel.snapshot(&name, tag) {
        Err(error) if error.exists() => Ok(()),
        result => result.map_err(|error| error.during("take the snapshot", &name)),
    }
}

pub(super) fn delete(shared: &Shared, disk: DiskId, snapshot: SnapshotId) -> Result<(), StorageError> {
    let _lock = shared.lock_alone()?;
    // All, for it may be any disk that was made from it.
    let world = shared.all()?;
    let (volume_name, volume) = world.disk(disk).ok_or_else(|| missing(format_args!("disk {disk}")))?;
    let Some(found) = world.snapshot(disk, snapshot) else { return Ok(()) };
    let dependents = world.made_from(snapshot);
    if !dependents.is_empty() {
        return Err(StorageError::InUse { what: format!("snapshot {snapshot}"), dependents });
    }
    if volume.pending == Some(snapshot) {
        // It was the last one to be begun. Without it, that would look unfinished.
        let cleared = shared.kernel.change(volume_name, Change::Clear(PENDING));
        cleared.map_err(|error| error.during("forget the snapshot that was begun of", volume_name))?;
    }
    if found.snapshot.clones.is_empty() {
        return match shared.kernel.change(found.name, Change::Destroy) {
            Err(error) if !error.missing() => Err(error.during("destroy", found.name)),
            _ => Ok(()),
        };
    }
    // The disk itself was put back to it and stands on it, or somebody else's clone does.
    shared
        .kernel
        .change(found.name, Change::Set(REMOVED, "yes"))
        .map_err(|error| error.during("mark as removed", found.name))?;
    shared.sweep_after(disk);
    Ok(())
}
