//! The first exchange of every connection: who speaks, which generation, and a nonce that no one else knows.
//!
//! A channel can hold bytes of an earlier connection: a client that died in the middle of a message, a machine
//! restored from a snapshot, a slot that was used again. The connecting side therefore sends a [`Hello`] with 128
//! fresh random bits and throws away everything it receives until a [`Welcome`] that carries the same bits
//! ([`WelcomeScanner`]). A hello that is sent again is sent with the same nonce, and an agent that has it already
//! passes over the repetition. Payload is sent after the welcome only, so that what an agent discards while it
//! waits for a hello ([`HelloScanner`]) is never data that someone else chose.

use serde::{Deserialize, Serialize};

use crate::frame::LENGTH_BYTES;
use crate::hex;
use crate::key::Proof;
use crate::limits::MAX_HELLO_SIZE;

/// Bytes in a [`Nonce`].
pub const NONCE_BYTES: usize = 16;

/// 128 random bits that identify one connection. Written as 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nonce([u8; NONCE_BYTES]);

impl Nonce {
    /// A nonce of the given bytes, which the caller took from a cryptographic random source.
    pub const fn from_bytes(bytes: [u8; NONCE_BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes; also the seal that closes every payload of the connection.
    pub const fn as_bytes(&self) -> &[u8; NONCE_BYTES] {
        &self.0
    }

    /// 32 lower-case hexadecimal digits.
    pub fn to_hex(self) -> String {
        hex::encode(&self.0)
    }

    /// Reads 32 lower-case hexadecimal digits; anything else is `None`.
    pub fn from_hex(text: &str) -> Option<Self> {
        hex::decode(text).map(Self)
    }
}

impl std::fmt::Debug for Nonce {
    // A nonce is a secret of its connection: whoever knows it can forge a seal.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Nonce(..)")
    }
}

impl Serialize for Nonce {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_hex())
    }
}

impl<'de> Deserialize<'de> for Nonce {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        Self::from_hex(&text)
            .ok_or_else(|| serde::de::Error::custom("expected 32 lower-case hexadecimal digits"))
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Nonce {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Nonce".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "pattern": "^[0-9a-f]{32}$" })
    }
}

/// What the host sends first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// Fresh random bits, repeated in the welcome and as the seal of every payload.
    pub hello: Nonce,
    /// The host's [`PROTOCOL_GENERATION`](crate::PROTOCOL_GENERATION).
    pub generation: u32,
    /// The request follows at once: the next message belongs to this very hello. A hello that is sent again says
    /// `false`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub request: bool,
    /// That the host knows the machine's key ([`MachineKey`](crate::key::MachineKey)), where the machine has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Welcome {
    /// The nonce of the hello that this answers. Always the first field, see [`WelcomeScanner`].
    pub welcome: Nonce,
    /// The agent's protocol generation.
    pub generation: u32,
    /// The agent's version, for people.
    pub agent: String,
    /// Whether the agent will serve this connection.
    pub verdict: Verdict,
    /// The hello that this answers said that its request follows: the agent takes that one, and waits for no other.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub request: bool,
    /// That the agent knows the machine's key, where it has one and the host has proven to know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
}

/// Whether the agent serves a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The next message is taken as a request.
    Accepted,
    /// [`MAX_CONNECTIONS`](crate::limits::MAX_CONNECTIONS) are being served; the connection is closed.
    Busy,
    /// The two sides speak different generations; the connection is closed.
    WrongGeneration,
    /// The machine has a key and the host's proof is not one of it; the connection is closed.
    WrongKey,
}

/// Finds the welcome that answers one hello in a stream that may begin with anything.
///
/// Feed it what arrives. It keeps at most [`MAX_HELLO_SIZE`] bytes plus what one call brings, however much is
/// discarded.
#[derive(Debug)]
pub struct WelcomeScanner {
    /// `{"welcome":"<nonce>"`: no earlier byte of the stream can contain it, for no one knew the nonce.
    pattern: Vec<u8>,
    buffer: Vec<u8>,
}

impl WelcomeScanner {
    /// A scanner for the answer to the hello with this nonce.
    pub fn new(nonce: Nonce) -> Self {
        Self { pattern: format!("{{\"welcome\":\"{}\"", nonce.to_hex()).into_bytes(), buffer: Vec::new() }
    }

