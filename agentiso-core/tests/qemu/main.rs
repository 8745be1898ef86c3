//! Machines in a real QEMU, with a guest that only prints a line: what is tested is how they are started, confined,
//! operated and ended. Skipped, with a message, where QEMU is not installed.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod attacks;
mod confinement;
mod fixture;
mod guest;
mod machines;
mod shorten;

/// What the machines' code runs on. `lab_kvm_machines` runs the same tests on KVM.
const ACCELERATOR: agentiso_core::hypervisor::Accelerator = agentiso_core::hypervisor::Accelerator::Tcg;

mod contract {
    agentiso_core::hypervisor_contract!(crate::fixture::Fixture::new().await);
}
