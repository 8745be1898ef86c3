//! The connection as a byte stream, and what may be wrapped around a tar.

use std::io::{self, BufReader, Read, Write};

use agentiso_guest::message::{Compression, Input};
use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use crate::failure::{Failure, Stop};
use crate::serve::{Connection, Lost};

/// Largest Zstandard window, in bytes: what `zstd -19` uses, twice. The agent would have to hold all of it.
const MAX_ZSTD_WINDOW: u64 = 16 * 1024 * 1024;
/// Bytes of data that one reply carries.
const CHUNK_BYTES: usize = 256 * 1024;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Skippable Zstandard frames have one of sixteen numbers.
const ZSTD_SKIPPABLE: u32 = 0x184d_2a50;

/// Reads the payload of [`Input::Data`] up to [`Input::End`].
pub(super) struct DataReader<'a> {
    connection: &'a mut Connection,
    chunk: Vec<u8>,
    read: usize,
    ended: bool,
    stopped: Option<Stop>,
}

impl<'a> DataReader<'a> {
    pub(super) fn new(connection: &'a mut Connection) -> Self {
        Self { connection, chunk: Vec::new(), read: 0, ended: false, stopped: None }
    }

    fn next_chunk(&mut self) -> Result<(), Stop> {
        let frame = self.connection.receive_input()?;
        match frame.message {
            Input::Data { .. } => {
                self.chunk = frame.payload;
                self.read = 0;
            }
            Input::End => self.ended = true,
            _ => {
                return Err(Failure::invalid("unpacking an archive: only data and its end can follow").into());
            }
        }
        Ok(())
    }

    /// What stopped the stream if it was the stream, else `failure`.
    pub(super) fn why_it_failed(self, failure: Failure) -> Stop {
        self.stopped.unwrap_or(Stop::Failed(failure))
    }

    /// Waits for the end of the stream, behind which nothing of the archive may come.
    pub(super) fn finish(mut self) -> Result<(), Stop> {
        while !self.ended {
            self.next_chunk()?;
        }
        Ok(())
    }
}

impl Read for DataReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.chunk.len() && !self.ended {
            if let Err(stop) = self.next_chunk() {
                self.stopped = Some(stop);
                return Err(io::Error::other("the stream of data stopped"));
            }
        }
        let count = buffer.len().min(self.chunk.len() - self.read);
        buffer[..count].copy_from_slice(&self.chunk[self.read..self.read + count]);
        self.read += count;
        if self.read == self.chunk.len() {
            self.chunk = Vec::new();
            self.read = 0;
        }
        Ok(count)
    }
}

/// Writes data as [`Reply::Data`](agentiso_guest::message::Reply::Data), in pieces of a good size.
pub(super) struct DataWriter<'a> {
    connection: &'a mut Connection,
    chunk: Vec<u8>,
    lost: Option<Lost>,
}

impl<'a> DataWriter<'a> {
    pub(super) fn new(connection: &'a mut Connection) -> Self {
        Self { connection, chunk: Vec::with_capacity(CHUNK_BYTES), lost: None }
    }

    fn send(&mut self) -> io::Result<()> {
        if !self.chunk.is_empty() {
            let sent = self.connection.send_data(&self.chunk);
            self.chunk.clear();
            if let Err(lost) = sent {
                self.lost = Some(lost);
                return Err(io::Error::other("the connection is lost"));
            }
        }
        Ok(())
    }

    /// How the connection was lost, if it was.
    pub(super) fn into_lost(self) -> Option<Lost> {
        self.lost
    }
}

impl Write for DataWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..count]);
        if self.chunk.len() == CHUNK_BYTES {
            self.send()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}

/// The plain bytes of a stream that is packed as told.
///
/// # Errors
/// The first bytes cannot be read.
pub(super) fn decompress<'a>(
    input: &'a mut DataReader<'_>,
    compression: Compression,
) -> Result<Box<dyn Read + 'a>, Failure> {
    let mut first = [0; ZSTD_MAGIC.len()];
    let mut have = 0;
    while have < first.len() {
        match input.read(&mut first[have..]) {
            Ok(0) => break,
            Ok(count) => have += count,
            Err(error) => return Err(Failure::io("unpacking an archive", &error)),
        }
    }
    let first = first[..have].to_vec();
    let compression = match compression {
        Compression::Detect if first.starts_with(&GZIP_MAGIC) => Compression::Gzip,
        Compression::Detect if first == ZSTD_MAGIC || is_skippable(&first) => Compression::Zstd,
        Compression::Detect => Compression::None,
        told => told,
    };
    let whole = io::Cursor::new(first).chain(input);
    Ok(match compression {
        Compression::Gzip => Box::new(MultiGzDecoder::new(BufReader::new(whole))),
        Compression::Zstd => Box::new(ZstdReader::new(whole)),
        Compression::None | Compression::Detect => Box::new(whole),
    })
}

/// Reads to the end and throws away.
///
/// # Errors
/// The stream is damaged.
pub(super) fn drain(plain: &mut impl Read) -> Result<(), Failure> {
    io::copy(plain, &mut io::sink())
        .map(drop)
        .map_err(|error| Failure::invalid(format!("reading the rest of the archive: {error}")))
}

fn is_skippable(magic: &[u8]) -> bool {
    magic.try_into().is_ok_and(|magic| u32::from_le_bytes(magic) & 0xffff_fff0 == ZSTD_SKIPPABLE)
}

/// Zstandard, any number of frames one after the other, as the format allows and parallel compressors write.
struct ZstdReader<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: Read> ZstdReader<R> {
    fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_ZSTD_WINDOW);
        Self { source, decoder, in_frame: false }
    }

    /// Begins the next frame; false at the end of the stream.
    fn next_frame(&mut self) -> io::Result<bool> {
        loop {
            let mut magic = [0; 4];
            if self.source.read(&mut magic[..1])? == 0 {
                return Ok(false);
            }
            self.source.read_exact(&mut magic[1..])?;
            if is_skippable(&magic) {
                let mut length = [0; 4];
                self.source.read_exact(&mut length)?;
                let length = u64::from(u32::from_le_bytes(length));
                if io::copy(&mut (&mut self.source).take(length), &mut io::sink())? < length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                continue;
            }
            self.decoder.reset(io::Cursor::new(magic).chain(&mut self.source)).map_err(io::Error::other)?;
            self.in_frame = true;
            return Ok(true);
        }
    }
}

impl<R: Read> Read for ZstdReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.in_frame && !self.next_frame()? {
                return Ok(0);
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let one = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.source, one).map_err(io::Error::other)?;
            }
            let count = self.decoder.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            self.in_frame = false;
        }
    }
}
