//! Any tar from a guest into the unpacker of `agentiso cp`: nothing outside of the folder is written, read, linked or
//! changed, no device is made and no set-user-id bit set.
//!
//! Input: a byte of flags, then the stream. The command line is a program and no library, so this target is built from
//! its source files.
#![no_main]
#![allow(dead_code, reason = "the command line has more use for these files than this target")]

use std::{ffi::OsStr, fs, os::unix::fs::MetadataExt, path::Path};

use agentiso_fuzz::Playground;
use libfuzzer_sys::fuzz_target;

#[path = "../../agentiso-cli/src/transfer/tree.rs"]
mod tree;
#[path = "../../agentiso-cli/src/transfer/unpack.rs"]
mod unpack;

/// The headers' checksums are made right.
const MEND: u8 = 1;
/// The destination gets another name.
const RENAME: u8 = 2;
/// The guest's root was asked for.
const ROOT: u8 = 4;

/// Set-user-id and set-group-id.
const PRIVILEGES: u32 = 0o6000;

fuzz_target!(|data: &[u8]| {
    let [flags, stream @ ..] = data else { return };
    let stream = if flags & MEND != 0 { agentiso_fuzz::with_checksums(stream) } else { stream.to_vec() };
    let playground = Playground::new();
    let folder = playground.inside();
    let spec = unpack::UnpackSpec {
        folder: &folder,
        name: (flags & RENAME != 0).then_some(OsStr::new("renamed")),
        from_root: flags & ROOT != 0,
        owners: false,
    };
    let _ = unpack::unpack(&spec, &stream[..], &mut |_| {});
    playground.check();
    look(&folder);
});

fn look(folder: &Path) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let metadata = fs::symlink_metadata(&path).expect("an entry");
        let kind = metadata.file_type();
        assert!(kind.is_dir() || kind.is_file() || kind.is_symlink(), "a device: {}", path.display());
        assert!(kind.is_symlink() || metadata.mode() & PRIVILEGES == 0, "privileges: {}", path.display());
        if kind.is_dir() {
            look(&path);
        }
    }
}
