//! x

pub(crate) mod addresses;
pub(crate) mod protocol;
