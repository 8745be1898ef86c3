use std::{collections::BTreeMap, fs, path::Path};

use serde::{Deserialize, Serialize};

use super::AssetError;
use crate::image::{
    files::{self, Sha256Digest},
    kernel::{KernelSource, PackedAs},
};

/// Format of the manifest that this version writes, and the newest that it reads.
const FORMAT: u32 = 1;

/// Most bytes of a manifest.
const MAX_MANIFEST_BYTES: u64 = 1024 * 1024;

/// What is installed and what it was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// The kernel.
    pub kernel: KernelRecord,
    /// What the initramfs was made from, as one digest: agent and kernel modules.
    pub initramfs_inputs: Sha256Digest,
    /// Every installed file, by its name in the folder.
    pub files: BTreeMap<String, FileRecord>,
}

/// Where the kernel is from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelRecord {
    /// What was asked for.
    pub source: KernelSource,
    /// For people: the package's file name.
    pub description: String,
    /// As `uname -r`.
    pub release: String,
    /// How it was packed.
    pub packed: PackedAs,
    /// Digest of the kernel before it was unpacked.
    pub sha256: Sha256Digest,
}

/// One installed file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Size.
    pub bytes: u64,
    /// Digest.
    pub sha256: Sha256Digest,
}

impl Manifest {
    pub(super) fn new(
        kernel: KernelRecord,
        initramfs_inputs: Sha256Digest,
        files: BTreeMap<String, FileRecord>,
    ) -> Self {
        Self { format: FORMAT, kernel, initramfs_inputs, files }
    }

    /// Digest of an installed file, if it is one.
    pub fn digest(&self, file: &str) -> Option<&Sha256Digest> {
        self.files.get(file).map(|record| &record.sha256)
    }

    /// Reads a manifest; `None` if there is none.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, AssetError> {
        #[derive(Deserialize)]
        struct OnlyFormat {
            format: u32,
        }
        let damaged = |reason: String| AssetError::Damaged { path: path.to_owned(), reason };
        let text = match fs::metadata(path).and_then(|metadata| Ok((metadata.len(), fs::read(path)?))) {
            Ok((bytes, _)) if bytes > MAX_MANIFEST_BYTES => return Err(damaged("it is too long".into())),
            Ok((_, text)) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(AssetError::io("read", path)(error)),
        };
        let OnlyFormat { format } =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        if format > FORMAT {
            return Err(AssetError::TooNew { path: path.to_owned(), found: format, known: FORMAT });
        }
        serde_json::from_slice(&text).map(Some).map_err(|error| damaged(error.to_string()))
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), AssetError> {
        files::replace(path, 0o600, |file| serde_json::to_writer_pretty(file, self).map_err(Into::into))
            .map_err(AssetError::io("write", path))
    }
}
