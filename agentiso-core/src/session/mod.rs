//! Who owns which workspace, how much of the host a session may have, and how often it may ask.
//!
//! A session is a principal, not a connection: its name is all that it is known by, it keeps its workspaces when it
//! disconnects, and it ends when it has made no call for [`SESSION_LIFETIME`]; its workspaces are orphans then. Every
//! workspace belongs to the operator, to one session, or to nobody.
//!
//! - [`AuthManager`] keeps the books: sessions, owners, quotas, adoption, rates. Over the records of a state folder
//!   each question and each change is one transaction, so that any number of processes agree.
//! - [`Sessions`] and [`Session`] are what fronts use: the engine as one session may see and use it.
//!
//! `quota.rs` and `rate.rs` are the numbers, `claim.rs` is for whom the engine makes a workspace, `error.rs` what can
//! go wrong.

mod auth;
mod claim;
mod clock;
mod error;
mod principal;
mod quota;
mod rate;
#[cfg(test)]
mod tests;

pub use auth::{AuthManager, FORCED_ADOPTION_IDLE, SESSION_LIFETIME};
pub(crate) use claim::Claimant;
pub use clock::{Clock, SystemClock};
pub use error::AuthError;
pub use principal::{Adoption, Call, Seen, Session, Sessions};
pub use quota::{QuotaResource, SessionQuota, SessionUsage};
pub use rate::{CEILING_FACTOR, Class, RateLimit};
