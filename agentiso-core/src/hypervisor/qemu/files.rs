//! Small files and descriptors that the other modules share.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{
            fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};
use serde::{Serialize, de::DeserializeOwned};

use crate::{hypervisor::HypervisorError, types::MemoryMib};

/// Longest of our own small files that is read, in bytes.
const MAX_JSON_BYTES: u64 = 64 * 1024;

/// A [`HypervisorError::Io`] about a path.
pub(super) fn io_error(operation: &'static str, path: &Path, source: io::Error) -> HypervisorError {
    HypervisorError::Io { operation, object: path.display().to_string(), source }
}

/// Reads one of our own small files. What is missing or makes no sense is `None`: it will be written again.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(MAX_JSON_BYTES).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Writes a small file that only saves time: where it cannot be written, what it holds is found out again each time.
pub(super) fn remember<T: Serialize>(folder: &Path, name: &str, content: &T) {
    if let Err(error) = write_json(folder, name, content) {
        tracing::debug!(%error, "could not keep what was found out");
    }
}

/// Writes a small file whole or not at all. It need not survive a power failure: it can be found out again.
pub(super) fn write_json<T: Serialize>(
    folder: &Path,
    name: &str,
    content: &T,
) -> Result<(), HypervisorError> {
    let path = folder.join(name);
    let failed = |source| io_error("write", &path, source);
    let temporary = folder.join(format!(".{name}.{}", uuid::Uuid::new_v4().simple()));
    let written = serde_json::to_vec(content)
        .map_err(io::Error::from)
        .and_then(|bytes| create_new(&temporary, 0o600)?.write_all(&bytes))
        .and_then(|()| std::fs::rename(&temporary, &path));
    written.inspect_err(|_| drop(std::fs::remove_file(&temporary))).map_err(failed)
}

/// A file that is in no folder, with this content for good. Whoever has its descriptor may read it, under any user id:
/// QEMU opens it anew, as its own user.
pub(super) fn in_memory(name: &str, content: &[u8]) -> io::Result<File> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.write_all(content)?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file)
}

fn create_new(path: &Path, mode: u32) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path)
}

/// Opens the KVM device.
pub(super) fn open_kvm() -> io::Result<File> {
    File::options().read(true).write(true).open("/dev/kvm")
}

/// A file that reads as that much zero and takes up no space: the RAM of a machine before its first boot, mapped by
/// every machine of that size and written by none. Returns its path.
pub(super) fn zero_ram(state_dir: &Path, memory: MemoryMib) -> Result<PathBuf, HypervisorError> {
    let folder = state_dir.join("memory");
    let path = folder.join(format!("zero-{}.ram", memory.get()));
    let failed = |source| io_error("make", &path, source);
    if is_untouched(&path, memory) {
        return Ok(path);
    }
    match std::fs::create_dir(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o700)).map_err(failed)?;
    let temporary = folder.join(format!(".zero.{}", uuid::Uuid::new_v4().simple()));
    let made = create_new(&temporary, 0o400).and_then(|file| {
        file.set_len(memory.bytes())?;
        std::fs::rename(&temporary, &path)
    });
    made.inspect_err(|_| drop(std::fs::remove_file(&temporary))).map_err(failed)?;
    Ok(path)
}

fn is_untouched(path: &Path, memory: MemoryMib) -> bool {
    std::fs::symlink_metadata(path)
        .is_ok_and(|file| file.is_file() && file.len() == memory.bytes() && file.blocks() == 0)
}

/// A folder, for paths of any length: sockets in it are bound and connected through its descriptor.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    fd: OwnedFd,
}

impl Folder {
    pub(super) fn open(path: &Path) -> Result<Self, HypervisorError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd =
            rustix::fs::open(path, flags, Mode::empty()).map_err(|e| io_error("open", path, e.into()))?;
        Ok(Self { path: path.to_owned(), fd })
    }

    /// The full path, for messages.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A short path to the same file, good while this folder is open in this process.
    pub(super) fn short_path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.fd.as_raw_fd()))
    }

    /// Makes a listening socket. One that is left from an earlier machine is replaced.
    pub(super) fn listen(&self, name: &str) -> Result<OwnedFd, HypervisorError> {
        self.remove(name)?;
        let listener = UnixListener::bind(self.short_path(name))
            .map_err(|e| io_error("listen on", &self.path(name), e))?;
        Ok(listener.into())
    }

    /// Makes an empty file that only its owner can read, or empties the one there.
    pub(super) fn create(&self, name: &str) -> Result<File, HypervisorError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::openat(&self.fd, name, flags, mode)
            .map(File::from)
            .map_err(|e| io_error("create", &self.path(name), e.into()))
    }

    /// Makes a link to a file that others share, in place of one from an earlier machine.
    pub(super) fn link(&self, to: &Path, name: &str) -> Result<(), HypervisorError> {
        self.remove(name)?;
        let flags = rustix::fs::AtFlags::empty();
        rustix::fs::linkat(rustix::fs::CWD, to, &self.fd, name, flags)
            .map_err(|e| io_error("link", &self.path(name), e.into()))
    }

    /// Opens a regular file for reading; `None` if there is none.
    pub(super) fn read(&self, name: &str) -> Result<Option<File>, HypervisorError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(io_error("open", &self.path(name), error.into())),
        }
    }

    /// Removes a file. Not there: no effect.
    pub(super) fn remove(&self, name: &str) -> Result<(), HypervisorError> {
        match rustix::fs::unlinkat(&self.fd, name, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(io_error("remove", &self.path(name), error.into())),
        }
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_ram_takes_no_space_and_is_made_once() {
        let state = tempfile::tempdir().unwrap();
        let memory = MemoryMib::new(256).unwrap();

        let first = zero_ram(state.path(), memory).unwrap().metadata().unwrap();
        let second = zero_ram(state.path(), memory).unwrap().metadata().unwrap();

        assert_eq!((first.len(), first.blocks(), first.mode() & 0o777), (memory.bytes(), 0, 0o400));
        assert_eq!(first.ino(), second.ino());
    }

    #[test]
    fn zero_ram_that_was_written_to_is_made_anew() {
        let state = tempfile::tempdir().unwrap();
        let memory = MemoryMib::new(128).unwrap();
        zero_ram(state.path(), memory).unwrap();
        let path = state.path().join("memory/zero-128.ram");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", 4096).unwrap();

        let mut first = [1; 8192];
        let path = zero_ram(state.path(), memory).unwrap();
        File::open(&path).unwrap().read_exact(&mut first).unwrap();

        assert_eq!(first, [0; 8192]);
    }

    #[test]
    fn socket_path_may_be_longer_than_a_socket_address() {
        let state = tempfile::tempdir().unwrap();
        let deep = state.path().join("d".repeat(200));
        std::fs::create_dir(&deep).unwrap();
        let folder = Folder::open(&deep).unwrap();

        let listener = folder.listen("qmp").unwrap();

        assert!(std::os::unix::net::UnixStream::connect(folder.short_path("qmp")).is_ok());
        drop(listener);
    }

    #[test]
    fn damaged_small_file_counts_as_missing() {
        let state = tempfile::tempdir().unwrap();
        write_json(state.path(), "a.json", &7).unwrap();
        let path = state.path().join("a.json");

        assert_eq!(read_json::<u32>(&path), Some(7));
        std::fs::write(&path, "{").unwrap();
        assert_eq!(read_json::<u32>(&path), None);
        assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 1);
    }
}
