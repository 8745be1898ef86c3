//! What host and agent say to each other after the hello: one [`Request`] from the host, possibly followed by
//! [`Input`], and [`Reply`]s from the agent of which exactly one is terminal ([`Reply::is_terminal`]).

mod reply;
mod request;

pub use reply::{Entry, EntryKind, ErrorCode, Exit, GuestInfo, Job, Reply};
pub use request::{Command, Compression, Configuration, Input, NetworkConfiguration, Request, TtySize};

use serde::{Deserialize, Deserializer};

use crate::frame::Message;

/// For messages of a word alone: refuses whatever else stands there.
///
/// serde passes it over in variants without fields, `deny_unknown_fields` or not, and whoever reads the same bytes to
/// pass the message over would take a `payload` there for one.
fn nothing_else<'de, D: Deserializer<'de>>(rest: D) -> Result<(), D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}
    Nothing::deserialize(rest).map(|Nothing {}| ())
}

impl Message for Request {
    fn payload_len(&self) -> u32 {
        0
    }

    fn from_json(body: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }
}

impl Message for Input {
    fn payload_len(&self) -> u32 {
        match self {
            Self::Stdin { payload } | Self::Data { payload } => *payload,
            Self::StdinEnd | Self::Resize { .. } | Self::Signal { .. } | Self::End => 0,
        }
    }

    fn from_json(body: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }
}

impl Message for Reply {
    fn payload_len(&self) -> u32 {
        match self {
            Self::Stdout { payload } | Self::Stderr { payload } | Self::Data { payload } => *payload,
            _ => 0,
        }
    }

    fn from_json(body: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }
}
