//! Disks and their snapshots.

use std::{fs, io};

use super::{
    files::{Folder, failed},
    format,
    manifest::{BaseManifest, DiskManifest, Layer, Pending, Snapshot, encode},
    sweep::{Records, sweep},
};
use crate::{
    storage::{DiskChain, DiskOrigin, Outcome, PendingSnapshot, StorageError},
    types::{DiskId, SnapshotId},
};

pub(super) fn missing(what: impl std::fmt::Display) -> StorageError {
    StorageError::NotFound { what: what.to_string() }
}

pub(super) fn exists(what: impl std::fmt::Display) -> StorageError {
    StorageError::Exists { what: what.to_string() }
}

pub(super) fn read(folder: &Folder, disk: DiskId) -> Result<DiskManifest, StorageError> {
    folder.read_manifest(&folder.disk_manifest(disk))?.ok_or_else(|| missing(format_args!("disk {disk}")))
}

pub(super) fn replace(folder: &Folder, manifest: &DiskManifest) -> Result<(), StorageError> {
    let path = folder.disk_manifest(manifest.id);
    folder.replace_manifest(&path, &encode(manifest, &path)?)
}

/// Makes the file of a new layer, before a manifest names it. If then none does, it is swept: removing it here could
/// take it from a manifest that was written and only failed to become durable.
fn make_layer(folder: &Folder, layer: &Layer) -> Result<(), StorageError> {
    folder.create_file(&layer.path(folder), |file| format::write_empty(file, layer.bytes))
}

