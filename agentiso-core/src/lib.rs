//! fork() for machines.
#![warn(missing_docs)]

pub mod channel;
pub mod hypervisor;
pub mod network;
#[cfg(feature = "shim")]
pub mod shim;
pub mod storage;
pub mod types;
