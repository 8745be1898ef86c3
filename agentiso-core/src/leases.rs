//! Numbers that machines have to themselves for as long as they are there: context ids, addresses.

use std::{ops::RangeInclusive, time::Duration};

use crate::types::WorkspaceId;

/// What a number is for. Numbers of different kinds do not get in each other's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeaseKind {
    /// Context id of a vsock device.
    VsockCid,
    /// IPv4 address of a network card, as a number.
    Address,
}

impl LeaseKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::VsockCid => "vsock-cid",
            Self::Address => "address",
        }
    }
}

/// Hands out numbers, each to one machine at a time, among all processes that use a state folder.
///
/// Calls may wait for another process's for some milliseconds: make them away from async threads.
pub trait Leases: Send + Sync + std::fmt::Debug {
    /// A number of the range that nobody has, for `owner`. One that was never given out, else the one that was given
    /// back longest ago, and that at least `cool_down` ago. Has it one of the range already: that one.
    ///
    /// # Errors
    /// [`LeaseError::Exhausted`] if there is none.
    fn take(
        &self,
        kind: LeaseKind,
        owner: WorkspaceId,
        range: RangeInclusive<u32>,
        cool_down: Duration,
    ) -> Result<u32, LeaseError>;

    /// Gives a machine's number back: the machine is gone, or the number is of no use on this host. Has none: no
    /// effect.
    fn give_back(&self, kind: LeaseKind, owner: WorkspaceId) -> Result<(), LeaseError>;

    /// Who has which number.
    fn held(&self, kind: LeaseKind) -> Result<Vec<(u32, WorkspaceId)>, LeaseError>;
}

/// Why there is no number.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// All are taken, or were given back too short a time ago.
    #[error("all {count} of them are in use or were until {cool_down:?} ago")]
    Exhausted {
        /// How many there are.
        count: u32,
        /// How long one that was given back is not handed out.
        cool_down: Duration,
    },
    /// The records could not be read or written.
    #[error("could not read or write the records")]
    Records(#[source] Box<dyn std::error::Error + Send + Sync>),
}
