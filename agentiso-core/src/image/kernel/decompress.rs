use std::io::{self, Read};

use serde::{Deserialize, Serialize};

/// Most bytes of one LZ4 block before packing, in the legacy format (`lz4 -l`), the one that kernels use.
const LZ4_LEGACY_BLOCK_BYTES: usize = 8 * 1024 * 1024;

const LZ4_LEGACY_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// How a kernel or module is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PackedAs {
    /// Not at all.
    Plain,
    /// gzip.
    Gzip,
    /// xz.
    Xz,
    /// Zstandard.
    Zstd,
    /// LZ4's legacy frame.
    Lz4Legacy,
    /// bzip2, which agentiso cannot unpack.
    Bzip2,
    /// LZMA (the format before xz), which agentiso cannot unpack.
    Lzma,
    /// LZO, which agentiso cannot unpack.
    Lzo,
}

impl std::fmt::Display for PackedAs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain => "not compressed",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4Legacy => "lz4",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Lzo => "lzo",
        })
    }
}

impl PackedAs {
    /// Finds out from the first bytes. What is none of the known formats counts as [`PackedAs::Plain`].
    pub fn detect(bytes: &[u8]) -> Self {
        const MAGICS: [(&[u8], PackedAs); 7] = [
            (&[0x1f, 0x8b], PackedAs::Gzip),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], PackedAs::Xz),
            (&[0x28, 0xb5, 0x2f, 0xfd], PackedAs::Zstd),
            (&LZ4_LEGACY_MAGIC, PackedAs::Lz4Legacy),
            (b"BZh", PackedAs::Bzip2),
            (&[0x5d, 0, 0], PackedAs::Lzma),
            (&[0x89, b'L', b'Z', b'O'], PackedAs::Lzo),
        ];
        MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic)).map_or(Self::Plain, |(_, packed)| *packed)
    }

    /// Unpacks `bytes`, at most `limit` of them. What follows the packed data is ignored, except with LZ4, whose
    /// legacy frame has no end mark.
    ///
    /// # Errors
    /// Damaged data, more than `limit` bytes, or a format that agentiso cannot unpack.
    pub fn unpack(self, bytes: &[u8], limit: usize) -> io::Result<Vec<u8>> {
        match self {
            Self::Plain if bytes.len() > limit => Err(too_long(limit)),
            Self::Plain => Ok(bytes.to_vec()),
            Self::Gzip => read_bounded(flate2::bufread::GzDecoder::new(bytes), limit),
            Self::Xz => read_bounded(lzma_rust2::XzReader::new(bytes, false), limit),
            Self::Zstd => {
                let decoder = ruzstd::decoding::StreamingDecoder::new(bytes)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                read_bounded(decoder, limit)
            }
            Self::Lz4Legacy => unpack_lz4_legacy(bytes, limit),
            Self::Bzip2 | Self::Lzma | Self::Lzo => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("{self} is not supported; gzip, xz, zstd and lz4 are"),
            )),
        }
    }
}

fn read_bounded(decoder: impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    // One byte more than allowed tells "exactly the limit" from "too long".
    let with_excess = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    decoder.take(with_excess).read_to_end(&mut unpacked)?;
    if unpacked.len() > limit { Err(too_long(limit)) } else { Ok(unpacked) }
}

/// The legacy frame: a magic number, then blocks of a 4-byte little-endian length and as many bytes.
fn unpack_lz4_legacy(bytes: &[u8], limit: usize) -> io::Result<Vec<u8>> {
    let damaged = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
    let mut rest = bytes.strip_prefix(&LZ4_LEGACY_MAGIC).ok_or_else(|| damaged("no lz4 magic number"))?;
    let mut unpacked = Vec::new();
    let mut block = vec![0; LZ4_LEGACY_BLOCK_BYTES];
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        rest = after;
        if *length == LZ4_LEGACY_MAGIC {
            continue; // frames may follow each other
        }
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let packed = rest.get(..length).ok_or_else(|| damaged("a block goes past the end"))?;
        rest = rest.get(length..).unwrap_or_default();
        let size = lz4_flex::block::decompress_into(packed, &mut block)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        unpacked.extend_from_slice(block.get(..size).unwrap_or_default());
        if unpacked.len() > limit {
            return Err(too_long(limit));
        }
    }
    if rest.is_empty() { Ok(unpacked) } else { Err(damaged("it ends in the middle of a block")) }
}

fn too_long(limit: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("more than {limit} bytes when unpacked"))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use super::*;

    /// Packs with the tool that kernel builds use; `None` if this host does not have it.
    pub(crate) fn pack_with(program: &str, arguments: &[&str], data: &[u8]) -> Option<Vec<u8>> {
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut child) = child else {
            eprintln!("skipped: {program} is not installed");
            return None;
        };
        let mut stdin = child.stdin.take().unwrap();
        let data = data.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&data).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(output.status.success(), "{program} failed");
        Some(output.stdout)
    }

    fn sample() -> Vec<u8> {
        (0..500_000u32).flat_map(|n| (n / 7).wrapping_mul(2_654_435_761).to_le_bytes()).collect()
    }

    #[test]
    fn unpack_returns_what_the_kernel_builds_tools_packed() {
        let data = sample();
        // The options of the kernel's scripts/Makefile.lib.
        let tools: [(&str, &[&str], PackedAs); 4] = [
            ("gzip", &["-n", "-9"], PackedAs::Gzip),
            ("lz4", &["-l", "-9", "-c", "-"], PackedAs::Lz4Legacy),
            ("xz", &["--check=crc32", "--x86", "--lzma2=,dict=32MiB"], PackedAs::Xz),
            ("zstd", &["-22", "--ultra", "-c"], PackedAs::Zstd),
        ];
        for (program, arguments, expected) in tools {
            let Some(packed) = pack_with(program, arguments, &data) else { continue };
            assert_eq!(PackedAs::detect(&packed), expected);
            assert!(expected.unpack(&packed, data.len()).unwrap() == data, "{program}");
        }
    }

    #[test]
    fn unpack_refuses_more_than_the_limit() {
        let data = sample();
        for (program, arguments) in
            [("gzip", &["-n"][..]), ("lz4", &["-l", "-c", "-"]), ("xz", &["-1"]), ("zstd", &["-1", "-c"])]
        {
            let Some(packed) = pack_with(program, arguments, &data) else { continue };
            assert!(PackedAs::detect(&packed).unpack(&packed, data.len() - 1).is_err(), "{program}");
        }
        assert!(PackedAs::Plain.unpack(&data, data.len() - 1).is_err());
    }

    #[test]
    fn unpack_of_truncated_data_is_an_error() {
        let data = sample();
        for (program, arguments) in
            [("gzip", &["-n"][..]), ("lz4", &["-l", "-c", "-"]), ("xz", &["-1"]), ("zstd", &["-1", "-c"])]
        {
            let Some(packed) = pack_with(program, arguments, &data) else { continue };
            let half = &packed[..packed.len() / 2];
            assert!(PackedAs::detect(half).unpack(half, data.len()).is_err(), "{program}");
        }
    }

    #[test]
    fn lz4_block_length_past_the_end_is_an_error() {
        for length in [1u32, 0x7fff_ffff, u32::MAX] {
            let frame = [&LZ4_LEGACY_MAGIC[..], &length.to_le_bytes()].concat();
            assert!(PackedAs::Lz4Legacy.unpack(&frame, 1024).is_err(), "{length}");
        }
    }
}
