//! Files of the state folder that somebody else wrote: manifests of disks and bases, entries of images.
#![no_main]

use agentiso_core::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    fuzzing::disk_manifest(data);
    fuzzing::image_entry(data);
});
