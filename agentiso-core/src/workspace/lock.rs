//! One lock for each workspace, shared by all processes that use the state folder.
//!
//! A lock is a [`FileLock`]: it dies with its holder. Reading takes none.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use uuid::Uuid;

use crate::file_lock::FileLock;

/// Exclusive right to change one workspace. Released on drop.
#[derive(Debug)]
pub(crate) struct WorkspaceLock(FileLock);

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
        let waiting = tokio::task::spawn_blocking(move || FileLock::acquire(&path));
        match tokio::time::timeout(limit, waiting).await {
            Ok(joined) => Ok(Some(Self(joined.map_err(io::Error::other)??))),
            Err(_) => Ok(None),
        }
    }

    /// Takes the lock if nobody holds it.
    pub(crate) fn try_take(folder: &Path, id: Uuid) -> io::Result<Option<Self>> {
        Ok(FileLock::try_acquire(&lock_path(folder, id))?.map(Self))
    }

    /// Removes the lock's file with its workspace. Whoever waits for it notices and finds no workspace.
    pub(crate) fn remove(self) {
        self.0.remove();
    }
}

fn lock_path(folder: &Path, id: Uuid) -> PathBuf {
    folder.join(format!("{id}.lock"))
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

        let _second = waiter.await.unwrap().unwrap().unwrap();
        assert!(lock_path(folder.path(), id).exists());
        assert!(WorkspaceLock::try_take(folder.path(), id).unwrap().is_none());
    }
}
