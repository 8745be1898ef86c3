//! The ZFS storage on a real pool. Runs where AGENTISO_TEST_POOL names one, as root: in `cargo xtask lab`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::cast_possible_truncation, reason = "tests")]

mod crash;
mod devices;
mod fixture;
#[path = "../support/lab.rs"]
mod lab;
mod layout;
mod machines;
mod many;
mod timing;

mod contract {
    agentiso_core::storage_contract!(crate::fixture::Fixture::new().await);
}
