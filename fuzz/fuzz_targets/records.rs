//! Rows of the database that somebody else wrote: the columns of one workspace, one a line.
#![no_main]

use agentiso_core::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    fuzzing::workspace_columns(data);
    // Opening a database takes a thousand times as long.
    if data.first().is_some_and(|byte| byte % 16 == 1) {
        fuzzing::workspace_record(&data[1..]);
    }
});
