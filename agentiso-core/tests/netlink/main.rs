//! The network of root, in network namespaces of the tests' own: bridge, TAP devices and rules are real, and machines
//! are namespaces whose card is pumped into theirs. Nothing of the host's own namespace is touched.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod contract;
mod crash;
mod errors;
mod fixture;
mod forwards;
mod frames;
mod guest;
mod internet;
mod reach;
mod recovery;
mod scale;
mod spoof;
