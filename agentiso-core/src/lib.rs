//! fork() for machines.
#![warn(missing_docs)]

pub mod channel;
pub mod hypervisor;
pub mod network;
pub(crate) mod process;
pub mod storage;
pub mod types;
