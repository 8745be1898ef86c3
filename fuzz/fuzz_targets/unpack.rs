//! Any tar into the agent's unpacker: nothing outside of the folder is written, read, linked or changed.
//!
//! Input: a byte of flags, then the stream. The agent is a program and no library, so this target is built from its
//! source files.
#![no_main]
#![allow(dead_code, reason = "the agent has more use for these files than this target")]

use std::path::Path;

use agentiso_fuzz::Playground;
use agentiso_guest::message::Compression;
use libfuzzer_sys::fuzz_target;

#[path = "../../agentiso-guest/src/failure.rs"]
mod failure;

/// What `failure` takes from the agent's connections.
mod serve {
    #[derive(Debug)]
    pub(crate) enum Lost {}
}

#[path = "../../agentiso-guest/src/archive/compression.rs"]
mod compression;
#[path = "../../agentiso-guest/src/archive/tar_stream.rs"]
mod tar_stream;
#[path = "../../agentiso-guest/src/archive/unpack.rs"]
mod unpack;

/// What a guest's disk holds ends every stream; here it is this many bytes.
const MAX_BYTES: u64 = 1024 * 1024;

fn write(stream: &[u8], folder: &Path, packed: Compression, preserve: bool) {
    let mut input = stream;
    let _ = compression::decompress(&mut input, packed).and_then(|plain| {
        let mut plain = agentiso_fuzz::at_most(MAX_BYTES, plain);
        unpack::unpack(&mut plain, folder, preserve)?;
        compression::drain(&mut plain)
    });
}

/// The headers' checksums are made right.
const MEND: u8 = 1;
/// Owners, devices and attributes are kept, as for an image.
const PRESERVE: u8 = 2;
/// How it is packed is found out.
const DETECT: u8 = 4;

fuzz_target!(|data: &[u8]| {
    let [flags, stream @ ..] = data else { return };
    let stream = if flags & MEND != 0 { agentiso_fuzz::with_checksums(stream) } else { stream.to_vec() };
    let packed = match flags >> 3 & 3 {
        _ if flags & DETECT != 0 => Compression::Detect,
        1 => Compression::Gzip,
        2 => Compression::Zstd,
        _ => Compression::None,
    };
    let playground = Playground::new();
    write(&stream, &playground.inside(), packed, flags & PRESERVE != 0);
    playground.check();
});
