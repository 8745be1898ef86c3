//! Programs that embed agentiso; run one with `cargo run -p agentiso-examples --example NAME`.
//!
//! - `embed`: a machine in five lines.
//! - `parallel_tests`: one prepared machine, forked once for each test.
//! - `custom_storage`: a storage of one's own under the engine, on fakes of everything else.
