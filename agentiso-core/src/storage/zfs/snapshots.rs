//! Snapshots of disks.

use super::{
    kernel::Change,
    names::{self, PENDING, REMOVED},
    shared::{Shared, exists, missing},
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
    let world = shared.look(false)?;
    let (name, _) = world.disk(disk).ok_or_else(|| missing(format_args!("disk {disk}")))?;
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
    shared.begun().insert(disk, (snapshot, name.to_owned()));
    Ok(PendingSnapshot::Instant)
}

pub(super) fn finish(
    shared: &Shared,
    disk: DiskId,
    snapshot: SnapshotId,
    outcome: Outcome,
) -> Result<(), StorageError> {
    let _lock = shared.lock_shared()?;
    let begun = shared.begun().remove(&disk).filter(|(id, _)| *id == snapshot);
    if let (Outcome::Commit, Some((_, volume))) = (outcome, begun) {
        // The machine stands still meanwhile, so nothing is looked up that `begin` has found: whoever holds the disk's
        // lock begins and finishes, and nobody else has changed the disk in between.
        return take(shared, disk, snapshot, &volume);
    }
    let world = shared.look(false)?;
    let (name, _) = world.disk(disk).ok_or_else(|| missing(format_args!("disk {disk}")))?;
    let kept = world.snapshot(disk, snapshot).is_some();
    let pending = world.pending(disk) == Some(snapshot);
    match outcome {
        Outcome::Commit if kept => Ok(()),
        Outcome::Commit if pending => take(shared, disk, snapshot, name),
        Outcome::Commit => Err(missing(format_args!("snapshot {snapshot}"))),
        Outcome::Abort if kept => Err(exists(format_args!("snapshot {snapshot}"))),
        Outcome::Abort if pending => shared
            .kernel
            .change(name, Change::Clear(PENDING))
            .map_err(|error| error.during("forget the snapshot that was begun of", name)),
        Outcome::Abort => Ok(()),
    }
}

/// Takes it. That it was begun stays noted until the next one is: a snapshot that is there is not pending any more.
fn take(shared: &Shared, disk: DiskId, snapshot: SnapshotId, volume: &str) -> Result<(), StorageError> {
    let name = format!("{volume}@{snapshot}");
    match shared.kernel.snapshot(&name, &names::snapshot_tags(&shared.state, disk)) {
        Err(error) if error.exists() => Ok(()),
        result => result.map_err(|error| error.during("take the snapshot", &name)),
    }
}

pub(super) fn delete(shared: &Shared, disk: DiskId, snapshot: SnapshotId) -> Result<(), StorageError> {
    let _lock = shared.lock_alone()?;
    let world = shared.look(false)?;
    if world.disk(disk).is_none() {
        return Err(missing(format_args!("disk {disk}")));
    }
    let Some(found) = world.snapshot(disk, snapshot) else { return Ok(()) };
    let dependents = world.made_from(snapshot);
    if !dependents.is_empty() {
        return Err(StorageError::InUse { what: format!("snapshot {snapshot}"), dependents });
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
