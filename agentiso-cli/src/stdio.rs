//! Our standard streams: writing without ever panicking, reading without holding up the end.

use std::io::{self, Read, Write};

use tokio::sync::mpsc;

/// Standard input as it comes; closed at its end.
pub(crate) type StdinChunks = mpsc::Receiver<io::Result<Vec<u8>>>;

/// Bytes read at a time.
const CHUNK_BYTES: usize = 64 * 1024;

/// Chunks that are read ahead of whoever takes them.
const CHUNKS_AHEAD: usize = 4;

/// Begins to read standard input.
///
/// A thread of our own reads it: a pending read of a terminal cannot be cancelled, and one that the runtime waits for
/// would keep the program from ending.
pub(crate) fn stdin_chunks() -> StdinChunks {
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        loop {
            let mut chunk = vec![0; CHUNK_BYTES];
            let read = match stdin.read(&mut chunk) {
                Ok(0) => return,
                Ok(count) => {
                    chunk.truncate(count);
                    Ok(chunk)
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let is_last = read.is_err();
            if sender.blocking_send(read).is_err() || is_last {
                return;
            }
        }
    });
    receiver
}

/// Writes a line to standard error. Nobody reading it is no reason to fail.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Writes to standard output and flushes it.
pub(crate) fn write_out(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}
