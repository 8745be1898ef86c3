//! A tar stream that a guest made, as files of this host.
//!
//! The guest may be hostile: whatever the stream says, nothing outside the destination is written, read or linked, no
//! device is made, no set-user-id bit is set, and memory stays bounded.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use tar::{Archive, EntryType, Header};

use super::tree::{Attributes, Tree};

/// Where the files go.
#[derive(Debug)]
pub(crate) struct UnpackSpec<'a> {
    /// Existing folder; nothing outside it is touched.
    pub(crate) folder: &'a Path,
    /// What the first component of each name in the stream becomes; it is dropped if none.
    pub(crate) name: Option<&'a OsStr>,
    /// The names in the stream have no first component to replace: the guest's root was asked for.
    pub(crate) from_root: bool,
    /// Give the files the owners that the stream says (only root can).
    pub(crate) owners: bool,
}

/// Why a stream could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    /// A file of the host.
    #[error("could not {operation} {}", path.display())]
    Host {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The stream ended or broke.
    #[error("could not read what the workspace sent")]
    Stream(#[source] io::Error),
    /// The stream contains something that has no place in it.
    #[error("the workspace sent {what}: nothing more was copied")]
    Refused {
        /// What.
        what: String,
    },
    /// There was nothing in it.
    #[error("the workspace sent nothing")]
    Empty,
}

/// Longest extended name, as Linux's PATH_MAX.
const MAX_NAME_BYTES: u64 = 4096;

/// Bytes copied at a time.
const COPY_BYTES: usize = 256 * 1024;

/// Unpacks the stream. A file appears, or replaces another, complete or not at all. What is neither file, folder nor
/// link is left out and handed to `skipped`.
pub(crate) fn unpack(
    spec: &UnpackSpec<'_>,
    stream: impl Read,
    skipped: &mut dyn FnMut(&Path),
) -> Result<(), UnpackError> {
    let mut unpacker = Unpacker {
        spec,
        tree: Tree::open(spec.folder)?,
        first: None,
        buffer: vec![0; COPY_BYTES],
        skipped,
        done: 0,
    };
    let mut archive = Archive::new(stream);
    // Raw: the crate would take an extended name of any length into memory.
    let entries = archive.entries().map_err(UnpackError::Stream)?.raw(true);
    let (mut long_name, mut long_link) = (None, None);
    for entry in entries {
        let mut entry = entry.map_err(UnpackError::Stream)?;
        let header = entry.header().clone();
        match header.entry_type() {
            EntryType::GNULongName => long_name = Some(extended(&mut entry)?),
            EntryType::GNULongLink => long_link = Some(extended(&mut entry)?),
            _ => {
                let name = long_name.take().unwrap_or_else(|| header.path_bytes().into_owned());
                let link =
                    long_link.take().or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
                unpacker.entry(&header, &name, link, &mut entry)?;
            }
        }
    }
    unpacker.tree.close()?;
    if unpacker.done == 0 { Err(UnpackError::Empty) } else { Ok(()) }
}

fn extended(entry: &mut impl Read) -> Result<Vec<u8>, UnpackError> {
    let mut text = Vec::new();
    entry.take(MAX_NAME_BYTES + 1).read_to_end(&mut text).map_err(UnpackError::Stream)?;
    if text.len() as u64 > MAX_NAME_BYTES {
        return Err(refused("a name of more than 4096 bytes"));
    }
    while text.last() == Some(&0) {
        text.pop();
    }
    Ok(text)
}

fn refused(what: impl Into<String>) -> UnpackError {
    UnpackError::Refused { what: what.into() }
}

struct Unpacker<'a> {
    spec: &'a UnpackSpec<'a>,
    tree: Tree,
    /// The first component that all names must have.
    first: Option<OsString>,
    buffer: Vec<u8>,
    skipped: &'a mut dyn FnMut(&Path),
    /// Entries that were unpacked.
    done: u64,
}

