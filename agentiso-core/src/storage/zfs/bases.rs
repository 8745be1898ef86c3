//! Base images' disks: a volume that a machine writes, and the snapshot that it is sealed with.

use std::fs::File;

use super::{
    kernel::{Change, Detail},
    names::{Container, SEALED, Subject, Tag, order_after},
    pool::BLOCK_BYTES,
    shared::{Shared, exists, layer, missing, show},
    world::Named,
};
use crate::{
    storage::{BaseInfo, DiskChain, StorageError},
    types::BaseId,
};

pub(super) fn begin(shared: &Shared, base: BaseId, bytes: u64) -> Result<DiskChain, StorageError> {
    let _lock = shared.lock_shared()?;
    let world = shared.find(&[*base.as_uuid()], Detail::Space)?;
    if world.base(base).is_some() {
        return Err(exists(format_args!("base {base}")));
    }
    shared.check_free_space(&world, bytes, format_args!("base {base}"))?;
    let name = shared.root.volume(Container::Bases, base);
    let bytes = bytes.next_multiple_of(BLOCK_BYTES);
    let tag = Tag { subject: Subject::Base(base), bytes, order: order_after(0), made_from: None };
    match shared.kernel.create_volume(&name, &tag) {
        Ok(()) => {}
        Err(error) if error.exists() => return Err(exists(format_args!("the volume {name}"))),
        Err(error) => return Err(error.during("make the volume", &name)),
    }
    let path = shared.kernel.device(&name).map_err(|error| error.during("find the device of", &name))?;
    Ok(DiskChain { layers: vec![layer(base.as_uuid(), path, bytes)] })
}

pub(super) fn seal(shared: &Shared, base: BaseId) -> Result<BaseInfo, StorageError> {
    let _lock = shared.lock_shared()?;
    let world = shared.find(&[*base.as_uuid()], Detail::Histories)?;
    let (name, volume) = world.base(base).ok_or_else(|| missing(format_args!("base {base}")))?;
    if let Some(Named { name, .. }) = world.sealed(base) {
        return info(shared, name, volume.tag.bytes);
    }
    let path = shared.kernel.device(name).map_err(|error| error.during("find the device of", name))?;
    // What the host's page cache still holds of it would not be part of the snapshot.
    let flushed = File::options().read(true).write(true).open(&path).and_then(|device| device.sync_all());
    flushed.map_err(|source| StorageError::Io { operation: "flush", object: show(&path), source })?;
    let sealed = format!("{name}@{SEALED}");
    let tag = Tag { order: order_after(volume.tag.order), ..volume.tag.clone() };
    let taken = shared.kernel.snapshot(&sealed, &tag);
    taken.map_err(|error| error.during("take the snapshot", &sealed))?;
    info(shared, &sealed, volume.tag.bytes)
}

fn info(shared: &Shared, sealed: &str, bytes: u64) -> Result<BaseInfo, StorageError> {
    let written = shared.kernel.written(&[sealed]).map_err(|error| error.during("measure", sealed))?;
    Ok(BaseInfo { bytes, used_bytes: written.get(sealed).copied().unwrap_or(0) })
}

pub(super) fn delete(shared: &Shared, base: BaseId) -> Result<(), StorageError> {
    let _lock = shared.lock_alone()?;
    let mut world = shared.all()?;
    if world.base(base).is_none() {
        return Ok(());
    }
    let dependents = world.above(base);
    if !dependents.is_empty() {
        return Err(StorageError::InUse { what: format!("base {base}"), dependents });
    }
    if world.sealed(base).is_some_and(|sealed| !sealed.snapshot.clones.is_empty()) {
        // Of disks that were destroyed: what an interrupted process left of them.
        world = shared.sweep(world)?.0;
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
