//! The server as an MCP client sees it: lines of JSON-RPC, an engine on fakes behind it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

mod client;
mod commands;
mod files;
mod git;
mod lineage;
mod machines;
mod protocol;
mod sessions;
mod workspace;
