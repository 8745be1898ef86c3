use std::collections::BTreeSet;

use async_trait::async_trait;

use super::{
    FakeHost,
    disks::{Base, Disk, FakeDisks, exists, missing},
    guest::Files,
};
use crate::{
    storage::{
        BaseInfo, DiskChain, DiskOrigin, DiskUsage, Inventory, Outcome, PendingSnapshot, ShortenPlan,
        SnapshotMethod, Storage, StorageCapabilities, StorageError, new_base,
    },
    types::{BaseId, DiskId, SnapshotId},
};

/// A storage in memory.
#[derive(Clone)]
pub struct FakeStorage {
    host: FakeHost,
    method: SnapshotMethod,
}

impl FakeStorage {
    pub(super) fn new(host: FakeHost, method: SnapshotMethod) -> Self {
        Self { host, method }
    }
}

#[async_trait]
impl Storage for FakeStorage {
    fn capabilities(&self) -> StorageCapabilities {
        StorageCapabilities { name: "fake".to_owned(), snapshot: self.method }
    }

    async fn begin_base(&self, base: BaseId, bytes: u64) -> Result<DiskChain, StorageError> {
        self.host
            .call("storage.begin_base", |state| {
                let disks = &mut state.disks;
                if disks.bases.contains_key(&base) {
                    return Err(exists(format_args!("base {base}")));
                }
                if disks.full {
                    return Err(StorageError::Full { what: format!("base {base}") });
                }
                let layer = disks.new_layer(bytes);
                disks.bases.insert(base, Base { layer: layer.clone(), sealed: false });
                Ok(disks.chain(&[layer]))
            })
            .await
    }

    async fn seal_base(&self, base: BaseId) -> Result<BaseInfo, StorageError> {
        self.host
            .call("storage.seal_base", |state| {
                let disks = &mut state.disks;
                let found = disks.bases.get_mut(&base).ok_or_else(|| missing(format_args!("base {base}")))?;
                found.sealed = true;
                let layer = found.layer.clone();
                disks.freeze(&layer);
                Ok(BaseInfo { bytes: disks.describe(&layer).bytes, used_bytes: disks.used(&layer) })
            })
            .await
    }

    async fn delete_base(&self, base: BaseId) -> Result<(), StorageError> {
        self.host
            .call("storage.delete_base", |state| {
                let disks = &mut state.disks;
                let Some(found) = disks.bases.get(&base) else { return Ok(()) };
                // A fork of a disk depends on the base as the disk does.
                let dependents: Vec<DiskId> = disks
                    .disks
                    .iter()
                    .filter(|(_, disk)| disk.all_layers().any(|layer| *layer == found.layer))
                    .map(|(id, _)| *id)
                    .collect();
                if !dependents.is_empty() {
                    return Err(StorageError::InUse { what: format!("base {base}"), dependents });
                }
                disks.bases.remove(&base);
                disks.sweep();
                Ok(())
            })
            .await
    }

    async fn create_disk(&self, disk: DiskId, origin: DiskOrigin, bytes: u64) -> Result<(), StorageError> {
        self.host
            .call("storage.create_disk", |state| {
                let disks = &mut state.disks;
                if disks.disks.contains_key(&disk) {
                    return Err(exists(format_args!("disk {disk}")));
                }
                let beneath = match origin {
                    DiskOrigin::Base(base) => {
                        let found = disks.bases.get(&base).filter(|base| base.sealed);
                        vec![found.ok_or_else(|| missing(format_args!("sealed base {base}")))?.layer.clone()]
                    }
                    DiskOrigin::Snapshot { disk, snapshot } => {
                        let parent = disks.disk(disk)?;
                        let at = parent
                            .snapshot(snapshot)
                            .ok_or_else(|| missing(format_args!("snapshot {snapshot}")))?;
                        parent.snapshots[at].1.clone()
                    }
                };
                let needed = disks.describe(&beneath[0]).bytes;
                if bytes < needed {
                    return Err(StorageError::TooSmall { given: bytes, needed });
                }
                if disks.full {
                    return Err(StorageError::Full { what: format!("disk {disk}") });
                }
                let mut layers = vec![disks.new_layer(bytes)];
                layers.extend(beneath);
                let new =
                    Disk { bytes, origin, layers, snapshots: Vec::new(), pending: None, shortening: None };
                disks.disks.insert(disk, new);
                Ok(())
            })
            .await
    }

