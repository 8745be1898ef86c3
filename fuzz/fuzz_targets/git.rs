//! What git in a workspace prints: its status, and words with credentials in them.
//!
//! Input: a byte that says which, then what is printed.
#![no_main]

use agentiso_mcp::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| match data {
    [b'w', printed @ ..] => fuzzing::git_words(printed),
    [_, printed @ ..] => fuzzing::git_status(printed),
    [] => {}
});
