//! Any bytes as the beginning of an image's tar: the one look that the host takes at it.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| agentiso_core::fuzzing::import_beginning(data));
