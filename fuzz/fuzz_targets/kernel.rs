//! Any bytes as a kernel, and as one packed in each way.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| agentiso_core::fuzzing::kernel(data));
