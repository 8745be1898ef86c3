//! `agentiso-shim guard NAME`: sees to it that a machine that was stopped to be captured runs again, whatever becomes
//! of the process that stopped it.
//!
//! Inherited descriptors: 3 a connection to the machine's QMP socket, capabilities negotiated; 4 the read end of a pipe
//! whose other end the capturing process holds. A byte in the pipe says that all is well. The pipe's end without one,
//! or [`LIMIT`] without either, and the machine is told to run.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
};

use super::{confine, sys};
use crate::hypervisor::qemu::{CAPTURE_LIMIT as LIMIT, RESUME_COMMAND};

/// How long QEMU may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Address space, in bytes: the program takes about a tenth.
const MEMORY_BYTES: u64 = 64 * 1024 * 1024;

/// Runs until the machine is safe.
pub(super) fn main() -> io::Result<()> {
    let [control, pipe] = [sys::inherited(3)?, sys::inherited(4)?];
    confine::confine(confine::Allowance {
        network: false,
        file_bytes: 0,
        descriptors: 8,
        memory_bytes: MEMORY_BYTES,
    })?;
    watch(&control, &pipe, LIMIT)
}

fn watch(control: &OwnedFd, pipe: &OwnedFd, limit: Duration) -> io::Result<()> {
    let mut byte = [0];
    if readable(pipe, limit)? && rustix::io::read(pipe, &mut byte)? == 1 {
        return Ok(());
    }
    let mut rest = RESUME_COMMAND;
    while !rest.is_empty() {
        rest = rest.get(rustix::io::write(control, rest)?..).unwrap_or_default();
    }
    // Its answer is waited for: QEMU drops what a client that has gone had asked last.
    let mut answer = [0; 4096];
    while readable(control, ANSWER_LIMIT)? {
        let count = rustix::io::read(control, &mut answer)?;
        let answered = answer.get(..count).unwrap_or_default();
        if count == 0 || answered.windows(8).any(|part| part == b"\"return\"" || part == b"\"error\":") {
            break;
        }
    }
    Ok(())
}

/// Waits until there is something to read, or the end. `false` when the time is over.
fn readable(fd: &impl AsFd, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match rustix::event::poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
        thread,
    };

    use super::*;

    /// What a guard sends when `end` is done to its pipe.
    fn sent(limit: Duration, end: impl FnOnce(io::PipeWriter) -> Option<io::PipeWriter>) -> Vec<u8> {
        let (mut machine, control) = UnixStream::pair().unwrap();
        let (read, write) = io::pipe().unwrap();
        let guard = thread::spawn(move || watch(&control.into(), &read.into(), limit));
        let kept = end(write);
        let mut got = vec![0; RESUME_COMMAND.len()];
        machine.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let count = machine.read(&mut got).unwrap();
        got.truncate(count);
        machine.write_all(b"{\"return\": {}, \"id\": \"guard\"}\r\n").unwrap_or_default();
        guard.join().unwrap().unwrap();
        drop(kept);
        got
    }

    #[test]
    fn machine_is_left_alone_when_all_is_well() {
        let got = sent(Duration::from_secs(60), |mut pipe| {
            pipe.write_all(&[1]).unwrap();
            None
        });
        assert!(got.is_empty());
    }

    #[test]
    fn machine_runs_again_when_the_capturing_process_is_gone() {
        assert_eq!(sent(Duration::from_secs(60), |_| None), RESUME_COMMAND);
    }

    #[test]
    fn machine_runs_again_when_it_takes_too_long() {
        assert_eq!(sent(Duration::from_millis(10), Some), RESUME_COMMAND);
    }
}
