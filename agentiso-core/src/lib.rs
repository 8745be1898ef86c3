//! fork() for machines.
#![warn(missing_docs)]

pub mod channel;
pub mod hypervisor;
pub mod image;
pub mod network;
pub mod storage;
pub mod types;
