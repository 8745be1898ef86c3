//! The names in one folder, sorted.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use agentiso_guest::limits::MAX_FOLDER_NAMES_BYTES;
use rustix::fs::RawDir;
use rustix::io::Errno;

/// Bytes of one read of a folder.
const READ_BYTES: usize = 16 * 1024;

/// Why a folder's names could not be had.
pub(super) enum Error {
    /// It cannot be read.
    Read(Errno),
    /// There are more than are kept in memory.
    TooLarge,
}

/// Names in one piece of memory, for there may be very many.
pub(super) struct Names {
    bytes: Vec<u8>,
    /// Where each begins and how long it is, the last name first.
    spans: Vec<(usize, usize)>,
}

impl Names {
    /// Reads all names of a folder but `.` and `..`.
    pub(super) fn read(folder: impl AsFd) -> Result<Self, Error> {
        let mut buffer = [MaybeUninit::uninit(); READ_BYTES];
        let mut listing = RawDir::new(folder, &mut buffer);
        let mut names = Self { bytes: Vec::new(), spans: Vec::new() };
        while let Some(entry) = listing.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(Errno::INTR) => continue,
                // Removed while it was open.
                Err(Errno::NOENT) => break,
                Err(error) => return Err(Error::Read(error)),
            };
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            if names.bytes.len() + name.len() > MAX_FOLDER_NAMES_BYTES {
                return Err(Error::TooLarge);
            }
            names.spans.push((names.bytes.len(), name.len()));
            names.bytes.extend_from_slice(name);
        }
        let Self { bytes, spans } = &mut names;
        spans.sort_unstable_by(|one, other| slice(bytes, *other).cmp(slice(bytes, *one)));
        Ok(names)
    }

    /// The next name in order.
    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        let span = self.spans.pop()?;
        Some(slice(&self.bytes, span).to_vec())
    }
}

fn slice(bytes: &[u8], (start, length): (usize, usize)) -> &[u8] {
    &bytes[start..start + length]
}
