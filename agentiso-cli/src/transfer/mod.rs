//! Copying between this host and workspaces, as tar streams that are never held in memory as a whole.

pub(crate) mod guest_path;
pub(crate) mod pack;
pub(crate) mod rules;
mod tree;
pub(crate) mod unpack;
#[cfg(test)]
mod unpack_tests;

use std::{
    ffi::{OsStr, OsString},
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use agentiso_core::channel::client::{Compression, DataSink, GuestClient};
use tokio::{
    io::AsyncWriteExt,
    sync::mpsc,
    task::{JoinError, spawn_blocking},
};

use self::{
    pack::{PackError, PackSpec, pack},
    unpack::{UnpackError, UnpackSpec, unpack},
};
use crate::{error::CliError, stdio};

/// Bytes that go from one side to the other at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// Chunks that one side is ahead of the other.
const CHUNKS_AHEAD: usize = 4;

/// Most bytes behind the end of an archive: packers fill up their last record.
const MAX_PADDING_BYTES: u64 = 1024 * 1024;

/// What a copy tells while it goes on.
pub(crate) trait Observer: Clone + Send + 'static {
    /// So many bytes have gone through.
    fn bytes(&self, done: u64);
    /// Something was left out, for it is neither file, folder nor link.
    fn left_out(&self, path: &Path);
}

/// Packs files of this host and unpacks them in a guest's folder. Returns how many bytes of tar went through.
pub(crate) async fn upload(
    guest: &GuestClient,
    source: PathBuf,
    follow: bool,
    name: Option<OsString>,
    folder: &str,
    keep_owners: bool,
    observer: impl Observer,
) -> Result<u64, CliError> {
    let mut sink = guest.write_archive(folder, Compression::None, keep_owners).await?;
    let (sender, mut chunks) = mpsc::channel(CHUNKS_AHEAD);
    let watching = observer.clone();
    let packing = spawn_blocking(move || {
        let spec = PackSpec { source: &source, follow, name: name.as_deref() };
        let out = BufWriter::with_capacity(CHUNK_BYTES, ChunkWriter(sender));
        let mut out = pack(&spec, out, &mut |path| watching.left_out(path))?;
        out.flush().map_err(PackError::Stream)
    });
    let mut done = 0;
    while let Some(chunk) = chunks.recv().await {
        // The packer finds its stream closed then, and ends.
        sink.write(&chunk).await?;
        done += chunk.len() as u64;
        observer.bytes(done);
    }
    // Without `finish` the guest knows that this was not all.
    packing.await.map_err(crashed)?.map_err(packing_failed)?;
    sink.finish().await?;
    Ok(done)
}

/// Unpacks what a guest packs into a folder of this host. Returns how many bytes of tar went through.
pub(crate) async fn download(
    guest: &GuestClient,
    source: &str,
    follow: bool,
    target: Download,
    observer: impl Observer,
) -> Result<u64, CliError> {
    let mut stream = guest.read_archive(source, follow).await?;
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let watching = observer.clone();
    let unpacking = spawn_blocking(move || {
        let reader = ChunkReader { receiver, chunk: Vec::new(), used: 0, is_over: false };
        unpack_all(&target.spec(), reader, &watching)
    });
    let mut done = 0;
    let received = loop {
        let chunk = match stream.chunk().await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break sender.send(Chunk::End).await.or(Ok(())),
            Err(error) => break Err(error),
        };
        done += chunk.len() as u64;
        observer.bytes(done);
        if sender.send(Chunk::Bytes(chunk)).await.is_err() {
            // The unpacker has failed, and says why below.
            break Ok(());
        }
    };
    drop(sender);
    let unpacked = unpacking.await.map_err(crashed)?;
    received?;
    unpacked.map_err(unpacking_failed)?;
    Ok(done)
}

/// Unpacks, and reads the padding behind the archive.
fn unpack_all(
    spec: &UnpackSpec<'_>,
    mut reader: ChunkReader,
    observer: &impl Observer,
) -> Result<(), UnpackError> {
    unpack(spec, &mut reader, &mut |path| observer.left_out(path))?;
    let behind = io::copy(&mut reader.take(MAX_PADDING_BYTES + 1), &mut io::sink());
    match behind.map_err(UnpackError::Stream)? {
        0..=MAX_PADDING_BYTES => Ok(()),
        _ => Err(UnpackError::Refused { what: "more than an archive".to_owned() }),
    }
}

