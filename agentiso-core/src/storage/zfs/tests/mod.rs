//! The storage on a pretended pool: everything but the kernel is the real thing.

mod interruptions;
mod pretended;

mod contract {
    crate::storage_contract!(Ok(super::pretended::Fixture::new()));
}
