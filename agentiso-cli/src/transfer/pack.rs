//! Files of this host as a tar stream.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{self, File, Metadata},
    io::{self, Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use tar::{Builder, EntryType, Header};

/// What is packed, and how it is named in the stream.
#[derive(Debug)]
pub(crate) struct PackSpec<'a> {
    /// File or folder of this host.
    pub(crate) source: &'a Path,
    /// Follow a symbolic link at the end of `source`; those below are packed as links.
    pub(crate) follow: bool,
    /// The name of `source` in the stream; its contents are at the stream's root if none.
    pub(crate) name: Option<&'a OsStr>,
}

/// Why files could not be packed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
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
    /// It is shorter than it was when its size was announced.
    #[error("{} became shorter while it was read", .0.display())]
    Shrunk(PathBuf),
    /// The stream takes no more.
    #[error("could not send the files")]
    Stream(#[source] io::Error),
}

/// Longest name that fits a tar header; longer ones get an extension header in front (GNU `L` and `K`).
const HEADER_NAME_BYTES: usize = 100;

/// Writes the files to `out`: modes, times, owners, symbolic and hard links as they are, names and link targets byte
/// for byte. What is neither file, folder nor link is left out and handed to `skipped`.
pub(crate) fn pack<W: Write>(
    spec: &PackSpec<'_>,
    out: W,
    skipped: &mut dyn FnMut(&Path),
) -> Result<W, PackError> {
    let mut packer = Packer { tar: Builder::new(out), links: HashMap::new(), skipped };
    let metadata = if spec.follow { fs::metadata(spec.source) } else { fs::symlink_metadata(spec.source) };
    let metadata = metadata.map_err(host("read", spec.source))?;
    match spec.name {
        Some(name) => packer.add(spec.source, Path::new(name), &metadata, spec.follow)?,
        None => packer.add_contents(spec.source, Path::new(""))?,
    }
    packer.tar.into_inner().map_err(PackError::Stream)
}

struct Packer<'a, W: Write> {
    tar: Builder<W>,
    /// Where a file with several names was packed first, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    skipped: &'a mut dyn FnMut(&Path),
}

impl<W: Write> Packer<'_, W> {
    fn add(&mut self, path: &Path, name: &Path, metadata: &Metadata, follow: bool) -> Result<(), PackError> {
        let kind = metadata.file_type();
        if kind.is_dir() {
            let mut header = header(EntryType::Directory, metadata);
            self.append(&mut header, name, io::empty())?;
            self.add_contents(path, name)
        } else if kind.is_symlink() {
            let target = fs::read_link(path).map_err(host("read", path))?;
            self.append_link(EntryType::Symlink, name, target.as_os_str(), metadata)
        } else if kind.is_file() {
            self.add_file(path, name, follow)
        } else {
            debug_assert!(
                kind.is_socket() || kind.is_fifo() || kind.is_block_device() || kind.is_char_device()
            );
            (self.skipped)(path);
            Ok(())
        }
    }

    fn add_contents(&mut self, folder: &Path, name: &Path) -> Result<(), PackError> {
        let mut entries = fs::read_dir(folder)
            .and_then(Iterator::collect::<io::Result<Vec<_>>>)
            .map_err(host("list", folder))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let metadata = entry.metadata().map_err(host("read", &path))?;
            self.add(&path, &name.join(entry.file_name()), &metadata, false)?;
        }
        Ok(())
    }

    fn add_file(&mut self, path: &Path, name: &Path, follow: bool) -> Result<(), PackError> {
        // What was a regular file a moment ago may be a FIFO now: do not wait for its writer.
        let flags = rustix::fs::OFlags::NONBLOCK
            | if follow { rustix::fs::OFlags::empty() } else { rustix::fs::OFlags::NOFOLLOW };
        let file = fs::OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path)
            .map_err(host("open", path))?;
        let metadata = file.metadata().map_err(host("read", path))?;
        if !metadata.is_file() {
            (self.skipped)(path);
            return Ok(());
        }
        if metadata.nlink() > 1 {
            let first = self.links.entry((metadata.dev(), metadata.ino())).or_insert_with(|| name.to_owned());
            if first != name {
                let first = first.clone();
                return self.append_link(EntryType::Link, name, first.as_os_str(), &metadata);
            }
        }
        let mut header = header(EntryType::Regular, &metadata);
        header.set_size(metadata.len());
        let mut source = Exactly { file, left: metadata.len(), failure: None };
        let result = self.append(&mut header, name, &mut source);
        match source.failure {
            Some(Failure::Read(error)) => Err(host("read", path)(error)),
            Some(Failure::Short) => Err(PackError::Shrunk(path.to_owned())),
            None => result,
        }
    }

    fn append_link(
        &mut self,
        kind: EntryType,
        name: &Path,
        target: &OsStr,
        metadata: &Metadata,
    ) -> Result<(), PackError> {
        let mut header = header(kind, metadata);
        let target = target.as_bytes();
        if target.len() > HEADER_NAME_BYTES {
            self.append_extension(EntryType::GNULongLink, target)?;
        }
        copy_into(&mut header.as_old_mut().linkname, target);
        self.append(&mut header, name, io::empty())
    }

    fn append(&mut self, header: &mut Header, name: &Path, data: impl Read) -> Result<(), PackError> {
        let name = name.as_os_str().as_bytes();
        if name.len() > HEADER_NAME_BYTES {
            self.append_extension(EntryType::GNULongName, name)?;
        }
        copy_into(&mut header.as_old_mut().name, name);
        header.set_cksum();
        self.tar.append(header, data).map_err(PackError::Stream)
    }

    fn append_extension(&mut self, kind: EntryType, text: &[u8]) -> Result<(), PackError> {
        let mut header = Header::new_gnu();
        copy_into(&mut header.as_old_mut().name, b"././@LongLink");
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(text.len() as u64 + 1);
        header.set_cksum();
        self.tar.append(&header, text.chain(&b"\0"[..])).map_err(PackError::Stream)
    }
}