    /// Takes the next bytes of the stream. Returns the welcome and the bytes that followed it, once it is there.
    ///
    /// # Errors
    /// A message that carries the nonce but is not a welcome: the other side is broken.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<(Welcome, Vec<u8>)>, HelloError> {
        self.buffer.extend_from_slice(bytes);
        let Some(start) = find(&self.buffer, &self.pattern) else {
            forget_all_but_tail(&mut self.buffer, &self.pattern);
            return Ok(None);
        };
        let length = length_before(&self.buffer, start).ok_or(HelloError::NoLength)?;
        if length > MAX_HELLO_SIZE {
            return Err(HelloError::TooLong { length });
        }
        let end = start + length as usize;
        if self.buffer.len() < end {
            self.buffer.drain(..start - LENGTH_BYTES);
            return Ok(None);
        }
        let welcome = serde_json::from_slice(&self.buffer[start..end]).map_err(HelloError::Malformed)?;
        let rest = self.buffer[end..].to_vec();
        self.buffer = Vec::new();
        Ok(Some((welcome, rest)))
    }
}

/// Every hello begins with this.
const HELLO_PATTERN: &[u8] = b"{\"hello\":\"";

/// Finds the first hello in a stream that may begin with anything; the agent's side of [`WelcomeScanner`].
///
/// What looks like a hello and is none is passed over. It keeps at most [`MAX_HELLO_SIZE`] bytes plus what one call
/// brings, however much is discarded. It must never see payload of a connection that is still alive: a payload may
/// contain anything, a hello too.
#[derive(Debug, Default)]
pub struct HelloScanner {
    buffer: Vec<u8>,
}

impl HelloScanner {
    /// A scanner that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the stream. Returns the hello and the bytes that followed it, once it is there.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<(Hello, Vec<u8>)> {
        self.buffer.extend_from_slice(bytes);
        let mut first_incomplete = None;
        let mut from = 0;
        while let Some(offset) = find(&self.buffer[from..], HELLO_PATTERN) {
            let start = from + offset;
            from = start + 1;
            let Some(length) = length_before(&self.buffer, start).filter(|length| *length <= MAX_HELLO_SIZE)
            else {
                continue;
            };
            match self.buffer.get(start..start + length as usize) {
                Some(body) => {
                    if let Ok(hello) = serde_json::from_slice(body) {
                        let rest = self.buffer[start + length as usize..].to_vec();
                        self.buffer = Vec::new();
                        return Some((hello, rest));
                    }
                }
                None => first_incomplete = first_incomplete.or(Some(start - LENGTH_BYTES)),
            }
        }
        match first_incomplete {
            Some(start) => drop(self.buffer.drain(..start)),
            None => forget_all_but_tail(&mut self.buffer, HELLO_PATTERN),
        }
        None
    }
}

/// Whether `bytes` end with a complete hello. A hello in the middle of an incomplete message is a sign that the
/// message will never be completed: its sender is gone and another connection has begun.
pub fn ends_with_hello(bytes: &[u8]) -> bool {
    let tail = &bytes[bytes.len().saturating_sub(MAX_HELLO_SIZE as usize + LENGTH_BYTES)..];
    let Some(start) = tail.windows(HELLO_PATTERN.len()).rposition(|window| window == HELLO_PATTERN) else {
        return false;
    };
    length_before(tail, start).is_some_and(|length| start + length as usize == tail.len())
        && serde_json::from_slice::<Hello>(&tail[start..]).is_ok()
}

/// Whether `bytes` begin with what looks like a hello and its length.
pub fn begins_with_hello(bytes: &[u8]) -> bool {
    bytes.get(LENGTH_BYTES..).is_some_and(is_like_hello)
}

/// Whether the JSON of a message begins as a hello does.
pub(crate) fn is_like_hello(body: &[u8]) -> bool {
    body.starts_with(HELLO_PATTERN)
}

/// The length in front of the message that begins at `start`, if there is room for one.
fn length_before(buffer: &[u8], start: usize) -> Option<u32> {
    buffer[..start].last_chunk::<LENGTH_BYTES>().map(|bytes| u32::from_be_bytes(*bytes))
}

/// Keeps what may be the beginning of the pattern, and the length in front of it.
fn forget_all_but_tail(buffer: &mut Vec<u8>, pattern: &[u8]) {
    let keep = (pattern.len() - 1 + LENGTH_BYTES).min(buffer.len());
    buffer.drain(..buffer.len() - keep);
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// Why a welcome could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// The nonce came back without a length in front of its message.
    #[error("the welcome has no length in front of it")]
    NoLength,
    /// The welcome says it is longer than [`MAX_HELLO_SIZE`].
    #[error("the welcome announces {length} bytes, more than {MAX_HELLO_SIZE}")]
    TooLong {
        /// What it announces, in bytes.
        length: u32,
    },
    /// The welcome is not the expected JSON.
    #[error("the welcome is malformed")]
    Malformed(#[source] serde_json::Error),
}
