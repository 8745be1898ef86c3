//! The folder, its lock, and files that are there whole or not at all.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::{Qcow2Config, manifest};
use crate::{
    storage::{LayerFormat, LayerId, StorageError},
    types::{BaseId, DiskId},
};

/// Bytes that one count of `st_blocks` stands for, whatever the file system's block size.
const STAT_BLOCK_BYTES: u64 = 512;

const WRITABLE: u32 = 0o600;
const READ_ONLY: u32 = 0o400;

/// Prefix of files being written; what has it and is not being written is swept.
pub(super) const TEMPORARY_PREFIX: &str = ".new-";

/// The folder of a storage.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    pub(super) bases: PathBuf,
    pub(super) layers: PathBuf,
    pub(super) disks: PathBuf,
    reserve_bytes: u64,
    #[cfg(test)]
    pub(super) crash: super::tests::crash::CrashPoint,
}

/// What a storage error says of an operating system's.
pub(super) fn failed<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> StorageError + 'a {
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StorageError::Full { what: path.display().to_string() }
        }
        _ => StorageError::Io { operation, object: path.display().to_string(), source },
    }
}

/// The storage-wide lock; released when dropped, or by the kernel when the process dies.
pub(super) struct Lock {
    _file: File,
}

impl Folder {
    pub(super) fn open(config: &Qcow2Config) -> Result<Self, StorageError> {
        let folder = Self::at(config);
        for path in [&folder.path, &folder.bases, &folder.layers, &folder.disks] {
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make", path))?;
        }
        Ok(folder)
    }

