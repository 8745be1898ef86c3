//! What all operations stand on: the kernel, the lock, and the removal of waste.

use std::{
    collections::{HashMap, HashSet},
    fs::{DirBuilder, File, OpenOptions},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use super::{
    kernel::{Change, Detail, Kernel, KernelError, Volumes},
    names::{Root, Tag},
    world::{Chore, World},
};
use crate::{
    storage::{DiskLayer, LayerFormat, LayerId, StorageError},
    types::{DiskId, SnapshotId},
};

/// A storage, opened.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) kernel: Box<dyn Kernel>,
    pub(super) root: Root,
    pub(super) lock: PathBuf,
    pub(super) reserve_bytes: u64,
    /// Snapshots that this process began: taking them must be quick.
    pub(super) begun: Mutex<HashMap<DiskId, Begun>>,
}

/// A snapshot that was begun.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) snapshot: SnapshotId,
    pub(super) volume: String,
    pub(super) tag: Tag,
}

/// The storage-wide lock; released when dropped, or by the kernel when the process dies.
pub(super) struct Lock {
    _file: File,
}

pub(super) fn missing(what: impl std::fmt::Display) -> StorageError {
    StorageError::NotFound { what: what.to_string() }
}

pub(super) fn exists(what: impl std::fmt::Display) -> StorageError {
    StorageError::Exists { what: what.to_string() }
}

/// A volume as the one layer of a disk or base.
pub(super) fn layer(id: &Uuid, path: PathBuf, bytes: u64) -> DiskLayer {
    let mut digits = id.simple().to_string();
    digits.truncate(24);
    DiskLayer { id: LayerId(digits), path, format: LayerFormat::Raw, bytes }
}

impl Shared {
    /// Everything there is.
    pub(super) fn all(&self) -> Result<World, StorageError> {
        self.seen(self.kernel.all())
    }

    /// What has one of these ids in its name.
    pub(super) fn find(&self, ids: &[Uuid], detail: Detail) -> Result<World, StorageError> {
        self.seen(self.kernel.find(ids, detail))
    }

    /// A disk, and what it stands on.
    pub(super) fn find_disk(&self, disk: DiskId, detail: Detail) -> Result<World, StorageError> {
        let found = self.find(&[*disk.as_uuid()], detail)?;
        // Its tag counts, whatever somebody renamed it to.
        if found.disk(disk).is_some() { Ok(found) } else { self.all() }
    }

    fn seen(&self, volumes: Result<Volumes, KernelError>) -> Result<World, StorageError> {
        volumes.map(World::new).map_err(|error| error.during("list the volumes of", self.root.as_str()))
    }

    /// A volume has nothing reserved. It is made only while it could be filled once and the pool still has its reserve.
    pub(super) fn check_free_space(
        &self,
        world: &World,
        bytes: u64,
        what: std::fmt::Arguments<'_>,
    ) -> Result<(), StorageError> {
        let needed = bytes.saturating_add(self.reserve_bytes);
        if world.available >= needed {
            return Ok(());
        }
        let (pool, mib) = (self.root.pool(), |bytes: u64| bytes >> 20);
        Err(StorageError::Full {
            what: format!(
                "{what} in the pool {pool}: {} MiB are free and {} MiB needed, which is its size and a reserve of {} \
                 MiB; `agentiso prune` frees space, `zpool add {pool} DEVICE` adds some",
                mib(world.available),
                mib(needed),
                mib(self.reserve_bytes)
            ),
        })
    }

    pub(super) fn begun(&self) -> MutexGuard<'_, HashMap<DiskId, Begun>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock, together with others who remove and promote nothing. Blocks.
    pub(super) fn lock_shared(&self) -> Result<Lock, StorageError> {
        self.lock(FlockOperation::LockShared)
    }

    /// The lock, alone. Blocks.
    pub(super) fn lock_alone(&self) -> Result<Lock, StorageError> {
        self.lock(FlockOperation::LockExclusive)
    }

    fn lock(&self, operation: FlockOperation) -> Result<Lock, StorageError> {
        let failed = |source| StorageError::Io { operation: "lock", object: show(&self.lock), source };
        if let Some(folder) = self.lock.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&self.lock);
        let file = file.map_err(failed)?;
        loop {
            match flock(&file, operation) {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
    }

    /// Removes waste, beginning with what `world` shows, which is everything. Returns what is there afterwards, and the
    /// first error of what could not be removed, after everything else was. The caller has the lock alone.
    pub(super) fn sweep(&self, mut world: World) -> Result<(World, Result<(), StorageError>), StorageError> {
        let mut failed = HashSet::new();
        let mut result = Ok(());
        loop {
            let mut chores = world.chores();
            chores.retain(|chore| !failed.contains(chore));
            if chores.is_empty() {
                return Ok((world, result));
            }
            for chore in chores {
                let (operation, done) = match &chore {
                    Chore::Destroy(name) => ("destroy", self.kernel.change(name, Change::Destroy)),
                    Chore::Promote(name) => ("promote", self.kernel.change(name, Change::Promote)),
                };
                if let Err(error) = done
                    && !error.missing()
                {
                    result = result.and(Err(error.during(operation, chore.name())));
                    failed.insert(chore);
                }
            }
            world = self.all()?;
        }
    }

    /// Removes what a change that took effect already left behind: if this fails, the next sweep does it.
    pub(super) fn sweep_after(&self, disk: DiskId) {
        let swept = self.all().and_then(|world| self.sweep(world)).and_then(|(_, result)| result);
        if let Err(error) = swept {
            tracing::warn!(%disk, error = chain(&error), "what is left of the disk could not be removed yet");
        }
    }
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

pub(super) fn show(path: &Path) -> String {
    path.display().to_string()
}

impl Chore {
    fn name(&self) -> &str {
        match self {
            Self::Destroy(name) | Self::Promote(name) => name,
        }
    }
}
