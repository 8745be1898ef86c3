//! What several targets share.

use std::{
    fs,
    io::Read,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
};

const BLOCK: usize = 512;

/// Makes the checksums of a tar stream's headers right, so that what is wrong behind them is read.
pub fn with_checksums(stream: &[u8]) -> Vec<u8> {
    let mut stream = stream.to_vec();
    let mut at = 0;
    while let Some(block) = stream.get_mut(at..at + BLOCK) {
        let mut header = tar::Header::new_old();
        header.as_mut_bytes().copy_from_slice(block);
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
        let size = header.entry_size().unwrap_or(0).checked_next_multiple_of(BLOCK as u64);
        let size = size.and_then(|size| usize::try_from(size).ok());
        match size.and_then(|size| (at + BLOCK).checked_add(size)) {
            Some(next) => at = next,
            None => break,
        }
    }
    stream
}

/// A folder to unpack into, and beside it something that nothing may touch.
pub struct Playground {
    folder: tempfile::TempDir,
    untouched: Vec<String>,
}

impl Playground {
    /// Makes one, in memory where the host has a file system for that.
    pub fn new() -> Self {
        let memory = PathBuf::from("/dev/shm");
        let place = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let folder = tempfile::Builder::new().prefix("agentiso-fuzz-").tempdir_in(place).expect("a folder");
        let outside = folder.path().join("outside");
        fs::create_dir(&outside).expect("a folder");
        fs::write(outside.join("secret"), b"secret").expect("a file");
        fs::create_dir(folder.path().join("inside")).expect("a folder");
        // What a stream may try to leave through.
        for (name, target) in [("up", "../outside"), ("away", outside.to_str().expect("a path"))] {
            std::os::unix::fs::symlink(target, folder.path().join("inside").join(name)).expect("a link");
        }
        let mut playground = Self { folder, untouched: Vec::new() };
        playground.untouched = playground.outside();
        playground
    }

    /// Where things may go.
    pub fn inside(&self) -> PathBuf {
        self.folder.path().join("inside")
    }

    /// Everything outside: names, kinds, modes, links, sizes.
    fn outside(&self) -> Vec<String> {
        let mut all = Vec::new();
        for folder in ["", "outside"] {
            for entry in fs::read_dir(self.folder.path().join(folder)).expect("the folder is there") {
                let path = entry.expect("an entry").path();
                let metadata = fs::symlink_metadata(&path).expect("an entry");
                if path.ends_with("inside") {
                    continue;
                }
                all.push(format!(
                    "{} {:o} {} {} {}",
                    path.display(),
                    metadata.mode(),
                    metadata.nlink(),
                    metadata.len(),
                    metadata.mtime()
                ));
            }
        }
        all.sort();
        all
    }

    /// # Panics
    /// Something outside is not as it was.
    pub fn check(&self) {
        assert_eq!(self.outside(), self.untouched, "something outside was touched");
        let secret = fs::read(self.folder.path().join("outside/secret")).expect("the secret is there");
        assert_eq!(secret, b"secret");
    }
}

impl Default for Playground {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        // Folders without any permission would stay, where a user who is not root unpacked them.
        let mut left = vec![self.inside()];
        while let Some(folder) = left.pop() {
            let _ = fs::set_permissions(&folder, fs::Permissions::from_mode(0o700));
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
            left.extend(entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()));
        }
    }
}

/// At most so many bytes of what another reader gives.
pub fn at_most(bytes: u64, reader: impl Read) -> impl Read {
    reader.take(bytes)
}
