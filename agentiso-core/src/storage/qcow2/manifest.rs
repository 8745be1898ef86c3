//! What is recorded of bases and disks.
//!
//! A manifest file is one JSON object, a newline, and the SHA-256 of what precedes it in hexadecimal digits. A flipped
//! bit could otherwise turn a layer's name into another valid one, and the real layer into one that nothing names.

use std::{fmt::Write, path::Path};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::files::Folder;
use crate::{
    storage::{DiskChain, DiskLayer, DiskOrigin, LayerFormat, LayerId, StorageError},
    types::{BaseId, DiskId, SnapshotId},
};

/// Generation of the manifests; a newer one is not touched.
const VERSION: u32 = 1;

/// What can be recorded.
pub(super) trait Manifest: Serialize + DeserializeOwned {
    /// What makes no sense in it, beyond what its type rules out.
    fn flaw(&self) -> Option<String>;

    /// What its file is named after.
    fn name(&self) -> String;
}

/// Record of a base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BaseManifest {
    pub(super) id: BaseId,
    pub(super) bytes: u64,
    pub(super) sealed: bool,
}

/// Record of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiskManifest {
    pub(super) id: DiskId,
    pub(super) bytes: u64,
    pub(super) origin: DiskOrigin,
    /// Layers of its own, topmost first; the first is written to.
    pub(super) own: Vec<Layer>,
    /// Layers that it began with, topmost first; the last is a base.
    pub(super) inherited: Vec<Layer>,
    /// Oldest first. Each is one of its own layers with all beneath.
    pub(super) snapshots: Vec<Snapshot>,
    /// The snapshot under way.
    pub(super) pending: Option<Pending>,
}

/// A layer as recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Layer {
    pub(super) id: LayerId,
    pub(super) bytes: u64,
    /// The base that it is; an overlay if none.
    pub(super) base: Option<BaseId>,
}

/// A snapshot as recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Snapshot {
    pub(super) id: SnapshotId,
    /// Its topmost layer.
    pub(super) layer: LayerId,
}

/// A snapshot that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pending {
    pub(super) snapshot: SnapshotId,
    /// The layer that takes over.
    pub(super) layer: Layer,
}

impl Layer {
    /// A new overlay; its file is still to be made.
    pub(super) fn new(bytes: u64) -> Self {
        Self { id: LayerId::random(), bytes, base: None }
    }

    /// The layer that a base is. Its name follows from the base's.
    pub(super) fn of_base(base: BaseId, bytes: u64) -> Self {
        let mut digits = base.as_uuid().simple().to_string();
        digits.truncate(24);
        Self { id: LayerId(digits), bytes, base: Some(base) }
    }

    pub(super) fn path(&self, folder: &Folder) -> std::path::PathBuf {
        match self.base {
            Some(base) => folder.base_file(base),
            None => folder.layer_file(&self.id),
        }
    }

    pub(super) fn describe(&self, folder: &Folder) -> DiskLayer {
        let format = if self.base.is_some() { LayerFormat::Raw } else { LayerFormat::Qcow2 };
        DiskLayer { id: self.id.clone(), path: self.path(folder), format, bytes: self.bytes }
    }
}

impl DiskManifest {
    /// The layers of the disk, topmost first.
    pub(super) fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.own.iter().chain(&self.inherited)
    }

    /// Every layer that must not go while this disk is there.
    pub(super) fn named_layers(&self) -> impl Iterator<Item = &Layer> {
        self.layers().chain(self.pending.iter().map(|pending| &pending.layer))
    }

    pub(super) fn chain(&self, folder: &Folder) -> DiskChain {
        DiskChain { layers: self.layers().map(|layer| layer.describe(folder)).collect() }
    }

    /// Position of a snapshot among its own, oldest first.
    pub(super) fn snapshot(&self, snapshot: SnapshotId) -> Option<usize> {
        self.snapshots.iter().position(|other| other.id == snapshot)
    }

    /// Position of a layer among its own, topmost first.
    pub(super) fn own_layer(&self, layer: &LayerId) -> Option<usize> {
        self.own.iter().position(|other| other.id == *layer)
    }
}

impl Manifest for BaseManifest {
    fn flaw(&self) -> Option<String> {
        None
    }

    fn name(&self) -> String {
        self.id.to_string()
    }
}

impl Manifest for DiskManifest {
    fn flaw(&self) -> Option<String> {
        // Names become paths: nothing but what this storage gives out.
        if let Some(layer) = self.named_layers().find(|layer| LayerId::parse(layer.id.as_str()).is_none()) {
            return Some(format!("{:?} is no layer's name", layer.id.as_str()));
        }
        if self.own.is_empty() || self.own.iter().any(|layer| layer.base.is_some()) {
            return Some("it has no layer of its own to write to".to_owned());
        }
        if self.inherited.last().is_none_or(|layer| layer.base.is_none()) {
            return Some("it does not stand on a base".to_owned());
        }
        let lost = self.snapshots.iter().find(|snapshot| self.own_layer(&snapshot.layer).is_none());
        lost.map(|snapshot| format!("its snapshot {} has no layer", snapshot.id))
    }

    fn name(&self) -> String {
        self.id.to_string()
    }
}

/// A manifest with the generation it was written in.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    record: T,
}

/// The generation alone, for a manifest whose rest may be unknown.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

fn checksum(json: &[u8]) -> String {
    Sha256::digest(json).iter().fold(String::new(), |mut digits, byte| {
        // Writing to a string does not fail.
        let _ = write!(digits, "{byte:02x}");
        digits
    })
}

/// The bytes of a manifest's file.
pub(super) fn encode<T: Manifest>(manifest: &T, path: &Path) -> Result<Vec<u8>, StorageError> {
    let mut bytes =
        serde_json::to_vec(&Versioned { version: VERSION, record: manifest }).map_err(|error| {
            StorageError::Io { operation: "write", object: path.display().to_string(), source: error.into() }
        })?;
    let sum = checksum(&bytes);
    bytes.push(b'\n');
    bytes.extend(sum.as_bytes());
    bytes.push(b'\n');
    Ok(bytes)
}

/// Reads the bytes of a manifest's file.
pub(super) fn decode<T: Manifest>(bytes: &[u8], path: &Path) -> Result<T, StorageError> {
    let damaged = |reason: String| StorageError::Damaged { record: path.display().to_string(), reason };
    let json = bytes
        .split_last_chunk::<66>()
        .and_then(|(json, end)| (*end == *format!("\n{}\n", checksum(json)).as_bytes()).then_some(json))
        .ok_or_else(|| damaged("its checksum is wrong".to_owned()))?;
    let found: Version = serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))?;
    if found.version != VERSION {
        return Err(damaged(format!("it is of version {}, this agentiso knows {VERSION}", found.version)));
    }
    let Versioned { record: manifest, .. }: Versioned<T> =
        serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))?;
    if path.file_stem().is_none_or(|stem| *stem != *manifest.name()) {
        return Err(damaged(format!("it is the record of {}", manifest.name())));
    }
    match manifest.flaw() {
        Some(flaw) => Err(damaged(flaw)),
        None => Ok(manifest),
    }
}
