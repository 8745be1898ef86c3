//! A file or folder of the guest as a tar stream.

use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use tar::{Builder, EntryType, Header};

use super::wire::DataWriter;
use crate::failure::{Failure, Stop};
use crate::files::check_path;
use crate::serve::Connection;

/// Files with several names whose first name is remembered. Further ones are sent as files of their own.
const MAX_HARD_LINKS: usize = 65_536;

/// Sends `path` and all below it as a tar stream, entries named from its last component on. Sockets and what is mounted
/// below are left out; a file that shrinks meanwhile is filled up with zeros.
///
/// # Errors
/// Something cannot be read, or the connection is lost.
pub(crate) fn read(connection: &mut Connection, path: &str, follow: bool) -> Result<(), Stop> {
    let path = check_path(path)?;
    let root = if follow {
        fs::canonicalize(path)
            .map_err(|error| Failure::io(format!("following {}", path.display()), &error))?
    } else {
        path.to_path_buf()
    };
    let name = path.file_name().map_or_else(|| PathBuf::from("."), PathBuf::from);
    let mut writer = DataWriter::new(connection);
    let packed = Packer { builder: Builder::new(&mut writer), seen: HashMap::new() }.pack(&root, &name);
    match (packed, writer.into_lost()) {
        (_, Some(lost)) => Err(lost.into()),
        (Err(failure), None) => Err(failure.into()),
        (Ok(()), None) => Ok(()),
    }
}

struct Packer<W: Write> {
    builder: Builder<W>,
    /// First names of files that have several, by device and inode.
    seen: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Packer<W> {
    fn pack(mut self, root: &Path, name: &Path) -> Result<(), Failure> {
        let metadata = self.append(root, name)?;
        if metadata.is_dir() {
            // One open listing for each level, no list of what is in them.
            let mut levels = vec![(list(root)?, name.to_path_buf())];
            while let Some((listing, folder_name)) = levels.last_mut() {
                let Some(entry) = listing.next() else {
                    levels.pop();
                    continue;
                };
                let entry = entry
                    .map_err(|error| Failure::io(format!("listing {}", folder_name.display()), &error))?;
                let (path, name) = (entry.path(), folder_name.join(entry.file_name()));
                let Some(inner) = self.append_if_there(&path, &name)? else { continue };
                if inner.is_dir() && inner.dev() == metadata.dev() {
                    levels.push((list(&path)?, name));
                }
            }
        }
        let finished = self.builder.into_inner().and_then(|mut writer| writer.flush());
        finished.map_err(|error| Failure::io("sending the archive", &error))
    }

    /// As [`Packer::append`]; `None` for what disappeared since its folder was listed.
    fn append_if_there(&mut self, path: &Path, name: &Path) -> Result<Option<Metadata>, Failure> {
        if fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Ok(None);
        }
        self.append(path, name).map(Some)
    }

    fn append(&mut self, path: &Path, name: &Path) -> Result<Metadata, Failure> {
        self.try_append(path, name)
            .map_err(|error| Failure::io(format!("packing {}", path.display()), &error))
    }

    fn try_append(&mut self, path: &Path, name: &Path) -> io::Result<Metadata> {
        let metadata = fs::symlink_metadata(path)?;
        let kind = metadata.file_type();
        let mut header = Header::new_gnu();
        header.set_mode(metadata.mode() & 0o7777);
        header.set_uid(metadata.uid().into());
        header.set_gid(metadata.gid().into());
        header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
        header.set_size(0);
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            self.builder.append_data(&mut header, name, io::empty())?;
        } else if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            self.builder.append_link(&mut header, name, fs::read_link(path)?)?;
        } else if let Some(first) = self.first_name(&metadata, name) {
            header.set_entry_type(EntryType::Link);
            self.builder.append_link(&mut header, name, first)?;
        } else if kind.is_file() {
            let file = fs::File::options()
                .read(true)
                .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
                .open(path)?;
            header.set_entry_type(EntryType::Regular);
            header.set_size(metadata.len());
            self.builder.append_data(&mut header, name, Exactly { file, left: metadata.len() })?;
        } else if kind.is_fifo() || kind.is_char_device() || kind.is_block_device() {
            header.set_entry_type(match () {
                () if kind.is_fifo() => EntryType::Fifo,
                () if kind.is_char_device() => EntryType::Char,
                () => EntryType::Block,
            });
            header.set_device_major(rustix::fs::major(metadata.rdev()))?;
            header.set_device_minor(rustix::fs::minor(metadata.rdev()))?;
            self.builder.append_data(&mut header, name, io::empty())?;
        }
        Ok(metadata)
    }

    /// The name under which a file with several was sent already.
    fn first_name(&mut self, metadata: &Metadata, name: &Path) -> Option<PathBuf> {
        if !metadata.is_file() || metadata.nlink() < 2 {
            return None;
        }
        let file = (metadata.dev(), metadata.ino());
        let first = self.seen.get(&file).cloned();
        if first.is_none() && self.seen.len() < MAX_HARD_LINKS {
            self.seen.insert(file, name.to_path_buf());
        }
        first
    }
}

fn list(folder: &Path) -> Result<fs::ReadDir, Failure> {
    fs::read_dir(folder).map_err(|error| Failure::io(format!("listing {}", folder.display()), &error))
}

/// Exactly as many bytes as were announced, whatever happens to the file.
struct Exactly {
    file: fs::File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let mut count = self.file.read(&mut buffer[..most])?;
        if count == 0 {
            buffer[..most].fill(0);
            count = most;
        }
        self.left -= count as u64;
        Ok(count)
    }
}