    async fn open_disk(&self, disk: DiskId) -> Result<DiskChain, StorageError> {
        self.host
            .call("storage.open_disk", |state| {
                let layers = state.disks.disk(disk)?.layers.clone();
                Ok(state.disks.chain(&layers))
            })
            .await
    }

    async fn begin_snapshot(
        &self,
        disk: DiskId,
        snapshot: SnapshotId,
    ) -> Result<PendingSnapshot, StorageError> {
        let method = self.method;
        self.host
            .call("storage.begin_snapshot", |state| {
                let disks = &mut state.disks;
                let found = disks.disk(disk)?;
                if let Some((pending, _)) = found.pending {
                    return Err(exists(format_args!("unfinished snapshot {pending} of disk {disk}")));
                }
                if found.snapshot(snapshot).is_some() {
                    return Err(exists(format_args!("snapshot {snapshot}")));
                }
                let bytes = found.bytes;
                let to = (method == SnapshotMethod::Pivot).then(|| disks.new_layer(bytes));
                disks.disk(disk)?.pending = Some((snapshot, to.clone()));
                Ok(match to {
                    Some(to) => PendingSnapshot::Pivot { to: disks.describe(&to) },
                    None => PendingSnapshot::Instant,
                })
            })
            .await
    }

    async fn finish_snapshot(
        &self,
        disk: DiskId,
        snapshot: SnapshotId,
        outcome: Outcome,
    ) -> Result<(), StorageError> {
        self.host
            .call("storage.finish_snapshot", |state| {
                let disks = &mut state.disks;
                let found = disks.disk(disk)?;
                let kept = found.snapshot(snapshot).is_some();
                let pending = found.pending.clone().filter(|(id, _)| *id == snapshot);
                match (outcome, pending) {
                    (Outcome::Commit, None) if kept => Ok(()),
                    (Outcome::Commit, None) => Err(missing(format_args!("snapshot {snapshot}"))),
                    (Outcome::Abort, None) if kept => Err(exists(format_args!("snapshot {snapshot}"))),
                    (Outcome::Abort, None) => Ok(()),
                    (Outcome::Commit, Some((_, to))) => {
                        disks.commit(disk, snapshot, to)?;
                        disks.disk(disk)?.pending = None;
                        Ok(())
                    }
                    (Outcome::Abort, Some((_, to))) => {
                        let moved = to.is_some_and(|to| disks.read(std::iter::once(&to)) != Files::new());
                        if moved {
                            let what = format!("the new layer of snapshot {snapshot}");
                            return Err(StorageError::InUse { what, dependents: vec![disk] });
                        }
                        disks.disk(disk)?.pending = None;
                        disks.sweep();
                        Ok(())
                    }
                }
            })
            .await
    }

    async fn rollback(&self, disk: DiskId, snapshot: SnapshotId) -> Result<Vec<SnapshotId>, StorageError> {
        self.host
            .call("storage.rollback", |state| {
                let disks = &mut state.disks;
                let bytes = disks.disk(disk)?.bytes;
                let at = disks
                    .disk(disk)?
                    .snapshot(snapshot)
                    .ok_or_else(|| missing(format_args!("snapshot {snapshot}")))?;
                let top = disks.new_layer(bytes);
                let found = disks.disk(disk)?;
                let beneath = found.snapshots[at].1.clone();
                found.layers = std::iter::once(top).chain(beneath).collect();
                found.pending = None;
                found.shortening = None;
                let removed = found.snapshots.split_off(at + 1).into_iter().map(|(id, _)| id).collect();
                disks.sweep();
                Ok(removed)
            })
            .await
    }

    async fn delete_snapshot(&self, disk: DiskId, snapshot: SnapshotId) -> Result<(), StorageError> {
        self.host
            .call("storage.delete_snapshot", |state| {
                let disks = &mut state.disks;
                if disks.disk(disk)?.snapshot(snapshot).is_none() {
                    return Ok(());
                }
                let dependents = disks.made_from(DiskOrigin::Snapshot { disk, snapshot });
                if !dependents.is_empty() {
                    return Err(StorageError::InUse { what: format!("snapshot {snapshot}"), dependents });
                }
                disks.disk(disk)?.snapshots.retain(|(id, _)| *id != snapshot);
                disks.sweep();
                Ok(())
            })
            .await
    }

