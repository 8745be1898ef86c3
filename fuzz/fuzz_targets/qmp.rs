//! The client of QEMU's machine protocol against a QEMU that says anything and hangs up.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| agentiso_core::fuzzing::qmp(data));
