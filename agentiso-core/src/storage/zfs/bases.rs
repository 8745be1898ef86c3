//! Base images' disks: a volume that a machine writes, and the snapshot that it is sealed with.

use std::fs::File;

use super::{
    kernel::Change,
    names::{self, Container, SEALED},
    shared::{Shared, exists, layer, missing},
};
use crate::{
    storage::{BaseInfo, DiskChain, StorageError},
    types::BaseId,
};

pub(super) fn begin(shared: &Shared, base: BaseId, bytes: u64) -> Result<DiskChain, StorageError> {
    let _lock = shared.lock_shared()?;
    let world = shared.look(false)?;
    if world.base(base).is_some() {
        return Err(exists(format_args!("base {base}")));
    }
    shared.check_free_space(&world, bytes, format_args!("base {base}"))?;
    let name = shared.root.volume(Container::Bases, base);
    match shared.kernel.create_volume(&name, bytes, &names::base_tags(&shared.state, base)) {
        Ok(()) => {}
        Err(error) if error.exists() => return Err(exists(format_args!("the volume {name}"))),
        Err(error) => return Err(error.during("make the volume", &name)),
    }
    let path = shared.kernel.device(&name).map_err(|error| error.during("find the device of", &name))?;
    Ok(DiskChain { layers: vec![layer(base.as_uuid(), path, bytes)] })
}

pub(super) fn seal(shared: &Shared, base: BaseId) -> Result<BaseInfo, StorageError> {
    let _lock = shared.lock_shared()?;
    let world = shared.look(false)?;
    let (name, volume) = world.base(base).ok_or_else(|| missing(format_args!("base {base}")))?;
    if let Some(sealed) = world.sealed(base) {
        return Ok(BaseInfo { bytes: sealed.snapshot.bytes, used_bytes: sealed.snapshot.written });
    }
    let path = shared.kernel.device(name).map_err(|error| error.during("find the device of", name))?;
    // What the host's page cache still holds of it is not part of a snapshot.
    let flushed = File::options().read(true).write(true).open(&path).and_then(|device| device.sync_all());
    flushed.map_err(|source| StorageError::Io {
        operation: "flush",
        object: path.display().to_string(),
        source,
    })?;
    let sealed = format!("{name}@{SEALED}");
    shared
        .kernel
        .snapshot(&sealed, &names::base_tags(&shared.state, base))
        .map_err(|error| error.during("take the snapshot", &sealed))?;
    let bytes = volume.bytes;
    let world = shared.look(false)?;
    let sealed = world.sealed(base).ok_or_else(|| missing(format_args!("the snapshot {sealed}")))?;
    Ok(BaseInfo { bytes, used_bytes: sealed.snapshot.written })
}

pub(super) fn delete(shared: &Shared, base: BaseId) -> Result<(), StorageError> {
    let _lock = shared.lock_alone()?;
    let mut world = shared.look(false)?;
    if world.base(base).is_none() {
        return Ok(());
    }
    let dependents = world.above(base);
    if !dependents.is_empty() {
        return Err(StorageError::InUse { what: format!("base {base}"), dependents });
    }
    if world.sealed(base).is_some_and(|sealed| !sealed.snapshot.clones.is_empty()) {
        // Of disks that were destroyed: what an interrupted process left of them.
        shared.sweep(world)?;
        world = shared.look(false)?;
    }
    let sealed = world.sealed(base).map(|sealed| sealed.name);
    let volume = world.base(base).map(|(name, _)| name);
    for name in sealed.into_iter().chain(volume) {
        match shared.kernel.change(name, Change::Destroy) {
            Err(error) if !error.missing() => return Err(error.during("destroy", name)),
            _ => {}
        }
    }
    Ok(())
}
