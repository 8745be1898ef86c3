//! What a pretended host's disks hold.

use std::{collections::BTreeMap, path::PathBuf};

use super::guest::Files;
use crate::{
    storage::{DiskChain, DiskLayer, DiskOrigin, LayerFormat, LayerId, ShortenPlan, StorageError},
    types::{BaseId, DiskId, SnapshotId},
};

/// Bytes that each file of a guest counts for beside its content.
const FILE_OVERHEAD: u64 = 64;

/// Everything the storage holds.
#[derive(Default)]
pub(super) struct FakeDisks {
    pub(super) layers: BTreeMap<LayerId, Layer>,
    pub(super) bases: BTreeMap<BaseId, Base>,
    pub(super) disks: BTreeMap<DiskId, Disk>,
    pub(super) full: bool,
}

pub(super) struct Layer {
    pub(super) bytes: u64,
    /// What the guest sees, once something was written; until then it sees the layer beneath.
    pub(super) content: Option<Files>,
    pub(super) frozen: bool,
}

pub(super) struct Base {
    pub(super) layer: LayerId,
    pub(super) sealed: bool,
}

#[derive(Clone)]
pub(super) struct Disk {
    pub(super) bytes: u64,
    pub(super) origin: DiskOrigin,
    /// Topmost first.
    pub(super) layers: Vec<LayerId>,
    /// Oldest first, each with its layers, topmost first.
    pub(super) snapshots: Vec<(SnapshotId, Vec<LayerId>)>,
    pub(super) pending: Option<(SnapshotId, Option<LayerId>)>,
    /// The plan that was given out: its topmost layer and its base.
    pub(super) shortening: Option<(LayerId, LayerId)>,
}

impl Disk {
    pub(super) fn all_layers(&self) -> impl Iterator<Item = &LayerId> {
        self.layers
            .iter()
            .chain(self.snapshots.iter().flat_map(|(_, layers)| layers))
            .chain(self.pending.iter().filter_map(|(_, layer)| layer.as_ref()))
    }

    pub(super) fn snapshot(&self, snapshot: SnapshotId) -> Option<usize> {
        self.snapshots.iter().position(|(id, _)| *id == snapshot)
    }

    /// The layers between the topmost and this one.
    pub(super) fn above(&self, base: &LayerId) -> Option<&[LayerId]> {
        let at = self.layers.iter().position(|layer| layer == base)?;
        self.layers.get(1..at)
    }
}

pub(super) fn missing(what: impl std::fmt::Display) -> StorageError {
    StorageError::NotFound { what: what.to_string() }
}

pub(super) fn exists(what: impl std::fmt::Display) -> StorageError {
    StorageError::Exists { what: what.to_string() }
}

impl FakeDisks {
    pub(super) fn has_layer(&self, layer: &LayerId) -> bool {
        self.layers.contains_key(layer)
    }

    /// What a guest sees through these layers, topmost first.
    pub(super) fn read<'a>(&self, mut chain: impl Iterator<Item = &'a LayerId>) -> Files {
        chain
            .find_map(|layer| self.layers.get(layer).and_then(|layer| layer.content.clone()))
            .unwrap_or_default()
    }

    /// What a guest wrote. A layer that is gone or frozen takes nothing, as a file that was deleted or is read-only.
    pub(super) fn write(&mut self, layer: &LayerId, files: Files) {
        if let Some(layer) = self.layers.get_mut(layer).filter(|layer| !layer.frozen) {
            layer.content = Some(files);
        }
    }

    pub(super) fn disk(&mut self, disk: DiskId) -> Result<&mut Disk, StorageError> {
        self.disks.get_mut(&disk).ok_or_else(|| missing(format_args!("disk {disk}")))
    }

    pub(super) fn new_layer(&mut self, bytes: u64) -> LayerId {
        let id = LayerId::random();
        self.layers.insert(id.clone(), Layer { bytes, content: None, frozen: false });
        id
    }

    pub(super) fn freeze(&mut self, layer: &LayerId) {
        if let Some(layer) = self.layers.get_mut(layer) {
            layer.frozen = true;
        }
    }

    pub(super) fn describe(&self, id: &LayerId) -> DiskLayer {
        let is_base = self.bases.values().any(|base| base.layer == *id);
        DiskLayer {
            id: id.clone(),
            path: PathBuf::from(format!("/fake/{id}")),
            format: if is_base { LayerFormat::Raw } else { LayerFormat::Qcow2 },
            bytes: self.layers.get(id).map_or(0, |layer| layer.bytes),
        }
    }

    pub(super) fn chain(&self, layers: &[LayerId]) -> DiskChain {
        DiskChain { layers: layers.iter().map(|layer| self.describe(layer)).collect() }
    }

    pub(super) fn used(&self, layer: &LayerId) -> u64 {
        self.layers
            .get(layer)
            .and_then(|layer| layer.content.as_ref())
            .map_or(0, |files| files.values().map(|file| file.content.len() as u64 + FILE_OVERHEAD).sum())
    }

    /// Whether others than this disk use a layer. A base is always shared.
    pub(super) fn is_shared(&self, layer: &LayerId, disk: DiskId) -> bool {
        self.bases.values().any(|base| base.layer == *layer)
            || self
                .disks
                .iter()
                .any(|(id, other)| *id != disk && other.all_layers().any(|other| other == layer))
    }

    /// Copies up into the first layer what those between it and the base hold, as a machine does for a [`ShortenPlan`].
    pub(super) fn pull_up(&mut self, plan: &ShortenPlan) {
        let content = self.layers.get(&plan.top.id).and_then(|layer| layer.content.clone());
        let beneath = || plan.dropped.iter().find_map(|layer| self.layers.get(layer)?.content.clone());
        if let Some(files) = content.or_else(beneath) {
            self.write(&plan.top.id, files);
        }
    }

    pub(super) fn made_from(&self, origin: DiskOrigin) -> Vec<DiskId> {
        self.disks.iter().filter(|(_, disk)| disk.origin == origin).map(|(id, _)| *id).collect()
    }

    /// Removes the layers that nothing refers to.
    pub(super) fn sweep(&mut self) {
        let Self { layers, bases, disks, .. } = self;
        layers.retain(|id, _| {
            bases.values().any(|base| base.layer == *id)
                || disks.values().any(|disk| disk.all_layers().any(|layer| layer == id))
        });
    }

    pub(super) fn commit(
        &mut self,
        disk: DiskId,
        snapshot: SnapshotId,
        to: Option<LayerId>,
    ) -> Result<(), StorageError> {
        let bytes = self.disk(disk)?.bytes;
        let top = self.disk(disk)?.layers[0].clone();
        match to {
            Some(to) => {
                self.freeze(&top);
                let disk = self.disk(disk)?;
                disk.snapshots.push((snapshot, disk.layers.clone()));
                disk.layers.insert(0, to);
                disk.shortening = None;
            }
            None => {
                // The layer in use stays where it is; what it holds now goes on beneath it.
                let frozen = self.new_layer(bytes);
                let content = self.layers.get_mut(&top).and_then(|layer| layer.content.take());
                if let Some(layer) = self.layers.get_mut(&frozen) {
                    layer.content = content;
                    layer.frozen = true;
                }
                let disk = self.disk(disk)?;
                disk.layers.insert(1, frozen);
                disk.snapshots.push((snapshot, disk.layers[1..].to_vec()));
            }
        }
        Ok(())
    }
}
