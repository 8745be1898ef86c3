//! A file's new content, written beside it and renamed over it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Gid, Mode, OFlags, Uid, fchown, open};

use super::check_regular;
use crate::failure::Failure;

/// Mode of a file that was not there before.
const NEW_FILE_MODE: u32 = 0o644;
/// Links followed before giving up, as the kernel does.
const MAX_LINKS: usize = 40;

/// Bytes that any file system keeps together.
const ONE_BLOCK: usize = 512;

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Content on its way into a file. Dropped before it is committed, it leaves nothing.
#[derive(Debug)]
pub(crate) struct Replacement {
    target: PathBuf,
    /// The temporary file, until it has the target's name.
    temporary: Option<PathBuf>,
    file: File,
    /// Mode and owner of the file that is there.
    existing: Option<(u32, u32, u32)>,
}

impl Replacement {
    /// Begins new content for `path`; a symbolic link at its end is followed, even to a file that is not there yet.
    ///
    /// # Errors
    /// There is something else than a regular file, or the folder cannot be written.
    pub(crate) fn begin(path: &Path) -> Result<Self, Failure> {
        let doing = || format!("writing {}", path.display());
        let target = follow(path).map_err(|error| Failure::io(doing(), &error))?;
        let existing = match fs::symlink_metadata(&target) {
            Ok(metadata) => {
                check_regular(path, &metadata)?;
                Some((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(Failure::io(doing(), &error)),
        };
        let (Some(folder), Some(_)) = (target.parent(), target.file_name()) else {
            return Err(Failure::invalid(format!("{} is a folder, not a regular file", path.display())));
        };
        // Short, for the target's own name may be as long as names can be; unique among agents and writes.
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = folder.join(format!(".agentiso.{}.{number}.tmp", std::process::id()));
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(|error| Failure::io(doing(), &error))?;
        Ok(Self { target, temporary: Some(temporary), file, existing })
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// The file system is full, or fails.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all(bytes).map_err(|error| self.failed(&error))
    }

    /// Puts the content in place. Without a mode the file keeps its own, or gets 0o644 if it is new.
    ///
    /// # Errors
    /// The file system refuses; nothing is changed then.
    pub(crate) fn commit(mut self, mode: Option<u32>) -> Result<(), Failure> {
        let mode = mode.or(self.existing.map(|(mode, ..)| mode)).unwrap_or(NEW_FILE_MODE);
        if let Some((_, uid, gid)) = self.existing {
            fchown(&self.file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(|error| self.failed(&error.into()))?;
        }
        let renamed = self.file.set_permissions(fs::Permissions::from_mode(mode)).and_then(|()| {
            self.temporary.as_ref().map_or(Ok(()), |temporary| fs::rename(temporary, &self.target))
        });
        renamed.map_err(|error| self.failed(&error))?;
        self.temporary = None;
        Ok(())
    }

    fn failed(&self, error: &io::Error) -> Failure {
        Failure::io(format!("writing {}", self.target.display()), error)
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // If it is gone, so much the better.
            let _ = fs::remove_file(temporary);
        }
    }
}

/// Writes a small file of the system's configuration as a whole; a link in its place is replaced, not followed.
///
/// # Errors
/// The folder cannot be written.
pub(crate) fn write_whole(path: &Path, content: &str) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::io(format!("writing {}", path.display()), &error);
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => fs::remove_file(path).map_err(failed)?,
        Ok(metadata) if metadata.is_file() && metadata.nlink() == 1 && content.len() <= ONE_BLOCK => {
            return overwrite(path, metadata.len(), content).map_err(failed);
        }
        _ => {}
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut replacement = Replacement::begin(path)?;
    replacement.append(content.as_bytes())?;
    replacement.commit(None)
}

/// Writes over a file that is there. For what fits into one block that is as good as another file in its place, and many
/// times faster: a new file must be entered in the folder and its data sent to the disk when it is renamed, all of which a
/// machine that has just been copied waits for.
fn overwrite(path: &Path, length: u64, content: &str) -> io::Result<()> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(open(path, flags, Mode::empty())?);
    let mut present = vec![0; content.len()];
    let new_length = content.len() as u64;
    if length == new_length && file.read_exact_at(&mut present, 0).is_ok() && present == content.as_bytes() {
        return Ok(());
    }
    file.write_all_at(content.as_bytes(), 0)?;
    if length > new_length {
        file.set_len(new_length)?;
    }
    Ok(())
}

/// Where a path leads once the links at its end are followed.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            Ok(link) => path = path.parent().unwrap_or(Path::new("/")).join(link),
            // No link, or nothing there.
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => {
                return Ok(path);
            }
            Err(error) => return Err(error),
        }
    }
    Err(rustix::io::Errno::LOOP.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_content_is_there_whatever_was_there_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let long = "x".repeat(ONE_BLOCK + 1);
        for content in ["first\n", "first\n", "sec\n", "longer than before\n", &long, "short\n", ""] {
            write_whole(&path, content).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn link_is_replaced_and_another_name_of_the_file_keeps_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let [path, link, other] = ["file", "link", "other"].map(|name| folder.path().join(name));
        fs::write(&path, "old").unwrap();
        fs::hard_link(&path, &other).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();

        write_whole(&link, "new").unwrap();
        write_whole(&path, "new").unwrap();

        assert!(fs::symlink_metadata(&link).unwrap().is_file());
        assert_eq!(fs::read_to_string(&other).unwrap(), "old");
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }
}
