//! What files contain, as one number each.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Instant;

use agentiso_guest::limits::{HASH_PROGRESS_BYTES, MAX_HASHED_FILES, MAX_PATH_BYTES};
use agentiso_guest::message::{Input, Reply};
use agentiso_guest::tree::RawPath;
use rustix::fs::OFlags;
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::{open_below, open_root};
use crate::failure::{Failure, Stop};
use crate::serve::Connection;

/// Bytes read at a time.
const CHUNK_BYTES: usize = 128 * 1024;

/// Sends the hash of each file, in the same order.
///
/// # Errors
/// The request is wrong, a file cannot be read, or the connection is lost. A file that is not there any more, or no
/// regular one, is no error.
pub(crate) fn hash(connection: &mut Connection, root: &RawPath, files: &[RawPath]) -> Result<(), Stop> {
    if files.len() > MAX_HASHED_FILES {
        let count = files.len();
        return Err(Failure::invalid(format!("{count} files are more than {MAX_HASHED_FILES}")).into());
    }
    if let Some(wrong) =
        files.iter().find(|file| !file.is_relative() || file.as_bytes().len() > MAX_PATH_BYTES)
    {
        return Err(Failure::invalid(format!("\"{wrong}\" is not below where the walk began")).into());
    }
    let folder = open_root(root)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    for path in files {
        let failed = |error: &io::Error| Failure::io(format_args!("reading {path} in {root}"), error);
        let sha256 = match open(&folder, root, path) {
            Ok(Some(file)) => Some(hash_one(connection, file, &mut chunk, failed)?),
            Ok(None) => None,
            Err(error) => return Err(failed(&error).into()),
        };
        connection.send(&Reply::Hashed { sha256 });
    }
    Ok(())
}

/// Opens a regular file; `None` for anything else.
fn open(folder: &OwnedFd, root: &RawPath, path: &RawPath) -> io::Result<Option<File>> {
    let opened = if path.as_bytes().is_empty() {
        // The walk began at a file: there is no folder to open it in.
        let root = std::ffi::OsStr::from_bytes(root.as_bytes());
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        rustix::fs::open(root, flags, rustix::fs::Mode::empty())
    } else {
        open_below(folder.as_fd(), path.as_bytes(), OFlags::empty())
    };
    let file = match opened {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok(file.metadata()?.is_file().then_some(file))
}

fn hash_one(
    connection: &mut Connection,
    file: File,
    chunk: &mut [u8],
    failed: impl Fn(&io::Error) -> Failure,
) -> Result<String, Stop> {
    // A file that grows all the time has an end all the same: where it ended when it was opened.
    let length = file.metadata().map_err(|error| failed(&error))?.len();
    let mut file = file.take(length);
    let mut hasher = Sha256::new();
    let mut unsaid = 0;
    loop {
        let count = match file.read(chunk) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(&error).into()),
        };
        hasher.update(&chunk[..count]);
        unsaid += count as u64;
        if unsaid >= HASH_PROGRESS_BYTES {
            connection.send(&Reply::Hashing { bytes: unsaid });
            unsaid = 0;
            connection.flush()?;
            // A host that has gone wants nothing more to be read.
            connection.wait(true, [], Some(Instant::now()))?;
            while connection.next_message::<Input>()?.is_some() {}
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
