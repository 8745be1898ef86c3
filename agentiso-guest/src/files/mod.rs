//! Files of the guest: read, write, edit, list, describe.

mod replace;

use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use agentiso_guest::limits::{MAX_ENTRIES_PER_REPLY, MAX_MESSAGE_SIZE, MAX_PATH_BYTES};
use agentiso_guest::message::{Entry, EntryKind, ErrorCode, Input, Reply};
use rustix::fs::OFlags;

use replace::Replacement;
pub(crate) use replace::write_whole;

use crate::failure::{Failure, Stop};
use crate::serve::Connection;

/// Bytes that one reply carries.
const CHUNK_BYTES: usize = 256 * 1024;
/// Largest file that is edited, in bytes: the agent holds it twice.
const MAX_EDIT_BYTES: u64 = MAX_MESSAGE_SIZE as u64;

/// A path of a request.
///
/// # Errors
/// It is not absolute, too long, or contains a NUL.
pub(crate) fn check_path(path: &str) -> Result<&Path, Failure> {
    if !path.starts_with('/') {
        return Err(Failure::invalid(format!("the path {path:?} is not absolute")));
    }
    if path.len() > MAX_PATH_BYTES {
        return Err(Failure::invalid(format!(
            "the path is {} bytes long, more than {MAX_PATH_BYTES}",
            path.len()
        )));
    }
    if path.contains('\0') {
        return Err(Failure::invalid("the path contains a NUL"));
    }
    Ok(Path::new(path))
}

/// Sends a regular file, or a part of it.
///
/// # Errors
/// It is no regular file (without waiting for the other end of a FIFO), or cannot be read, or the connection is lost.
pub(crate) fn read(
    connection: &mut Connection,
    path: &str,
    offset: u64,
    limit: Option<u64>,
) -> Result<(), Stop> {
    let path = check_path(path)?;
    let failed = |error: io::Error| Failure::io(format!("reading {}", path.display()), &error);
    let mut file = open_regular(path)?;
    if offset > 0 {
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
    }
    let mut file = file.take(limit.unwrap_or(u64::MAX));
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = match file.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error).into()),
        };
        connection.send_data(&chunk[..count])?;
    }
}

fn open_regular(path: &Path) -> Result<File, Failure> {
    let doing = || format!("opening {}", path.display());
    let file = File::options()
        .read(true)
        .custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed())
        .open(path)
        .map_err(|error| Failure::io(doing(), &error))?;
    let metadata = file.metadata().map_err(|error| Failure::io(doing(), &error))?;
    check_regular(path, &metadata)?;
    Ok(file)
}

fn check_regular(path: &Path, metadata: &Metadata) -> Result<(), Failure> {
    if metadata.is_file() {
        return Ok(());
    }
    let kind = if metadata.is_dir() { "a folder" } else { "a device, socket or FIFO" };
    Err(Failure::invalid(format!("{} is {kind}, not a regular file", path.display())))
}

/// Takes a file's content from the connection and puts it in place, all at once, at the end.
///
/// # Errors
/// The file cannot be written, or the connection is lost: nothing is changed then, except that parent folders may have
/// been made.
pub(crate) fn write(
    connection: &mut Connection,
    path: &str,
    mode: Option<u32>,
    parents: bool,
) -> Result<(), Stop> {
    let path = check_path(path)?;
    if let Some(mode) = mode.filter(|mode| *mode > 0o7777) {
        return Err(Failure::invalid(format!("the mode {mode:o} is more than 7777")).into());
    }
    if parents && let Some(parent) = path.parent() {
        fs::create_dir_all(parent)
            .map_err(|error| Failure::io(format!("making the folder {}", parent.display()), &error))?;
    }
    let mut replacement = Replacement::begin(path)?;
    loop {
        let frame = connection.receive_input()?;
        match frame.message {
            Input::Data { .. } => replacement.append(&frame.payload)?,
            Input::End => break,
            _ => {
                let text = format!("writing {}: only data and its end can follow", path.display());
                return Err(Failure::invalid(text).into());
            }
        }
    }
    Ok(replacement.commit(mode)?)
}

