use std::sync::Arc;

use super::{Clock, SessionQuota, clock};
use crate::types::{Owner, SessionId};

/// For whom a workspace is made.
#[derive(Clone, Debug)]
pub(crate) enum Claimant {
    /// The operator, who has no quota.
    Operator,
    /// A session, whose quota is checked in the transaction that makes the record.
    Session {
        /// The session.
        id: SessionId,
        /// Its quota.
        quota: SessionQuota,
        /// What tells whether it has ended.
        clock: Arc<dyn Clock>,
    },
}

impl Claimant {
    /// Who will own it.
    pub(crate) fn owner(&self) -> Owner {
        match self {
            Self::Operator => Owner::Operator,
            Self::Session { id, .. } => Owner::Session(id.clone()),
        }
    }

    /// The time by the clock that sessions live by, in milliseconds since 1970.
    pub(crate) fn now(clock: &dyn Clock) -> i64 {
        clock::millis(clock.now())
    }
}
