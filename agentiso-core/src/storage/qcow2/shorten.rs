//! Short chains again. The layers that a disk leaves live on for its snapshots and for other disks.

use super::{
    disks::{exists, missing, read, replace, sweep_after},
    files::{Folder, allocated},
    manifest::{DiskManifest, Shortening},
    sweep::Records,
};
use crate::{
    storage::{ShortenPlan, StorageError, new_base},
    types::DiskId,
};

pub(super) fn plan(folder: &Folder, disk: DiskId, most: usize) -> Result<Option<ShortenPlan>, StorageError> {
    let _lock = folder.lock_shared()?;
    let mut manifest = read(folder, disk)?;
    if let Some(plan) = noted(folder, &manifest) {
        return Ok(Some(plan));
    }
    if manifest.layers.len() <= most {
        // No need to read what others use.
        return Ok(None);
    }
    let records = Records::read(folder)?;
    let of_others = records.named_by_others(disk);
    let shared: Vec<bool> =
        manifest.layers.iter().map(|layer| layer.base.is_some() || of_others.contains(&layer.id)).collect();
    let Some(base) = new_base(&shared, most) else { return Ok(None) };
    if let Some(pending) = &manifest.pending {
        return Err(exists(format_args!("the unfinished snapshot {} of disk {disk}", pending.snapshot)));
    }
    let mut copied = 0;
    for layer in &manifest.layers[1..base] {
        copied += allocated(&layer.path(folder))?;
    }
    folder.check_free_space_for(copied, format_args!("a shorter chain of disk {disk}"))?;
    manifest.shortening =
        Some(Shortening { top: manifest.layers[0].id.clone(), base: manifest.layers[base].id.clone() });
    replace(folder, &manifest)?;
    Ok(noted(folder, &manifest))
}

/// The plan that was noted, if it is one for the present chain.
fn noted(folder: &Folder, manifest: &DiskManifest) -> Option<ShortenPlan> {
    let Shortening { top, base } = manifest.shortening.as_ref()?;
    let at = manifest.position(base)?;
    let dropped = manifest.layers.get(1..at)?.iter().map(|layer| layer.id.clone()).collect();
    let present = &manifest.layers[0];
    (present.id == *top).then(|| ShortenPlan {
        top: present.describe(folder),
        dropped,
        base: base.clone(),
        beneath: manifest.layers.len() - at,
    })
}

pub(super) fn finish(folder: &Folder, disk: DiskId, plan: &ShortenPlan) -> Result<(), StorageError> {
    let _lock = folder.lock_alone()?;
    let mut manifest = read(folder, disk)?;
    let of_another_chain = || missing(format_args!("the chain that disk {disk} was to shorten"));
    if manifest.layers[0].id != plan.top.id {
        return Err(of_another_chain());
    }
    let at = manifest.position(&plan.base).ok_or_else(of_another_chain)?;
    match manifest.layers.get(1..at) {
        Some([]) => return Ok(()),
        // What a plan does not name was not copied: it must not get lost.
        Some(between) if between.iter().map(|layer| &layer.id).eq(&plan.dropped) => {
            manifest.layers.drain(1..at);
        }
        _ => return Err(of_another_chain()),
    }
    manifest.shortening = None;
    // The user has flushed it; whatever of that is not on the host's disk yet gets there before the rest goes.
    folder.sync_file(&plan.top.path)?;
    replace(folder, &manifest)?;
    sweep_after(folder, disk);
    Ok(())
}
