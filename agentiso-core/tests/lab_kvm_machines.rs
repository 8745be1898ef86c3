//! The tests of `qemu`, the hypervisor's contract suite among them, with machines on KVM. `cargo xtask lab` has a host with
//! KVM on any machine; elsewhere the tests say that they were skipped.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

#[path = "qemu/confinement.rs"]
mod confinement;
#[path = "qemu/fixture.rs"]
mod fixture;
#[path = "qemu/guest.rs"]
mod guest;
#[path = "qemu/machines.rs"]
mod machines;
#[path = "qemu/shorten.rs"]
mod shorten;

/// What the machines' code runs on.
const ACCELERATOR: agentiso_core::hypervisor::Accelerator = agentiso_core::hypervisor::Accelerator::Kvm;

mod contract {
    agentiso_core::hypervisor_contract!(crate::fixture::Fixture::new().await);
}
