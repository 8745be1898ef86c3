//! Base images' disks.

use super::{
    files::{Folder, allocated},
    manifest::{BaseManifest, Layer, encode},
    sweep::{Records, sweep},
};
use crate::{
    storage::{BaseInfo, DiskChain, StorageError},
    types::BaseId,
};

pub(super) fn begin(folder: &Folder, base: BaseId, bytes: u64) -> Result<DiskChain, StorageError> {
    folder.check_free_space(format_args!("base {base}"))?;
    // Alone, so that a file without a manifest is one that a killed process left, not one that another is making.
    let _lock = folder.lock_alone()?;
    let manifest = folder.base_manifest(base);
    let exists = || StorageError::Exists { what: format!("base {base}") };
    if manifest.exists() {
        return Err(exists());
    }
    sweep(folder, &Records::read(folder)?)?;
    let file = folder.base_file(base);
    if file.exists() {
        // Only a damaged manifest keeps the sweep from removing it.
        return Err(exists());
    }
    folder.create_file(&file, |new| new.set_length(bytes))?;
    let content = encode(&BaseManifest { id: base, bytes, sealed: false }, &manifest)?;
    folder.create_manifest(&manifest, &content)?;
    Ok(DiskChain { layers: vec![Layer::of_base(base, bytes).describe(folder)] })
}

pub(super) fn seal(folder: &Folder, base: BaseId) -> Result<BaseInfo, StorageError> {
    let _lock = folder.lock_alone()?;
    let path = folder.base_manifest(base);
    let file = folder.base_file(base);
    let mut manifest: BaseManifest = folder
        .read_manifest(&path)?
        .ok_or_else(|| StorageError::NotFound { what: format!("base {base}") })?;
    if !manifest.sealed {
        folder.sync_file(&file)?;
        folder.make_read_only(&file)?;
        manifest.sealed = true;
        folder.replace_manifest(&path, &encode(&manifest, &path)?)?;
    }
    Ok(BaseInfo { bytes: manifest.bytes, used_bytes: allocated(&file)? })
}

pub(super) fn delete(folder: &Folder, base: BaseId) -> Result<(), StorageError> {
    let _lock = folder.lock_alone()?;
    let mut records = Records::read(folder)?;
    let dependents: Vec<_> = records
        .disks
        .values()
        .filter(|disk| disk.named_layers().any(|layer| layer.base == Some(base)))
        .map(|disk| disk.id)
        .collect();
    if !dependents.is_empty() {
        return Err(StorageError::InUse { what: format!("base {base}"), dependents });
    }
    folder.remove(&folder.base_manifest(base))?;
    records.bases.remove(&base);
    sweep(folder, &records)
}
