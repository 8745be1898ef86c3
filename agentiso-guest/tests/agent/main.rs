//! The agent in service mode, spoken to over a unix socket. Needs no privileges; what needs cgroup v2 says so.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on must stop")]

mod archives;
mod client;
mod clones;
mod commands;
mod environment;
mod files;
mod jobs;
mod key;
mod protocol;
mod requests;
mod tree;