/// Where downloaded files go; see [`UnpackSpec`].
#[derive(Debug)]
pub(crate) struct Download {
    pub(crate) folder: PathBuf,
    pub(crate) name: Option<OsString>,
    pub(crate) from_root: bool,
    pub(crate) owners: bool,
}

impl Download {
    fn spec(&self) -> UnpackSpec<'_> {
        UnpackSpec {
            folder: &self.folder,
            name: self.name.as_deref().map(OsStr::new),
            from_root: self.from_root,
            owners: self.owners,
        }
    }
}

/// Sends the tar stream on standard input to a guest.
pub(crate) async fn upload_stream(mut sink: DataSink, observer: impl Observer) -> Result<u64, CliError> {
    let mut stdin = stdio::stdin_chunks();
    let mut done = 0;
    while let Some(chunk) = stdin.recv().await {
        let chunk = chunk.map_err(|source| CliError::local("could not read standard input", source))?;
        sink.write(&chunk).await?;
        done += chunk.len() as u64;
        observer.bytes(done);
    }
    sink.finish().await?;
    Ok(done)
}

/// Sends the tar stream of a guest to standard output.
pub(crate) async fn download_stream(
    guest: &GuestClient,
    source: &str,
    follow: bool,
    observer: impl Observer,
) -> Result<u64, CliError> {
    let mut stream = guest.read_archive(source, follow).await?;
    let mut stdout = tokio::io::stdout();
    let mut done = 0;
    while let Some(chunk) = stream.chunk().await? {
        stdout.write_all(&chunk).await.map_err(CliError::stdout)?;
        stdout.flush().await.map_err(CliError::stdout)?;
        done += chunk.len() as u64;
        observer.bytes(done);
    }
    Ok(done)
}

fn crashed(error: JoinError) -> CliError {
    CliError::local("the copy ended unexpectedly", io::Error::other(error))
}

fn packing_failed(error: PackError) -> CliError {
    match error {
        PackError::Host { operation, path, source } => {
            CliError::local(format!("could not {operation} {}", path.display()), source)
        }
        other => CliError::local("could not pack the files", io::Error::other(other)),
    }
}

fn unpacking_failed(error: UnpackError) -> CliError {
    match error {
        UnpackError::Host { operation, path, source } => {
            CliError::local(format!("could not {operation} {}", path.display()), source)
        }
        other => CliError::local("could not unpack what the workspace sent", io::Error::other(other)),
    }
}

/// A packer's end of a queue of chunks.
struct ChunkWriter(mpsc::Sender<Vec<u8>>);

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.blocking_send(bytes.to_vec()).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Chunk {
    Bytes(Vec<u8>),
    /// That was all: a queue that is closed without it was cut off.
    End,
}

/// An unpacker's end of a queue of chunks.
struct ChunkReader {
    receiver: mpsc::Receiver<Chunk>,
    chunk: Vec<u8>,
    used: usize,
    is_over: bool,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.used == self.chunk.len() && !self.is_over {
            match self.receiver.blocking_recv() {
                Some(Chunk::Bytes(chunk)) => (self.chunk, self.used) = (chunk, 0),
                Some(Chunk::End) => self.is_over = true,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let count = buffer.len().min(self.chunk.len() - self.used);
        buffer[..count].copy_from_slice(&self.chunk[self.used..self.used + count]);
        self.used += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_that_is_cut_off_is_no_end_of_file() {
        let (sender, receiver) = mpsc::channel(2);
        sender.blocking_send(Chunk::Bytes(b"abc".to_vec())).unwrap();
        drop(sender);
        let mut reader = ChunkReader { receiver, chunk: Vec::new(), used: 0, is_over: false };
        let mut bytes = Vec::new();

        let error = reader.read_to_end(&mut bytes).unwrap_err();

        assert_eq!((error.kind(), &bytes[..]), (io::ErrorKind::UnexpectedEof, &b"abc"[..]));
    }

    #[test]
    fn queue_with_an_end_is_read_to_it() {
        let (sender, receiver) = mpsc::channel(3);
        for chunk in [Chunk::Bytes(b"abc".to_vec()), Chunk::Bytes(b"de".to_vec()), Chunk::End] {
            sender.blocking_send(chunk).unwrap();
        }
        let mut reader = ChunkReader { receiver, chunk: Vec::new(), used: 0, is_over: false };
        let mut bytes = Vec::new();

        reader.read_to_end(&mut bytes).unwrap();

        assert_eq!(bytes, b"abcde");
    }
}