fn host(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PackError {
    let path = path.to_owned();
    move |source| PackError::Host { operation, path, source }
}

fn header(kind: EntryType, metadata: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(metadata.uid().into());
    header.set_gid(metadata.gid().into());
    // Times before 1970 are rare and not worth another header.
    header.set_mtime(metadata.mtime().try_into().unwrap_or(0));
    header.set_size(0);
    header
}

/// As much as fits; an extension header carries the whole of what does not.
fn copy_into(field: &mut [u8; HEADER_NAME_BYTES], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
}

/// Reads exactly as much as was announced, and remembers whether it was reading that failed.
struct Exactly {
    file: File,
    left: u64,
    failure: Option<Failure>,
}

enum Failure {
    Read(io::Error),
    Short,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        loop {
            match self.file.read(&mut buffer[..most]) {
                Ok(0) => {
                    self.failure = Some(Failure::Short);
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(count) => {
                    self.left -= count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let kind = error.kind();
                    self.failure = Some(Failure::Read(error));
                    return Err(kind.into());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(stream: &[u8]) -> Vec<(String, EntryType)> {
        let mut archive = tar::Archive::new(stream);
        archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                (entry.path().unwrap().to_string_lossy().into_owned(), entry.header().entry_type())
            })
            .collect()
    }

    fn pack_all(source: &Path, follow: bool, name: Option<&str>) -> (Vec<u8>, Vec<PathBuf>) {
        let mut skipped = Vec::new();
        let spec = PackSpec { source, follow, name: name.map(OsStr::new) };
        let stream = pack(&spec, Vec::new(), &mut |path| skipped.push(path.to_owned())).unwrap();
        (stream, skipped)
    }

    #[test]
    fn folder_is_packed_under_its_new_name_in_a_fixed_order() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("b")).unwrap();
        fs::write(folder.path().join("b/2"), "two").unwrap();
        fs::write(folder.path().join("a"), "one").unwrap();

        let (stream, _) = pack_all(folder.path(), false, Some("new"));

        let expected = [
            ("new", EntryType::Directory),
            ("new/a", EntryType::Regular),
            ("new/b", EntryType::Directory),
            ("new/b/2", EntryType::Regular),
        ];
        assert_eq!(names(&stream), expected.map(|(name, kind)| (name.to_owned(), kind)));
    }

    #[test]
    fn contents_are_packed_without_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "one").unwrap();

        let (stream, _) = pack_all(folder.path(), false, None);

        assert_eq!(names(&stream), [("a".to_owned(), EntryType::Regular)]);
    }

    #[test]
    fn link_at_the_end_is_followed_only_when_asked() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "one").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("file", &link).unwrap();

        let (as_link, _) = pack_all(&link, false, Some("x"));
        let (followed, _) = pack_all(&link, true, Some("x"));

        assert_eq!(names(&as_link), [("x".to_owned(), EntryType::Symlink)]);
        assert_eq!(names(&followed), [("x".to_owned(), EntryType::Regular)]);
    }

    #[test]
    fn sockets_are_left_out_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();

        let (stream, skipped) = pack_all(folder.path(), false, Some("x"));

        assert_eq!(names(&stream), [("x".to_owned(), EntryType::Directory)]);
        assert_eq!(skipped, [socket]);
    }

    #[test]
    fn missing_source_is_named() {
        let spec =
            PackSpec { source: Path::new("/no/such/file"), follow: false, name: Some(OsStr::new("x")) };

        let error = pack(&spec, Vec::new(), &mut |_| ()).unwrap_err();

        assert_eq!(error.to_string(), "could not read /no/such/file");
    }
}
