//! Doors to decoders that are private, for `fuzz/` alone: each takes any bytes, hands them to the real decoder, and
//! panics if what must always hold does not. Not part of the public interface, whatever their visibility says.

pub use crate::tools::fuzzing::{git_status, git_words};