/// Replaces the first occurrence of `old` by `new`.
///
/// # Errors
/// `old` is empty or does not occur, or the file cannot be read or written. Nothing is changed then.
pub(crate) fn edit(path: &str, old: &str, new: &str) -> Result<(), Failure> {
    let path = check_path(path)?;
    if old.is_empty() {
        return Err(Failure::invalid("the text to replace is empty"));
    }
    let mut content = Vec::new();
    open_regular(path)?
        .take(MAX_EDIT_BYTES + 1)
        .read_to_end(&mut content)
        .map_err(|error| Failure::io(format!("reading {}", path.display()), &error))?;
    if content.len() as u64 > MAX_EDIT_BYTES {
        return Err(Failure::new(
            ErrorCode::Exhausted,
            format!("{} is longer than {MAX_EDIT_BYTES} bytes, the most that can be edited", path.display()),
        ));
    }
    let Some(at) = find(&content, old.as_bytes()) else {
        return Err(Failure::new(
            ErrorCode::NotFound,
            format!("the text to replace does not occur in {}", path.display()),
        ));
    };
    let mut replacement = Replacement::begin(path)?;
    replacement.append(&content[..at])?;
    replacement.append(new.as_bytes())?;
    replacement.append(&content[at + old.len()..])?;
    replacement.commit(None)
}

/// Where `needle` first occurs. Looks for its first byte before it compares, which is what makes it fast enough for
/// files of this size.
fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    while let Some(offset) = haystack[from..].iter().position(|byte| *byte == first) {
        let at = from + offset;
        if haystack[at..].starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

/// Sends the entries of a folder.
///
/// # Errors
/// It is no folder, or cannot be listed, or the connection is lost.
pub(crate) fn list(connection: &mut Connection, path: &str) -> Result<(), Stop> {
    let path = check_path(path)?;
    let failed = |error: io::Error| Failure::io(format!("listing {}", path.display()), &error);
    let mut entries = Vec::new();
    for item in fs::read_dir(path).map_err(failed)? {
        let item = item.map_err(failed)?;
        // What disappeared since is not listed.
        let Ok(metadata) = item.metadata() else { continue };
        entries.push(describe(item.path(), &metadata));
        if entries.len() == MAX_ENTRIES_PER_REPLY {
            connection.send(&Reply::Entries { entries: std::mem::take(&mut entries) });
            connection.flush()?;
        }
    }
    if !entries.is_empty() {
        connection.send(&Reply::Entries { entries });
    }
    Ok(())
}

/// Describes one path, without following a link at its end.
///
/// # Errors
/// There is nothing.
pub(crate) fn stat(path: &str) -> Result<Reply, Failure> {
    let path = check_path(path)?;
    let metadata = fs::symlink_metadata(path)
        .map_err(|error| Failure::io(format!("looking at {}", path.display()), &error))?;
    Ok(Reply::Entry { entry: describe(path.to_path_buf(), &metadata) })
}

fn describe(path: PathBuf, metadata: &Metadata) -> Entry {
    let kind = if metadata.is_file() {
        EntryKind::File
    } else if metadata.is_dir() {
        EntryKind::Directory
    } else if metadata.is_symlink() {
        EntryKind::Symlink
    } else {
        EntryKind::Other
    };
    let target = metadata.is_symlink().then(|| fs::read_link(&path).ok()).flatten();
    Entry {
        name: path.file_name().map_or_else(|| "/".to_owned(), |name| name.to_string_lossy().into_owned()),
        kind,
        size: metadata.len(),
        mode: metadata.mode() & 0o7777,
        modified: metadata.mtime(),
        target: target.map(|target| target.to_string_lossy().into_owned()),
    }
}
