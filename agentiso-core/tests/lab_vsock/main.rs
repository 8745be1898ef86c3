//! Machines that are reached over vhost-vsock: the channel's contract suite on real machines, and the whole engine.
//! `cargo xtask lab` has a host with it; elsewhere the tests say that they were skipped.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod crash;
mod fixture;
#[path = "../support/lab.rs"]
mod lab;
mod workspaces;

mod contract {
    agentiso_core::channel_contract!(crate::fixture::Fixture::new().await);
}
