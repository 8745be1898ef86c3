//! Fakes of the four traits that live in memory, faults to inject into them, and the contract suites that a backend
//! of one's own should pass.
//!
//! A [`FakeHost`] is what the fakes share: machines, disks, networks and channels of one pretended host. It outlives
//! whoever uses it: drop an engine and open another on the same `FakeHost`, and the machines still run. The guests
//! answer the wire protocol; their files live on the fake disks, so that what a guest wrote and did not sync is lost
//! with a crash, and a snapshot or fork has what was there when it was taken.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! use agentiso_core::storage::{DiskOrigin, Storage};
//! use agentiso_core::testkit::{FakeHost, Fault};
//! use agentiso_core::types::{BaseId, DiskId};
//!
//! let host = FakeHost::new();
//! let storage = host.storage();
//! let base = BaseId::random();
//! storage.begin_base(base, 1 << 30).await.unwrap();
//! storage.seal_base(base).await.unwrap();
//! host.faults().arm("storage.create_disk", 1, Fault::Fail);
//!
//! let disk = DiskId::random();
//! assert!(storage.create_disk(disk, DiskOrigin::Base(base), 1 << 30).await.is_err());
//! assert!(storage.create_disk(disk, DiskOrigin::Base(base), 1 << 30).await.is_ok());
//! # });
//! ```

mod agent;
mod channel;
#[allow(clippy::unwrap_used, clippy::expect_used, reason = "a contract suite is test code: it asserts")]
pub mod contract;
mod disks;
mod faults;
mod guest;
mod host;
mod hypervisor;
mod image;
mod memory;
mod network;
mod storage;
#[cfg(test)]
mod tests;

pub use agent::serve_agent;
pub use channel::FakeChannel;
pub use faults::{Fault, Faults, InjectedFault, METHODS};
pub use guest::{FakeFile, FakeGuest, FakeInvocation, FakeOutput};
pub use host::FakeHost;
pub use hypervisor::FakeHypervisor;
pub use image::add_image;
pub use network::FakeNetwork;
pub use storage::FakeStorage;

/// The numbers of the state folder whose records are in `database`; makes them if there are none.
///
/// # Errors
/// The records cannot be opened or made.
pub fn leases(
    database: &std::path::Path,
) -> Result<std::sync::Arc<dyn crate::leases::Leases>, crate::StoreError> {
    Ok(std::sync::Arc::new(crate::store::Store::open(database)?))
}