impl Unpacker<'_> {
    fn entry(
        &mut self,
        header: &Header,
        name: &[u8],
        link: Option<Vec<u8>>,
        data: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let place = self.place(name)?;
        let Some((last, folders)) = place.split_last() else {
            // The folder that everything goes into: it exists, and stays as it is.
            self.done += 1;
            return Ok(());
        };
        match header.entry_type() {
            EntryType::Directory => {
                let attributes = self.attributes(header)?;
                self.tree.make(&place, attributes)?;
            }
            EntryType::Regular | EntryType::Continuous => {
                let attributes = self.attributes(header)?;
                let size = header.entry_size().map_err(UnpackError::Stream)?;
                self.file(folders, last, attributes, size, data)?;
            }
            EntryType::Symlink => {
                let target =
                    link.filter(|link| !link.is_empty()).ok_or_else(|| refused("a link to nothing"))?;
                let attributes = self.attributes(header)?;
                self.symlink(folders, last, &OsString::from_vec(target), attributes)?;
            }
            EntryType::Link => {
                let target = self.place(&link.ok_or_else(|| refused("a link to nothing"))?)?;
                self.hard_link(folders, last, &target)?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                (self.skipped)(&self.tree.path(&place));
            }
            other => return Err(refused(format!("a tar entry of type {:?}", char::from(other.as_byte())))),
        }
        self.done += 1;
        Ok(())
    }

    /// The path below the destination that a name in the stream stands for.
    fn place(&mut self, name: &[u8]) -> Result<Vec<OsString>, UnpackError> {
        let shown = || String::from_utf8_lossy(name).escape_debug().to_string();
        if name.starts_with(b"/") || name.contains(&0) {
            return Err(refused(format!("the name \"{}\"", shown())));
        }
        let mut place = Vec::new();
        for component in name.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err(refused(format!("the name \"{}\"", shown()))),
                component => place.push(OsStr::from_bytes(component).to_owned()),
            }
        }
        if self.spec.from_root {
            return Ok(place);
        }
        let Some(first) = place.first_mut() else { return Err(refused("an entry without a name")) };
        if self.first.get_or_insert_with(|| first.clone()) != first {
            return Err(refused(format!("the name \"{}\", which was not asked for", shown())));
        }
        match self.spec.name {
            Some(new) => *first = new.to_owned(),
            None => {
                place.remove(0);
            }
        }
        Ok(place)
    }

    fn attributes(&self, header: &Header) -> Result<Attributes, UnpackError> {
        let number = |result: io::Result<u64>| result.map_err(UnpackError::Stream);
        // Set-user-id and set-group-id bits would give a guest's program the rights of whoever copies.
        let mode = Mode::from_raw_mode(header.mode().map_err(UnpackError::Stream)? & 0o777);
        let modified = i64::try_from(number(header.mtime())?).ok();
        let owner = if self.spec.owners {
            let id = |number: u64| u32::try_from(number).ok().filter(|id| *id != u32::MAX);
            let ids = (id(number(header.uid())?), id(number(header.gid())?));
            let (Some(uid), Some(gid)) = ids else { return Err(refused("an owner out of range")) };
            Some((Uid::from_raw(uid), Gid::from_raw(gid)))
        } else {
            None
        };
        Ok(Attributes { mode, modified, owner })
    }

    fn file(
        &mut self,
        folders: &[OsString],
        name: &OsStr,
        attributes: Attributes,
        size: u64,
        data: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let path = self.tree.path(folders).join(name);
        let folder = self.tree.enter(folders)?;
        let temporary = temporary_name();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&folder, &temporary, flags, Mode::RUSR | Mode::WUSR)
            .map_err(host("create", &path))?;
        let result = fill(File::from(file), size, data, &mut self.buffer, &path)
            .and_then(|file| attributes.apply(&file, &path));
        let result = result.and_then(|()| {
            rustix::fs::renameat(&folder, &temporary, &folder, name).map_err(host("put in place", &path))
        });
        if result.is_err() {
            // It is the failure above that counts; a temporary file that cannot be removed either is visible.
            let _ = rustix::fs::unlinkat(&folder, &temporary, AtFlags::empty());
        }
        result
    }

    fn symlink(
        &mut self,
        folders: &[OsString],
        name: &OsStr,
        target: &OsStr,
        attributes: Attributes,
    ) -> Result<(), UnpackError> {
        let path = self.tree.path(folders).join(name);
        let folder = self.tree.enter(folders)?;
        replace(&folder, name, &path, |temporary| {
            rustix::fs::symlinkat(target, &folder, temporary)?;
            if let Some((uid, gid)) = attributes.owner {
                let (uid, gid) = (Some(uid), Some(gid));
                rustix::fs::chownat(&folder, temporary, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
            }
            match attributes.times() {
                Some(times) => rustix::fs::utimensat(&folder, temporary, &times, AtFlags::SYMLINK_NOFOLLOW),
                None => Ok(()),
            }
        })
    }

    fn hard_link(
        &mut self,
        folders: &[OsString],
        name: &OsStr,
        target: &[OsString],
    ) -> Result<(), UnpackError> {
        let path = self.tree.path(folders).join(name);
        let Some((target_name, target_folders)) = target.split_last() else {
            return Err(refused("a link to a folder"));
        };
        let target_folder = self.tree.enter(target_folders)?;
        let folder = self.tree.enter(folders)?;
        // Without AT_SYMLINK_FOLLOW: a link to a symbolic link is just that.
        replace(&folder, name, &path, |temporary| {
            rustix::fs::linkat(&target_folder, target_name, &folder, temporary, AtFlags::empty())
        })
    }
}

