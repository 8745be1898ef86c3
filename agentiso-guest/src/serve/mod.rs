//! Connections: where they come from ([`slots`], [`streams`]), how bytes become messages on them ([`connection`]), who
//! they belong to ([`greeting`], [`gate`], [`sessions`]), and what is done with the one request of each ([`session`]).

mod connection;
pub(crate) mod gate;
mod greeting;
#[cfg(feature = "hostile")]
mod hostile;
mod session;
mod sessions;
pub(crate) mod slots;
pub(crate) mod streams;

pub(crate) use connection::{Connection, Lost, OUTPUT_LIMIT, timeout_until};
pub(crate) use sessions::Sessions;