    /// Where everything would be; nothing is made.
    pub(super) fn at(config: &Qcow2Config) -> Self {
        let path = config.folder.clone();
        Self {
            bases: path.join("bases"),
            layers: path.join("layers"),
            disks: path.join("disks"),
            path,
            reserve_bytes: config.reserve_bytes,
            #[cfg(test)]
            crash: super::tests::crash::CrashPoint::default(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// For whoever adds layers and bases, or reads what several manifests say.
    pub(super) fn lock_shared(&self) -> Result<Lock, StorageError> {
        self.lock(File::lock_shared)
    }

    /// For whoever removes any, or counts on none being added.
    pub(super) fn lock_alone(&self) -> Result<Lock, StorageError> {
        self.lock(File::lock)
    }

    fn lock(&self, acquire: impl Fn(&File) -> io::Result<()>) -> Result<Lock, StorageError> {
        let path = self.path.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(WRITABLE)
            .open(&path)
            .map_err(failed("open", &path))?;
        loop {
            match acquire(&file) {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed("lock", &path)(error)),
            }
        }
    }

    pub(super) fn base_file(&self, base: BaseId) -> PathBuf {
        self.bases.join(format!("{base}.raw"))
    }

    pub(super) fn base_manifest(&self, base: BaseId) -> PathBuf {
        self.bases.join(format!("{base}.json"))
    }

    pub(super) fn layer_file(&self, layer: &LayerId) -> PathBuf {
        self.layers.join(format!("{layer}.qcow2"))
    }

    pub(super) fn disk_manifest(&self, disk: DiskId) -> PathBuf {
        self.disks.join(format!("{disk}.json"))
    }

    /// Refuses if the host's disk is nearly full.
    pub(super) fn check_free_space(&self, what: impl std::fmt::Display) -> Result<(), StorageError> {
        self.check_free_space_for(0, what)
    }

    /// Refuses if the host's disk would be nearly full with so many bytes more.
    pub(super) fn check_free_space_for(
        &self,
        bytes: u64,
        what: impl std::fmt::Display,
    ) -> Result<(), StorageError> {
        let space = rustix::fs::statvfs(&self.path)
            .map_err(|error| failed("read the free space of", &self.path)(error.into()))?;
        if space.f_bavail.saturating_mul(space.f_frsize) < self.reserve_bytes.saturating_add(bytes) {
            return Err(StorageError::Full { what: what.to_string() });
        }
        Ok(())
    }

    /// Makes a file of that name, durably, or leaves none.
    ///
    /// The caller holds the lock and names it in a manifest before he lets go.
    pub(super) fn create_file(
        &self,
        path: &Path,
        fill: impl FnOnce(&NewFile) -> io::Result<()>,
    ) -> Result<(), StorageError> {
        self.step().map_err(failed("create", path))?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(WRITABLE)
            .open(path)
            .map_err(failed("create", path))?;
        let written = fill(&NewFile { file: &file, folder: self }).and_then(|()| self.sync(&file));
        if let Err(error) = written.and_then(|()| self.sync_folder_of(path)) {
            self.remove_failed(path);
            return Err(failed("write", path)(error));
        }
        Ok(())
    }

    /// Puts a manifest in the place of the one that is there.
    pub(super) fn replace_manifest(&self, path: &Path, content: &[u8]) -> Result<(), StorageError> {
        self.write_manifest(path, content, |new| {
            self.step()?;
            fs::rename(new, path)
        })
    }

    /// Puts a manifest where none is. [`io::ErrorKind::AlreadyExists`] if there is one.
    pub(super) fn create_manifest(&self, path: &Path, content: &[u8]) -> Result<(), StorageError> {
        self.write_manifest(path, content, |new| {
            self.step()?;
            // A link is the one way to give a file a name that fails if the name is taken, on every file system.
            fs::hard_link(new, path)?;
            self.step()?;
            fs::remove_file(new)
        })
    }

    fn write_manifest(
        &self,
        path: &Path,
        content: &[u8],
        put: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<(), StorageError> {
        let new = path.with_file_name(format!("{TEMPORARY_PREFIX}{}", uuid::Uuid::new_v4().simple()));
        let write = || {
            self.step()?;
            let mut file = OpenOptions::new().write(true).create_new(true).mode(WRITABLE).open(&new)?;
            self.step()?;
            file.write_all(content)?;
            self.sync(&file)?;
            put(&new)?;
            self.sync_folder_of(path)
        };
        write().map_err(|error| {
            self.remove_failed(&new);
            failed("write", path)(error)
        })
    }

    /// Reads a manifest; `None` if there is none.
    pub(super) fn read_manifest<T: manifest::Manifest>(
        &self,
        path: &Path,
    ) -> Result<Option<T>, StorageError> {
        match fs::read(path) {
            Ok(bytes) => manifest::decode(&bytes, path).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // What the host's disk cannot give back is damaged as much as what makes no sense.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                Err(StorageError::Damaged { record: path.display().to_string(), reason: error.to_string() })
            }
            Err(error) => Err(failed("read", path)(error)),
        }
    }

    /// Removes a file, durably. Not there: no effect.
    pub(super) fn remove(&self, path: &Path) -> Result<(), StorageError> {
        self.step().map_err(failed("remove", path))?;
        match fs::remove_file(path) {
            Ok(()) => self.sync_folder_of(path).map_err(failed("remove", path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("remove", path)(error)),
        }
    }

    /// Removes a file that no manifest names. Not there: no effect.
    ///
    /// Not made durable: what comes back when the host loses its power is swept again, and an fsync for each layer
    /// would keep everybody else waiting for the lock.
    pub(super) fn remove_unnamed(&self, path: &Path) -> Result<(), StorageError> {
        self.step().map_err(failed("remove", path))?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
            _ => Ok(()),
        }
    }

    /// Keeps a file from being written by whoever opens it from now on.
    pub(super) fn make_read_only(&self, path: &Path) -> Result<(), StorageError> {
        self.step()
            .and_then(|()| fs::set_permissions(path, Permissions::from_mode(READ_ONLY)))
            .map_err(failed("make read-only", path))
    }

    /// Makes what others wrote to a file durable.
    pub(super) fn sync_file(&self, path: &Path) -> Result<(), StorageError> {
        File::open(path).and_then(|file| self.sync(&file)).map_err(failed("sync", path))
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.step()?;
        file.sync_all()
    }

    fn sync_folder_of(&self, path: &Path) -> io::Result<()> {
        let Some(folder) = path.parent() else { return Ok(()) };
        self.step()?;
        File::open(folder)?.sync_all()
    }

    /// After a failure that is reported already: what stays here is swept later.
    fn remove_failed(&self, path: &Path) {
        if let Err(error) = self.step().and_then(|()| fs::remove_file(path)) {
            tracing::debug!(path = %path.display(), %error, "an unfinished file stays until the next sweep");
        }
    }

    /// Each change of the folder is one step; tests stop after any.
    #[cfg(test)]
    pub(super) fn step(&self) -> io::Result<()> {
        self.crash.step()
    }

    #[cfg(not(test))]
    pub(super) fn step(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A file that is being made.
pub(super) struct NewFile<'a> {
    file: &'a File,
    folder: &'a Folder,
}

impl NewFile<'_> {
    pub(super) fn set_length(&self, bytes: u64) -> io::Result<()> {
        self.folder.step()?;
        self.file.set_len(bytes)
    }

    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.folder.step()?;
        self.file.write_all_at(bytes, offset)
    }
}

/// Space that a file takes up, in bytes, holes not counted.
pub(super) fn allocated(path: &Path) -> Result<u64, StorageError> {
    let metadata = fs::metadata(path).map_err(failed("read the size of", path))?;
    Ok(metadata.blocks() * STAT_BLOCK_BYTES)
}

/// Names in a folder, those that are not UTF-8 left out: none of them is ours.
pub(super) fn names(folder: &Path) -> Result<Vec<String>, StorageError> {
    let entries = fs::read_dir(folder).map_err(failed("list", folder))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("list", folder))?;
        names.extend(entry.file_name().into_string().ok());
    }
    Ok(names)
}

/// What a layer file is called after.
pub(super) fn extension(format: LayerFormat) -> &'static str {
    match format {
        LayerFormat::Raw => ".raw",
        LayerFormat::Qcow2 => ".qcow2",
    }
}
