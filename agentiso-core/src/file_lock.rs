//! Locks between processes that die with their holder.
//!
//! A lock is a `flock` on a file, exclusive unless it is said to be shared. The kernel releases it when its holder
//! dies, so there is no stale lock and nothing to break.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

/// A lock on a file, held until it is dropped.
#[derive(Debug)]
pub(crate) struct FileLock {
    // Held for its flock alone.
    _file: File,
    path: PathBuf,
}

impl FileLock {
    /// Waits for the lock. Blocks. The file and its folder are made if they are missing.
    pub(crate) fn acquire(path: &Path) -> io::Result<Self> {
        Self::wait(path, FlockOperation::LockExclusive)
    }

    /// The same for a lock that several hold at once, though nobody beside an exclusive one. It must not be
    /// [removed](Self::remove): the others would hold a lock that nobody finds.
    pub(crate) fn share(path: &Path) -> io::Result<Self> {
        Self::wait(path, FlockOperation::LockShared)
    }

    /// Takes the lock if nobody holds it. The folder must exist.
    pub(crate) fn try_acquire(path: &Path) -> io::Result<Option<Self>> {
        Self::with(path, FlockOperation::NonBlockingLockExclusive)
    }

    /// Removes the lock's file while it is held. Whoever waits for it notices and gets a lock on a new one.
    pub(crate) fn remove(self) {
        // One that stays does no harm: it is found and removed, or used again, later.
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "could not remove a lock file");
        }
    }

    fn wait(path: &Path, operation: FlockOperation) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        match Self::with(path, operation)? {
            Some(lock) => Ok(lock),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn with(path: &Path, operation: FlockOperation) -> io::Result<Option<Self>> {
        loop {
            let mut options = fs::OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
            match flock(&file, operation) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            // While we waited the file may have been removed, and made anew: then nobody looks at ours.
            let held = file.metadata()?;
            match fs::metadata(path) {
                Ok(named) if (named.dev(), named.ino()) == (held.dev(), held.ino()) => {
                    return Ok(Some(Self { _file: file, path: path.to_owned() }));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_is_free_again_when_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("locks/x.lock");
        let held = FileLock::acquire(&path).unwrap();
        assert!(FileLock::try_acquire(&path).unwrap().is_none());
        drop(held);
        assert!(FileLock::try_acquire(&path).unwrap().is_some());
    }

    #[test]
    fn shared_lock_has_several_holders_and_no_exclusive_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.lock");
        let holders = [FileLock::share(&path).unwrap(), FileLock::share(&path).unwrap()];
        for holder in holders {
            assert!(FileLock::try_acquire(&path).unwrap().is_none());
            drop(holder);
        }
        assert!(FileLock::try_acquire(&path).unwrap().is_some());
    }

    #[test]
    fn waiter_for_a_removed_lock_gets_a_lock_that_others_see() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.lock");
        let held = FileLock::acquire(&path).unwrap();
        let waiter = std::thread::spawn({
            let path = path.clone();
            move || FileLock::acquire(&path).unwrap()
        });
        held.remove();
        let second = waiter.join().unwrap();
        assert!(FileLock::try_acquire(&path).unwrap().is_none());
        drop(second);
    }
}