    async fn destroy_disk(&self, disk: DiskId) -> Result<(), StorageError> {
        self.host
            .call("storage.destroy_disk", |state| {
                state.disks.disks.remove(&disk);
                state.disks.sweep();
                Ok(())
            })
            .await
    }

    async fn shorten_plan(&self, disk: DiskId, most: usize) -> Result<Option<ShortenPlan>, StorageError> {
        let method = self.method;
        self.host
            .call("storage.shorten_plan", |state| {
                let disks = &mut state.disks;
                let found = disks.disk(disk)?.clone();
                if method == SnapshotMethod::Instant {
                    return Ok(None);
                }
                let noted = found.shortening.clone().filter(|(top, _)| *top == found.layers[0]);
                let base = match noted {
                    Some((_, base)) => base,
                    None => {
                        let shared: Vec<bool> =
                            found.layers.iter().map(|layer| disks.is_shared(layer, disk)).collect();
                        let Some(at) = new_base(&shared, most) else { return Ok(None) };
                        if let Some((pending, _)) = found.pending {
                            return Err(exists(format_args!("unfinished snapshot {pending} of disk {disk}")));
                        }
                        if disks.full {
                            return Err(StorageError::Full {
                                what: format!("a shorter chain of disk {disk}"),
                            });
                        }
                        found.layers[at].clone()
                    }
                };
                let top = found.layers[0].clone();
                let dropped = found.above(&base).unwrap_or_default().to_vec();
                disks.disk(disk)?.shortening = Some((top.clone(), base.clone()));
                let beneath = found.layers.len() - 1 - dropped.len();
                Ok(Some(ShortenPlan { top: disks.describe(&top), dropped, base, beneath }))
            })
            .await
    }

    async fn finish_shorten(&self, disk: DiskId, plan: &ShortenPlan) -> Result<(), StorageError> {
        self.host
            .call("storage.finish_shorten", |state| {
                let found = state.disks.disk(disk)?;
                let between = found.above(&plan.base).filter(|_| found.layers[0] == plan.top.id);
                match between {
                    Some([]) => return Ok(()),
                    Some(between) if between == plan.dropped => {}
                    _ => return Err(missing(format_args!("the chain that disk {disk} was to shorten"))),
                }
                found.layers.drain(1..=plan.dropped.len());
                found.shortening = None;
                state.disks.sweep();
                Ok(())
            })
            .await
    }

    async fn usage(&self, disk: DiskId) -> Result<DiskUsage, StorageError> {
        self.host
            .call("storage.usage", |state| {
                let disks = &mut state.disks;
                let found = disks.disk(disk)?.clone();
                let mut usage = DiskUsage { bytes: found.bytes, ..DiskUsage::default() };
                let mut unique = BTreeSet::new();
                for layer in found.all_layers().collect::<BTreeSet<_>>() {
                    let used = disks.used(layer);
                    if disks.is_shared(layer, disk) {
                        usage.shared_bytes += used;
                    } else {
                        usage.unique_bytes += used;
                        unique.insert(layer);
                    }
                }
                for (id, layers) in &found.snapshots {
                    let held = layers.iter().filter(|layer| unique.remove(layer));
                    usage.snapshots.push((*id, held.map(|layer| disks.used(layer)).sum()));
                }
                Ok(usage)
            })
            .await
    }

    async fn inventory(&self) -> Result<Inventory, StorageError> {
        self.host
            .call("storage.inventory", |state| {
                let FakeDisks { bases, disks, .. } = &state.disks;
                Ok(Inventory {
                    bases: bases.keys().copied().collect(),
                    disks: disks.keys().copied().collect(),
                    pending: disks
                        .iter()
                        .filter_map(|(id, disk)| {
                            disk.pending.as_ref().map(|(snapshot, layer)| (*id, *snapshot, layer.clone()))
                        })
                        .collect(),
                })
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    mod pivot {
        use crate::testkit::{FakeHost, contract::fake::FakeStorageFixture};

        crate::storage_contract!(Ok(FakeStorageFixture::pivot(FakeHost::new())));
    }

    mod instant {
        use crate::testkit::{FakeHost, contract::fake::FakeStorageFixture};

        crate::storage_contract!(Ok(FakeStorageFixture::instant(FakeHost::new())));
    }
}
