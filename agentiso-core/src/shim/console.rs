//! `agentiso-shim console NAME`: keeps the newest part of what a machine prints, on its console and on its
//! hypervisor's stderr, in files of bounded size.
//!
//! Inherited descriptors: 3 the console (a connected socket), 4 the read end of stderr's pipe, 5 and 6 the files they
//! go to, open for writing (and for reading, to keep what they already hold when they are cut). Ends when both inputs
//! have ended.
//!
//! A guest that prints for ever costs the processor what its bytes cost, twice written, and nothing else: a file
//! never passes [`MAX_LOG_BYTES`]. A full disk loses output, never blocks the guest.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags},
    fs::OFlags,
    io::Errno,
};

use super::{confine, sys};

/// Longest log file, in bytes.
const MAX_LOG_BYTES: u64 = 256 * 1024;

/// How much is kept, in bytes, when a file would grow past its limit.
const KEPT_BYTES: usize = 128 * 1024;

/// Most bytes taken at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// Address space, in bytes: the program and its buffers take about a tenth.
const MEMORY_BYTES: u64 = 64 * 1024 * 1024;

/// Runs until both inputs have ended.
pub(super) fn main() -> io::Result<()> {
    let [console, stderr, console_log, stderr_log] =
        [sys::inherited(3)?, sys::inherited(4)?, sys::inherited(5)?, sys::inherited(6)?];
    let mut drains = [
        Drain { input: Some(console), log: Log::open(console_log)? },
        Drain { input: Some(stderr), log: Log::open(stderr_log)? },
    ];
    confine::confine(confine::Allowance {
        network: false,
        file_bytes: MAX_LOG_BYTES,
        // Those inherited and the standard three.
        descriptors: 8,
        memory_bytes: MEMORY_BYTES,
    })?;
    run(&mut drains)
}

/// An input and the file it goes to.
struct Drain {
    /// `None` once it has ended.
    input: Option<OwnedFd>,
    log: Log,
}

fn run(drains: &mut [Drain]) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let open: Vec<usize> = (0..drains.len()).filter(|&i| drains[i].input.is_some()).collect();
        if open.is_empty() {
            return Ok(());
        }
        let mut waits: Vec<PollFd<'_>> = drains
            .iter()
            .filter_map(|drain| drain.input.as_ref())
            .map(|input| PollFd::new(input, PollFlags::IN))
            .collect();
        match rustix::event::poll(&mut waits, None) {
            Err(Errno::INTR) => continue,
            outcome => outcome?,
        };
        let ready: Vec<bool> = waits.iter().map(|wait| !wait.revents().is_empty()).collect();
        for (i, _) in open.into_iter().zip(ready).filter(|(_, ready)| *ready) {
            drains[i].take(&mut chunk);
        }
    }
}

impl Drain {
    /// Moves what is there, at most one chunk. An input that fails has ended.
    fn take(&mut self, chunk: &mut [u8]) {
        let Some(input) = &self.input else { return };
        match rustix::io::read(input, &mut *chunk) {
            Ok(0) => self.input = None,
            Ok(count) => self.log.append(&chunk[..count]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => self.input = None,
        }
    }
}

/// A file that keeps the newest of what was written to it.
struct Log {
    file: OwnedFd,
    len: u64,
    /// The newest bytes of the file, at most [`KEPT_BYTES`].
    newest: Vec<u8>,
}

impl Log {
    /// Goes on behind what the file holds.
    fn open(file: OwnedFd) -> io::Result<Self> {
        // With O_APPEND, the kernel would ignore the places written to below.
        let flags = rustix::fs::fcntl_getfl(&file)?;
        rustix::fs::fcntl_setfl(&file, flags - OFlags::APPEND)?;
        let len = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or_default();
        let mut log = Self { newest: newest_of(&file, len), file, len };
        if log.len > MAX_LOG_BYTES {
            log.cut();
        }
        Ok(log)
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.len + bytes.len() as u64 > MAX_LOG_BYTES {
            self.cut();
        }
        // A failure (a full disk) loses these bytes from the file; the guest must not be held up by it.
        if self.len + bytes.len() as u64 <= MAX_LOG_BYTES
            && let Ok(written) = write_at(self.file.as_fd(), bytes, self.len)
        {
            self.len += written;
        }
        let spare = (self.newest.len() + bytes.len()).saturating_sub(KEPT_BYTES).min(self.newest.len());
        self.newest.drain(..spare);
        self.newest.extend_from_slice(&bytes[bytes.len().saturating_sub(KEPT_BYTES)..]);
    }