/// Makes something under a temporary name and puts it in place.
fn replace(
    folder: &OwnedFd,
    name: &OsStr,
    path: &Path,
    make: impl FnOnce(&str) -> rustix::io::Result<()>,
) -> Result<(), UnpackError> {
    let temporary = temporary_name();
    make(&temporary).map_err(host("link", path))?;
    let result = rustix::fs::renameat(folder, &temporary, folder, name).map_err(host("put in place", path));
    // rename() of two names of one file does nothing and succeeds: the temporary name may still be there.
    let _ = rustix::fs::unlinkat(folder, &temporary, AtFlags::empty());
    result
}

/// A name that nothing else has: the process and a count.
fn temporary_name() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!(".agentiso-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

fn fill(
    mut file: File,
    size: u64,
    data: &mut impl Read,
    buffer: &mut [u8],
    path: &Path,
) -> Result<File, UnpackError> {
    let mut left = size;
    loop {
        match data.read(buffer) {
            Ok(0) if left == 0 => return Ok(file),
            Ok(0) => return Err(UnpackError::Stream(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => {
                left = left.saturating_sub(count as u64);
                file.write_all(&buffer[..count]).map_err(|source| UnpackError::Host {
                    operation: "write",
                    path: path.to_owned(),
                    source,
                })?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(UnpackError::Stream(error)),
        }
    }
}

pub(super) fn host(operation: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> UnpackError {
    let path = path.to_owned();
    move |errno| UnpackError::Host { operation, path, source: errno.into() }
}

impl Attributes {
    /// Gives an open file or folder its owner, mode and time, in the order in which one does not undo another.
    pub(super) fn apply(&self, file: impl AsFd, path: &Path) -> Result<(), UnpackError> {
        let file = file.as_fd();
        if let Some((uid, gid)) = self.owner {
            rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(host("change the owner of", path))?;
        }
        rustix::fs::fchmod(file, self.mode).map_err(host("change the mode of", path))?;
        match self.times() {
            Some(times) => rustix::fs::futimens(file, &times).map_err(host("change the time of", path)),
            None => Ok(()),
        }
    }

    fn times(&self) -> Option<Timestamps> {
        let time = Timespec { tv_sec: self.modified?, tv_nsec: 0 };
        Some(Timestamps { last_access: time, last_modification: time })
    }
}
