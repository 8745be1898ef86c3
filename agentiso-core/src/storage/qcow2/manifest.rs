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

/// Generation of the manifests; a newer one is not touched. In the first one all snapshots of a disk were part of its
/// present chain.
const VERSION: u32 = 2;
const FIRST_VERSION: u32 = 1;

/// What can be recorded.
pub(super) trait Manifest: Serialize + DeserializeOwned {
    /// The same in the first generation.
    type First: DeserializeOwned;

    /// Takes over what the first generation recorded; the error is what makes no sense in it.
    fn upgrade(first: Self::First) -> Result<Self, String>;

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
    /// Topmost first: the first is written to, the last is a base.
    pub(super) layers: Vec<Layer>,
    /// Oldest first.
    pub(super) snapshots: Vec<Snapshot>,
    /// The snapshot under way.
    pub(super) pending: Option<Pending>,
    /// What the disk's user may be pulling together.
    pub(super) shortening: Option<Shortening>,
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
    /// Topmost first; the last is a base. In full, for the disk's own chain may have become shorter since.
    pub(super) layers: Vec<Layer>,
}

/// A snapshot that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pending {
    pub(super) snapshot: SnapshotId,
    /// The layer that takes over.
    pub(super) layer: Layer,
}

/// A plan to shorten the chain: what is between these two goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Shortening {
    pub(super) top: LayerId,
    pub(super) base: LayerId,
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
    /// Every layer that must not go while this disk is there, some of them more than once.
    pub(super) fn named_layers(&self) -> impl Iterator<Item = &Layer> {
        self.layers
            .iter()
            .chain(self.snapshots.iter().flat_map(|snapshot| &snapshot.layers))
            .chain(self.pending.iter().map(|pending| &pending.layer))
    }

    pub(super) fn chain(&self, folder: &Folder) -> DiskChain {
        DiskChain { layers: self.layers.iter().map(|layer| layer.describe(folder)).collect() }
    }

    /// Position of a snapshot among its own, oldest first.
    pub(super) fn snapshot(&self, snapshot: SnapshotId) -> Option<usize> {
        self.snapshots.iter().position(|other| other.id == snapshot)
    }

    /// Position of a layer in the chain of the disk.
    pub(super) fn position(&self, layer: &LayerId) -> Option<usize> {
        self.layers.iter().position(|other| other.id == *layer)
    }
}

impl Manifest for BaseManifest {
    type First = Self;

    fn upgrade(first: Self) -> Result<Self, String> {
        Ok(first)
    }

    fn flaw(&self) -> Option<String> {
        None
    }

    fn name(&self) -> String {
        self.id.to_string()
    }
}

/// What is wrong with layers that must be a whole disk.
fn flaw_of_chain(layers: &[Layer]) -> Option<&'static str> {
    match layers.split_last() {
        Some((base, overlays)) if base.base.is_some() => (overlays.is_empty()
            || overlays.iter().any(|layer| layer.base.is_some()))
        .then_some("has no layer of its own to write to"),
        _ => Some("does not stand on a base"),
    }
}

impl Manifest for DiskManifest {
    type First = FirstDiskManifest;

    fn upgrade(first: FirstDiskManifest) -> Result<Self, String> {
        first.upgrade()
    }

    fn flaw(&self) -> Option<String> {
        // Names become paths: nothing but what this storage gives out.
        if let Some(layer) = self.named_layers().find(|layer| LayerId::parse(layer.id.as_str()).is_none()) {
            return Some(format!("{:?} is no layer's name", layer.id.as_str()));
        }
        if let Some(flaw) = flaw_of_chain(&self.layers) {
            return Some(format!("it {flaw}"));
        }
        self.snapshots.iter().find_map(|snapshot| {
            flaw_of_chain(&snapshot.layers).map(|flaw| format!("its snapshot {} {flaw}", snapshot.id))
        })
    }

    fn name(&self) -> String {
        self.id.to_string()
    }
}

/// Record of a disk in the first generation.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FirstDiskManifest {
    id: DiskId,
    bytes: u64,
    origin: DiskOrigin,
    /// Layers of its own, topmost first.
    own: Vec<Layer>,
    /// Layers that it began with, topmost first.
    inherited: Vec<Layer>,
    /// Each is one of its own layers with all beneath.
    snapshots: Vec<FirstSnapshot>,
    pending: Option<Pending>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FirstSnapshot {
    id: SnapshotId,
    layer: LayerId,
}

impl FirstDiskManifest {
    fn upgrade(self) -> Result<DiskManifest, String> {
        let Self { id, bytes, origin, own, inherited, snapshots, pending } = self;
        let layers: Vec<Layer> = own.into_iter().chain(inherited).collect();
        let snapshots = snapshots.into_iter().map(|snapshot| {
            let at = layers.iter().position(|layer| layer.id == snapshot.layer);
            let at = at.ok_or_else(|| format!("its snapshot {} has no layer", snapshot.id))?;
            Ok(Snapshot { id: snapshot.id, layers: layers[at..].to_vec() })
        });
        let snapshots = snapshots.collect::<Result<_, String>>()?;
        Ok(DiskManifest { id, bytes, origin, layers, snapshots, pending, shortening: None })
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

pub(super) fn checksum(json: &[u8]) -> String {
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
    let manifest: T = match found.version {
        VERSION => {
            let Versioned { record, .. } =
                serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))?;
            record
        }
        FIRST_VERSION => {
            let Versioned::<T::First> { record, .. } =
                serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))?;
            T::upgrade(record).map_err(damaged)?
        }
        other => {
            return Err(damaged(format!("it is of version {other}, this agentiso knows {VERSION}")));
        }
    };
    if path.file_stem().is_none_or(|stem| *stem != *manifest.name()) {
        return Err(damaged(format!("it is the record of {}", manifest.name())));
    }
    match manifest.flaw() {
        Some(flaw) => Err(damaged(flaw)),
        None => Ok(manifest),
    }
}
