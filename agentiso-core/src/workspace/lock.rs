//! One lock for each workspace, and one more while forks of it begin, known to all processes that use the state folder.
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

/// What forks of a workspace share from before it stands still for them until all of them have begun. They are its
/// lock's business no longer then, but still read its memory: whoever would remove that waits for them.
///
/// It is taken by who holds the workspace's own lock. Its file is there while forks begin, or after a process that was
/// killed over it, until the workspace goes.
#[derive(Debug)]
pub(crate) struct ForksLock {
    lock: Option<FileLock>,
    path: PathBuf,
}

impl ForksLock {
    /// Takes a share, until it is dropped.
    pub(crate) async fn share(folder: &Path, id: Uuid) -> io::Result<Self> {
        let path = forks_path(folder, id);
        let held = path.clone();
        // Nobody holds it alone for longer than a moment who does not hold the workspace's own lock.
        let taken = tokio::task::spawn_blocking(move || FileLock::share(&held));
        Ok(Self { lock: Some(taken.await.map_err(io::Error::other)??), path })
    }

    /// Waits until nobody has a share, up to the limit. Returns whether that is so.
    pub(crate) async fn wait(folder: &Path, id: Uuid, limit: Duration) -> io::Result<bool> {
        if Self::is_free(folder, id)? {
            return Ok(true);
        }
        let path = forks_path(folder, id);
        let waiting = tokio::task::spawn_blocking(move || FileLock::acquire(&path).map(FileLock::remove));
        match tokio::time::timeout(limit, waiting).await {
            Ok(joined) => joined.map_err(io::Error::other)?.map(|()| true),
            Err(_) => Ok(false),
        }
    }

    /// Whether nobody has a share, now.
    pub(crate) fn is_free(folder: &Path, id: Uuid) -> io::Result<bool> {
        let path = forks_path(folder, id);
        if !path.try_exists()? {
            return Ok(true);
        }
        let lock = FileLock::try_acquire(&path)?;
        Ok(lock.map(FileLock::remove).is_some())
    }
}

impl Drop for ForksLock {
    fn drop(&mut self) {
        drop(self.lock.take());
        // The last one takes the file along.
        match FileLock::try_acquire(&self.path) {
            Ok(Some(last)) => last.remove(),
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(path = %self.path.display(), %error, "could not remove a lock file")
            }
        }
    }
}

fn forks_path(folder: &Path, id: Uuid) -> PathBuf {
    folder.join(format!("{id}.forks"))
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
    async fn forks_are_waited_for_and_leave_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, id) = (folder.path(), Uuid::new_v4());
        assert!(ForksLock::wait(folder, id, SHORT).await.unwrap());
        let [one, two] =
            [ForksLock::share(folder, id).await.unwrap(), ForksLock::share(folder, id).await.unwrap()];
        for share in [one, two] {
            assert!(!ForksLock::is_free(folder, id).unwrap());
            assert!(!ForksLock::wait(folder, id, SHORT).await.unwrap());
            drop(share);
        }
        assert!(ForksLock::wait(folder, id, LONG).await.unwrap());
        assert!(!forks_path(folder, id).exists());
    }

    #[tokio::test]
    async fn file_of_forks_that_were_killed_goes_with_the_next_look() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, id) = (folder.path(), Uuid::new_v4());
        std::fs::write(forks_path(folder, id), "").unwrap();
        assert!(forks_path(folder, id).exists());
        assert!(ForksLock::is_free(folder, id).unwrap());
        assert!(!forks_path(folder, id).exists());
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