    /// Leaves only the newest bytes.
    ///
    /// They are written to the beginning before the rest is cut off, so that the end of the file is right at every
    /// moment for whoever reads it meanwhile.
    fn cut(&mut self) {
        if let Ok(written) = write_at(self.file.as_fd(), &self.newest, 0)
            && rustix::fs::ftruncate(&self.file, written).is_ok()
        {
            self.len = written;
        }
    }
}

/// The newest bytes of a file; none if it cannot be read.
fn newest_of(file: &OwnedFd, len: u64) -> Vec<u8> {
    let mut newest = vec![0; KEPT_BYTES];
    let mut filled = 0;
    let start = len.saturating_sub(KEPT_BYTES as u64);
    while let Ok(count @ 1..) = rustix::io::pread(file, &mut newest[filled..], start + filled as u64) {
        filled += count;
    }
    newest.truncate(filled);
    newest
}

/// Writes what fits, up to [`MAX_LOG_BYTES`], and says how much that was.
fn write_at(file: std::os::fd::BorrowedFd<'_>, bytes: &[u8], place: u64) -> io::Result<u64> {
    let mut written: usize = 0;
    while written < bytes.len() {
        match rustix::io::pwrite(file, &bytes[written..], place + written as u64) {
            Ok(0) => break,
            Ok(count) => written += count,
            Err(Errno::INTR) => {}
            Err(_) if written > 0 => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(written as u64)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write, os::unix::net::UnixStream, thread};

    use super::*;

    fn log_file(before: &[u8]) -> (tempfile::NamedTempFile, Log) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(before).unwrap();
        let log = Log::open(file.reopen().unwrap().into()).unwrap();
        (file, log)
    }

    /// Lines that differ, so that a wrong place shows.
    fn numbered(bytes: usize) -> Vec<u8> {
        (0..).flat_map(|i: u32| format!("line {i}\n").into_bytes()).take(bytes).collect()
    }

    #[test]
    fn log_at_its_limit_is_whole() {
        let (file, mut log) = log_file(b"");
        let text = numbered(usize::try_from(MAX_LOG_BYTES).unwrap());
        text.chunks(CHUNK_BYTES).for_each(|chunk| log.append(chunk));
        assert!(fs::read(file.path()).unwrap() == text);
    }

    #[test]
    fn log_past_its_limit_keeps_the_newest_half() {
        let (file, mut log) = log_file(b"");
        let text = numbered(usize::try_from(MAX_LOG_BYTES).unwrap() + 1);
        text.chunks(CHUNK_BYTES).for_each(|chunk| log.append(chunk));
        assert!(fs::read(file.path()).unwrap() == text[text.len() - KEPT_BYTES - 1..]);
    }

    #[test]
    fn log_goes_on_behind_what_the_file_held() {
        let text = numbered(usize::try_from(MAX_LOG_BYTES).unwrap() + 10);
        let (file, mut log) = log_file(&text[..200_000]);
        text[200_000..].chunks(CHUNK_BYTES).for_each(|chunk| log.append(chunk));
        let kept = fs::read(file.path()).unwrap();
        assert!(kept.len() as u64 <= MAX_LOG_BYTES && kept.len() >= KEPT_BYTES && text.ends_with(&kept));
    }

    #[test]
    fn endless_output_stays_within_the_limit_and_ends_with_the_newest() {
        let (file, log) = log_file(b"");
        let (other_file, other_log) = log_file(b"");
        let (mut console, console_end) = UnixStream::pair().unwrap();
        let (stderr, stderr_end) = UnixStream::pair().unwrap();
        let text = numbered(10_000_000);
        let writer = thread::spawn(move || {
            console.write_all(&text).unwrap();
            drop(stderr);
            text
        });
        run(&mut [
            Drain { input: Some(console_end.into()), log },
            Drain { input: Some(stderr_end.into()), log: other_log },
        ])
        .unwrap();
        let kept = fs::read(file.path()).unwrap();
        assert!(kept.len() as u64 <= MAX_LOG_BYTES && kept.len() >= KEPT_BYTES);
        assert!(writer.join().unwrap().ends_with(&kept));
        assert_eq!(fs::metadata(other_file.path()).unwrap().len(), 0);
    }
}
