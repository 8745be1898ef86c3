//! Everything native at once, as the configuration chooses it: KVM, vhost-vsock, ZFS, bridge and nftables, cgroup v2. The whole
//! engine on real machines. `cargo xtask lab` has a host with all of it; elsewhere the tests say that they were skipped.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod crash;
mod fixture;
#[allow(dead_code, reason = "other tests need more of it")]
#[path = "../homes/mod.rs"]
mod homes;
#[path = "../support/lab.rs"]
mod lab;
mod life;
mod network;
mod refusals;
