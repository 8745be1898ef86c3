//! Folders of the destination, reached one component at a time and never through a symbolic link.

use std::{
    ffi::OsString,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Gid, Mode, OFlags, Uid},
    io::Errno,
};

use super::unpack::{UnpackError, host};

/// What a file is given besides its content.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes {
    /// Permission bits.
    pub(super) mode: Mode,
    /// Seconds since 1970; now if none.
    pub(super) modified: Option<i64>,
    /// Owner and group.
    pub(super) owner: Option<(Uid, Gid)>,
}

/// Most folders inside each other; each costs a descriptor while it is being filled.
const MAX_DEPTH: usize = 512;

/// The destination and the folders on the way to the latest entry.
///
/// A new folder gets its mode and time when the stream has moved on to something outside it: before that it must stay
/// writable, and what is put into it changes its time.
#[derive(Debug)]
pub(super) struct Tree {
    path: PathBuf,
    root: OwnedFd,
    open: Vec<Folder>,
}

#[derive(Debug)]
struct Folder {
    name: OsString,
    folder: OwnedFd,
    /// What it gets in the end; it was there before if none.
    attributes: Option<Attributes>,
}

/// What a folder gets that the stream has things in but does not describe.
const UNDESCRIBED: Attributes = Attributes { mode: Mode::from_raw_mode(0o755), modified: None, owner: None };

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Tree {
    /// The folder that everything goes into. It may be a symbolic link: the user named it.
    pub(super) fn open(path: &Path) -> Result<Self, UnpackError> {
        let flags = FOLDER.difference(OFlags::NOFOLLOW);
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(host("open", path))?;
        Ok(Self { path: path.to_owned(), root, open: Vec::new() })
    }

    /// For messages.
    pub(super) fn path(&self, place: &[OsString]) -> PathBuf {
        place.iter().fold(self.path.clone(), |path, component| path.join(component))
    }

    /// Opens a folder, making what is missing on the way.
    pub(super) fn enter(&mut self, place: &[OsString]) -> Result<OwnedFd, UnpackError> {
        self.walk(place)?;
        let folder = self.open.last().map_or(&self.root, |folder| &folder.folder);
        folder.try_clone().map_err(|source| UnpackError::Host {
            operation: "open",
            path: self.path(place),
            source,
        })
    }

    /// Makes a folder. One that exists already stays as it is.
    pub(super) fn make(&mut self, place: &[OsString], attributes: Attributes) -> Result<(), UnpackError> {
        let is_new = self.walk(place)?;
        if let (true, Some(folder)) = (is_new, self.open.last_mut()) {
            folder.attributes = Some(attributes);
        }
        Ok(())
    }

    /// Gives the folders that are still open what they get in the end.
    pub(super) fn close(&mut self) -> Result<(), UnpackError> {
        self.leave(0)
    }

    /// Returns whether the last folder was made.
    fn walk(&mut self, place: &[OsString]) -> Result<bool, UnpackError> {
        if place.len() > MAX_DEPTH {
            return Err(UnpackError::Refused {
                what: format!("more than {MAX_DEPTH} folders inside each other"),
            });
        }
        let common = self.open.iter().zip(place).take_while(|(folder, name)| folder.name == **name).count();
        self.leave(common)?;
        let mut is_new = false;
        for depth in common..place.len() {
            let path = self.path(&place[..=depth]);
            let parent = self.open.last().map_or(&self.root, |folder| &folder.folder);
            let name = &place[depth];
            is_new = match rustix::fs::mkdirat(parent, name, Mode::RWXU) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(errno) => return Err(host("make", &path)(errno)),
            };
            let folder = rustix::fs::openat(parent, name, FOLDER, Mode::empty())
                .map_err(host("open the folder", &path))?;
            self.open.push(Folder { name: name.clone(), folder, attributes: is_new.then_some(UNDESCRIBED) });
        }
        Ok(is_new)
    }

    fn leave(&mut self, depth: usize) -> Result<(), UnpackError> {
        while self.open.len() > depth {
            let names: Vec<OsString> = self.open.iter().map(|folder| folder.name.clone()).collect();
            let Some(folder) = self.open.pop() else { break };
            if let Some(attributes) = folder.attributes {
                attributes.apply(&folder.folder, &self.path(&names))?;
            }
        }
        Ok(())
    }
}
