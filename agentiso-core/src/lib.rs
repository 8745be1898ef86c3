//! fork() for machines.
#![warn(missing_docs)]

pub mod channel;
pub mod hypervisor;
pub mod network;
pub(crate) mod process;
#[cfg(feature = "shim")]
pub mod shim;
pub mod storage;
#[cfg(any(test, feature = "testkit"))]
pub mod testkit;
pub mod types;
