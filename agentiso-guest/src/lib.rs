//! The wire protocol between an agentiso host and the agent inside a guest.
//!
//! This library is all that the two sides share. It is sans-io: it turns messages into bytes and bytes into
//! messages, and never opens, reads or writes anything itself. `docs/wire.md` describes the protocol in prose,
//! `schema.json` beside this crate holds its frozen JSON Schema.
//!
//! Each message is a 4-byte big-endian length followed by that many bytes of JSON ([`frame`]). A message may
//! announce a payload: so many raw bytes follow it, then the connection's nonce as a seal, so that bytes of one
//! connection can never complete a message of another. Every connection opens with a hello ([`hello`]) and
//! carries one operation ([`message`]).
#![forbid(unsafe_code)]

pub mod frame;
pub mod hello;
mod hex;
pub mod key;
pub mod limits;
pub mod message;
pub mod tree;

/// The generation of the wire protocol. Host and agent refuse to speak to another generation.
pub const PROTOCOL_GENERATION: u32 = 2;

/// The vsock port the agent serves operations on.
pub const VSOCK_PORT: u32 = 5000;

/// Name prefix of the virtio-serial ports; slot N is `agentiso.N` (seen in the guest's sysfs).
pub const SERIAL_PORT_PREFIX: &str = "agentiso.";
