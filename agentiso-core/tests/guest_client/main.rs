//! The typed client against the real agent, which runs as a service of this host behind a unix socket.
//!
//! What would change this host (identity, freezing, power) is left to the tests on real machines.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation, reason = "tests")]

mod agent;
mod commands;
mod data;
mod jobs;
mod secrets;
