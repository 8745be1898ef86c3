//! What may be wrapped around a tar.

use std::io::{self, BufReader, Read};

use agentiso_guest::message::Compression;
use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use crate::failure::Failure;

/// Largest Zstandard window, in bytes: what `zstd -19` uses, twice. The agent would have to hold all of it.
const MAX_ZSTD_WINDOW: u64 = 16 * 1024 * 1024;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Skippable Zstandard frames have one of sixteen numbers.
const ZSTD_SKIPPABLE: u32 = 0x184d_2a50;

/// The plain bytes of a stream that is packed as told.
///
/// # Errors
/// The first bytes cannot be read.
pub(super) fn decompress<'a>(
    input: &'a mut impl Read,
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
