//! One lock for each workspace, shared by all processes that use the state folder.
//!
//! A lock is an exclusive `flock` on a file. The kernel releases it when its holder dies, so there is no stale lock
//! and nothing to break. Reading takes none.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

/// Exclusive right to change one workspace. Released on drop.
#[derive(Debug)]
pub(crate) struct WorkspaceLock {
    // Held for its flock alone.
    _file: File,
    path: PathBuf,
}

impl WorkspaceLock {
    /// Takes the lock, waiting for its holder until the limit. `None` if the time was over.
    ///
    /// The wait happens in the kernel, on a thread of the blocking pool. A caller that gives up leaves that thread
    /// waiting; it lets the lock go as soon as it gets it.
    pub(crate) async fn take(folder: &Path, id: Uuid, limit: Duration) -> io::Result<Option<Self>> {
        if let Some(lock) = Self::try_take(folder, id)? {
            return Ok(Some(lock));
        }
        let path = lock_path(folder, id);
        let waiting = tokio::task::spawn_blocking(move || lock(&path, FlockOperation::LockExclusive));
        match tokio::time::timeout(limit, waiting).await {
            Ok(joined) => joined.map_err(io::Error::other)?,
            Err(_) => Ok(None),
        }
    }

    /// Takes the lock if nobody holds it.
    pub(crate) fn try_take(folder: &Path, id: Uuid) -> io::Result<Option<Self>> {
        lock(&lock_path(folder, id), FlockOperation::NonBlockingLockExclusive)
    }

    /// Removes the lock's file with its workspace. Whoever waits for it notices and finds no workspace.
    pub(crate) fn remove(self) {
        // A file that stays is found and removed when the state folder is opened next.
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "could not remove a lock file");
        }
    }
}

fn lock_path(folder: &Path, id: Uuid) -> PathBuf {
    folder.join(format!("{id}.lock"))
}

fn lock(path: &Path, operation: FlockOperation) -> io::Result<Option<WorkspaceLock>> {
    loop {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        match flock(&file, operation) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        // The file may have been removed, and made anew, while we waited: then we hold a lock that nobody looks at.
        let held = file.metadata()?;
        match std::fs::metadata(path) {
            Ok(named) if named.ino() == held.ino() && named.dev() == held.dev() => {
                return Ok(Some(WorkspaceLock { _file: file, path: path.to_owned() }));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn take_gives_up_while_another_holds_it_and_succeeds_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let id = Uuid::new_v4();
        let first = WorkspaceLock::take(folder.path(), id, SHORT).await.unwrap().unwrap();

        assert!(WorkspaceLock::take(folder.path(), id, SHORT).await.unwrap().is_none());
        drop(first);

        assert!(WorkspaceLock::take(folder.path(), id, LONG).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn take_of_a_removed_lock_gets_a_fresh_one() {
        let folder = tempfile::tempdir().unwrap();
        let id = Uuid::new_v4();
        let first = WorkspaceLock::take(folder.path(), id, SHORT).await.unwrap().unwrap();
        let path = folder.path().to_owned();
        let waiter = tokio::spawn(async move { WorkspaceLock::take(&path, id, LONG).await });
        tokio::task::yield_now().await;

        first.remove();

        let second = waiter.await.unwrap().unwrap().unwrap();
        assert!(second.path.exists());
        assert!(WorkspaceLock::try_take(folder.path(), id).unwrap().is_none());
    }
}