pub(super) fn create(
    folder: &Folder,
    disk: DiskId,
    origin: DiskOrigin,
    bytes: u64,
) -> Result<(), StorageError> {
    folder.check_free_space(format_args!("disk {disk}"))?;
    let _lock = folder.lock_shared()?;
    let path = folder.disk_manifest(disk);
    if path.exists() {
        return Err(exists(format_args!("disk {disk}")));
    }
    let inherited = beneath(folder, origin)?;
    let needed = inherited.first().map_or(0, |layer| layer.bytes);
    if bytes < needed {
        return Err(StorageError::TooSmall { given: bytes, needed });
    }
    let layer = Layer::new(bytes);
    let manifest = DiskManifest {
        id: disk,
        bytes,
        origin,
        layers: std::iter::once(layer.clone()).chain(inherited).collect(),
        snapshots: Vec::new(),
        pending: None,
        shortening: None,
    };
    let content = encode(&manifest, &path)?;
    make_layer(folder, &layer)?;
    match folder.create_manifest(&path, &content) {
        Err(StorageError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {
            Err(exists(format_args!("disk {disk}")))
        }
        result => result,
    }
}

/// The layers of what a disk begins with, topmost first.
fn beneath(folder: &Folder, origin: DiskOrigin) -> Result<Vec<Layer>, StorageError> {
    match origin {
        DiskOrigin::Base(base) => {
            let found: Option<BaseManifest> = folder.read_manifest(&folder.base_manifest(base))?;
            match found {
                Some(manifest) if manifest.sealed => Ok(vec![Layer::of_base(base, manifest.bytes)]),
                Some(_) => Err(missing(format_args!("sealed base {base}"))),
                None => Err(missing(format_args!("base {base}"))),
            }
        }
        DiskOrigin::Snapshot { disk, snapshot } => {
            let parent = read(folder, disk)?;
            Ok(snapshot_of(&parent, snapshot)?.layers.clone())
        }
    }
}

fn snapshot_of(manifest: &DiskManifest, snapshot: SnapshotId) -> Result<&Snapshot, StorageError> {
    let at = manifest.snapshot(snapshot).ok_or_else(|| missing(format_args!("snapshot {snapshot}")))?;
    Ok(&manifest.snapshots[at])
}

pub(super) fn chain(folder: &Folder, disk: DiskId) -> Result<DiskChain, StorageError> {
    let manifest = read(folder, disk)?;
    if let Some(layer) = manifest.layers.iter().find(|layer| !layer.path(folder).is_file()) {
        return Err(StorageError::Damaged {
            record: folder.disk_manifest(disk).display().to_string(),
            reason: format!("its layer {} is not there", layer.path(folder).display()),
        });
    }
    Ok(manifest.chain(folder))
}

pub(super) fn begin_snapshot(
    folder: &Folder,
    disk: DiskId,
    snapshot: SnapshotId,
) -> Result<PendingSnapshot, StorageError> {
    let _lock = folder.lock_shared()?;
    let mut manifest = read(folder, disk)?;
    if let Some(pending) = &manifest.pending {
        return Err(exists(format_args!("the unfinished snapshot {} of disk {disk}", pending.snapshot)));
    }
    if manifest.snapshot(snapshot).is_some() {
        return Err(exists(format_args!("snapshot {snapshot}")));
    }
    let layer = Layer::new(manifest.bytes);
    manifest.pending = Some(Pending { snapshot, layer: layer.clone() });
    make_layer(folder, &layer)?;
    replace(folder, &manifest)?;
    Ok(PendingSnapshot::Pivot { to: layer.describe(folder) })
}

pub(super) fn finish_snapshot(
    folder: &Folder,
    disk: DiskId,
    snapshot: SnapshotId,
    outcome: Outcome,
) -> Result<(), StorageError> {
    let _lock = folder.lock_shared()?;
    let mut manifest = read(folder, disk)?;
    let kept = manifest.snapshot(snapshot).is_some();
    let pending = manifest.pending.take_if(|pending| pending.snapshot == snapshot);
    match (outcome, pending) {
        (Outcome::Commit, Some(pending)) => {
            let frozen = manifest.layers[0].clone();
            manifest.snapshots.push(Snapshot { id: snapshot, layers: manifest.layers.clone() });
            manifest.layers.insert(0, pending.layer);
            // It was about a layer that nobody writes to any more.
            manifest.shortening = None;
            replace(folder, &manifest)?;
            folder.make_read_only(&frozen.path(folder))
        }
        (Outcome::Commit, None) if kept => {
            // The process that committed it may have been killed before this.
            folder.make_read_only(&snapshot_of(&manifest, snapshot)?.layers[0].path(folder))
        }
        (Outcome::Commit, None) => Err(missing(format_args!("snapshot {snapshot}"))),
        (Outcome::Abort, Some(pending)) => {
            let path = pending.layer.path(folder);
            let length = match fs::metadata(&path) {
                Ok(metadata) => metadata.len(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => format::EMPTY_FILE_BYTES,
                Err(error) => return Err(failed("read the size of", &path)(error)),
            };
            // Whatever is written to a layer goes behind its empty tables.
            if length != format::EMPTY_FILE_BYTES {
                let what = format!("the new layer of snapshot {snapshot}");
                return Err(StorageError::InUse { what, dependents: vec![disk] });
            }
            replace(folder, &manifest)?;
            // No other manifest can name it: only committed snapshots are forked.
            folder.remove_unnamed(&path)
        }
        (Outcome::Abort, None) if kept => Err(exists(format_args!("snapshot {snapshot}"))),
        (Outcome::Abort, None) => Ok(()),
    }
}

pub(super) fn rollback(
    folder: &Folder,
    disk: DiskId,
    snapshot: SnapshotId,
) -> Result<Vec<SnapshotId>, StorageError> {
    let _lock = folder.lock_alone()?;
    let mut manifest = read(folder, disk)?;
    let layer = Layer::new(manifest.bytes);
    let beneath = snapshot_of(&manifest, snapshot)?.layers.clone();
    manifest.layers = std::iter::once(layer.clone()).chain(beneath).collect();
    manifest.pending = None;
    manifest.shortening = None;
    let newer = manifest.snapshot(snapshot).map_or(0, |at| at + 1);
    let removed = manifest.snapshots.split_off(newer).into_iter().map(|snapshot| snapshot.id).collect();
    make_layer(folder, &layer)?;
    replace(folder, &manifest)?;
    sweep_after(folder, disk);
    Ok(removed)
}

pub(super) fn delete_snapshot(
    folder: &Folder,
    disk: DiskId,
    snapshot: SnapshotId,
) -> Result<(), StorageError> {
    let _lock = folder.lock_alone()?;
    let mut manifest = read(folder, disk)?;
    let Some(at) = manifest.snapshot(snapshot) else { return Ok(()) };
    let origin = DiskOrigin::Snapshot { disk, snapshot };
    let records = Records::read(folder)?;
    let dependents: Vec<DiskId> =
        records.disks.values().filter(|other| other.origin == origin).map(|other| other.id).collect();
    if !dependents.is_empty() {
        return Err(StorageError::InUse { what: format!("snapshot {snapshot}"), dependents });
    }
    manifest.snapshots.remove(at);
    replace(folder, &manifest)?;
    // Layers that the disk has left since are nobody's now.
    sweep_after(folder, disk);
    Ok(())
}

pub(super) fn destroy(folder: &Folder, disk: DiskId) -> Result<(), StorageError> {
    let _lock = folder.lock_alone()?;
    folder.remove(&folder.disk_manifest(disk))?;
    let records = Records::read(folder)?;
    sweep(folder, &records)
}

/// Frees what a change that took effect already left behind: if this fails, the next sweep does it.
pub(super) fn sweep_after(folder: &Folder, disk: DiskId) {
    if let Err(error) = Records::read(folder).and_then(|records| sweep(folder, &records)) {
        tracing::warn!(%disk, %error, "layers that are not needed any more could not be removed yet");
    }
}
