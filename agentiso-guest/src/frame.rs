//! Messages to bytes and back, without any I/O.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::hello::{Hello, NONCE_BYTES, Nonce, ends_with_hello, is_like_hello};
use crate::limits::{MAX_MESSAGE_SIZE, MAX_PAYLOAD_SIZE};

/// Room that a decoder keeps for the next message when it has given out the last, in bytes.
const KEPT_CAPACITY: usize = 256 * 1024;

/// Bytes of the length in front of each message.
pub const LENGTH_BYTES: usize = 4;

/// A message that may announce a payload.
pub trait Message: Sized {
    /// How many raw bytes follow this message; 0 if none.
    fn payload_len(&self) -> u32;

    /// Reads the JSON part.
    ///
    /// # Errors
    /// It is not JSON, or not a message of this kind.
    fn from_json(body: &[u8]) -> Result<Self, serde_json::Error>;
}

/// A message of the expected kind, or the hello of a new connection on the same channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OrHello<M> {
    /// A new connection begins; the old one is over.
    Hello(Hello),
    /// The expected.
    Message(M),
}

impl<M: Message> Message for OrHello<M> {
    fn payload_len(&self) -> u32 {
        match self {
            Self::Hello(_) => 0,
            Self::Message(message) => message.payload_len(),
        }
    }

    fn from_json(body: &[u8]) -> Result<Self, serde_json::Error> {
        // The likely one first: an attempt in vain costs time. A hello from another writer may have other field order.
        if is_like_hello(body)
            && let Ok(hello) = serde_json::from_slice(body)
        {
            return Ok(Self::Hello(hello));
        }
        M::from_json(body)
            .map(Self::Message)
            .or_else(|error| serde_json::from_slice(body).map(Self::Hello).map_err(|_| error))
    }
}

/// Any message at all, of which only the length of its payload is looked at: what is read to be passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skipped {
    payload: u32,
}

impl Message for Skipped {
    fn payload_len(&self) -> u32 {
        self.payload
    }

    fn from_json(body: &[u8]) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Announcement {
            hello: Option<IgnoredAny>,
            #[serde(default)]
            payload: u32,
        }
        let announcement: Announcement = serde_json::from_slice(body)?;
        match announcement.hello {
            Some(_) => Err(serde::de::Error::custom("a hello is not to be passed over")),
            None => Ok(Self { payload: announcement.payload }),
        }
    }
}

/// One message with the payload that followed it.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame<M> {
    /// The JSON part.
    pub message: M,
    /// The raw bytes, exactly [`Message::payload_len`] of them.
    pub payload: Vec<u8>,
}

impl<M: std::fmt::Debug> std::fmt::Debug for Frame<M> {
    // A payload is user data, and may be a megabyte of it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frame")
            .field("message", &self.message)
            .field("payload", &format_args!("{} bytes", self.payload.len()))
            .finish()
    }
}

/// Appends a message to `out`, with its payload and seal if it has one.
///
/// # Errors
/// The message is too long, or `payload` is not as long as the message announces; `out` is unchanged then.
pub fn encode<M: Message + Serialize>(
    out: &mut Vec<u8>,
    message: &M,
    payload: &[u8],
    nonce: Nonce,
) -> Result<(), FrameError> {
    let announced = message.payload_len();
    if announced > MAX_PAYLOAD_SIZE {
        return Err(FrameError::PayloadTooLong { length: announced });
    }
    if announced as usize != payload.len() {
        return Err(FrameError::PayloadMismatch { announced, given: payload.len() });
    }
    encode_plain(out, message)?;
    if announced > 0 {
        out.extend_from_slice(payload);
        out.extend_from_slice(nonce.as_bytes());
    }
    Ok(())
}

/// Appends a message that never has a payload (hello, welcome) to `out`.
///
/// # Errors
/// The message is too long; `out` is unchanged then.
pub fn encode_plain<T: Serialize>(out: &mut Vec<u8>, message: &T) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    let body = serde_json::to_writer(&mut *out, message).map_err(FrameError::Encode).and_then(|()| {
        let length = out.len() - start - LENGTH_BYTES;
        u32::try_from(length)
            .ok()
            .filter(|length| *length <= MAX_MESSAGE_SIZE)
            .ok_or(FrameError::MessageTooLong { length: u32::try_from(length).unwrap_or(u32::MAX) })
    });
    match body {
        Ok(length) => {
            out[start..start + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
            Ok(())
        }
        Err(error) => {
            out.truncate(start);
            Err(error)
        }
    }
}

/// Takes bytes as they arrive and gives back whole frames.
///
/// What it holds grows with what has arrived, never with what a length announces. After an error it gives nothing
/// more: the stream has lost its boundaries and must be reset.
#[derive(Debug)]
pub struct Decoder {
    nonce: Nonce,
    message_limit: u32,
    buffer: Vec<u8>,
    /// Bytes at the front of `buffer` that were given out already.
    consumed: usize,
    /// Bytes behind `consumed` that must be there before looking again is worth it: a header is parsed at most
    /// twice, however slowly its payload trickles in.
    needed: usize,
    failed: bool,
}

impl Decoder {
    /// A decoder for the connection with this nonce.
    pub fn new(nonce: Nonce) -> Self {
        Self {
            nonce,
            message_limit: MAX_MESSAGE_SIZE,
            buffer: Vec::new(),
            consumed: 0,
            needed: LENGTH_BYTES,
            failed: false,
        }
    }

    /// Refuses messages whose JSON is longer than `limit` bytes, where that is below [`MAX_MESSAGE_SIZE`].
    ///
    /// Parsed JSON can take up many times the memory of its text, so whoever knows that only short messages are
    /// due should not accept long ones.
    #[must_use]
    pub fn with_message_limit(mut self, limit: u32) -> Self {
        self.message_limit = limit.min(MAX_MESSAGE_SIZE);
        self
    }

    /// Takes the next bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.failed {
            return;
        }
        if self.consumed == self.buffer.len() {
            if self.buffer.capacity() > KEPT_CAPACITY {
                self.buffer = Vec::new();
            }
            self.buffer.clear();
            self.consumed = 0;
        } else if self.consumed > self.buffer.len() / 2 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether bytes wait that [`Decoder::next_frame`] has not given out; after it returned `None`, a message has
    /// begun and is not complete.
    pub fn is_mid_message(&self) -> bool {
        self.buffered() > 0
    }

    /// Bytes that were fed and not given out yet.
    pub fn buffered(&self) -> usize {
        self.buffer.len() - self.consumed
    }

    /// Whether a message is incomplete and the last bytes that came are a complete hello: a sign, no proof, that
    /// another connection has begun in the middle of it.
    pub fn is_interrupted_by_hello(&self) -> bool {
        self.is_mid_message() && ends_with_hello(&self.buffer[self.consumed..])
    }

    /// Goes over to another connection at a message boundary; what was fed and not given out belongs to it.
    pub fn rebind(&mut self, nonce: Nonce) {
        self.nonce = nonce;
    }

    /// The next frame, if all of it has arrived.
    ///
    /// # Errors
    /// A length out of bounds, malformed JSON or a wrong seal; every later call answers [`FrameError::Desynchronised`].
    pub fn next_frame<M: Message>(&mut self) -> Result<Option<Frame<M>>, FrameError> {
        if self.failed {
            return Err(FrameError::Desynchronised);
        }
        let result = self.try_next();
        if result.is_err() {
            self.failed = true;
            self.buffer = Vec::new();
            self.consumed = 0;
        }
        result
    }

    fn try_next<M: Message>(&mut self) -> Result<Option<Frame<M>>, FrameError> {
        let bytes = &self.buffer[self.consumed..];
        if bytes.len() < self.needed {
            return Ok(None);
        }
        let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length);
        if length == 0 {
            return Err(FrameError::Empty);
        }
        if length > MAX_MESSAGE_SIZE {
            return Err(FrameError::MessageTooLong { length });
        }
        if length > self.message_limit {
            return Err(FrameError::OverLimit { length, limit: self.message_limit });
        }
        let Some((body, rest)) = rest.split_at_checked(length as usize) else {
            self.needed = LENGTH_BYTES + length as usize;
            return Ok(None);
        };
        let message: M = M::from_json(body).map_err(FrameError::Malformed)?;
        let announced = message.payload_len();
        let mut used = LENGTH_BYTES + body.len();
        let mut payload = Vec::new();
        if announced > MAX_PAYLOAD_SIZE {
            return Err(FrameError::PayloadTooLong { length: announced });
        }
        if announced > 0 {
            let sealed = announced as usize + NONCE_BYTES;
            let Some(sealed) = rest.get(..sealed) else {
                self.needed = used + sealed;
                return Ok(None);
            };
            let (data, seal) = sealed.split_at(announced as usize);
            if seal != self.nonce.as_bytes() {
                return Err(FrameError::WrongSeal);
            }
            payload.extend_from_slice(data);
            used += data.len() + NONCE_BYTES;
        }
        self.consumed += used;
        self.needed = LENGTH_BYTES;
        Ok(Some(Frame { message, payload }))
    }
}

/// Why bytes are not a message, or a message cannot become bytes.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// A length of zero.
    #[error("a message of zero bytes")]
    Empty,
    /// A length above [`MAX_MESSAGE_SIZE`].
    #[error("a message of {length} bytes, more than {MAX_MESSAGE_SIZE}")]
    MessageTooLong {
        /// The length, in bytes.
        length: u32,
    },
    /// A length above what [`Decoder::with_message_limit`] allows.
    #[error("a message of {length} bytes where at most {limit} are expected")]
    OverLimit {
        /// The length, in bytes.
        length: u32,
        /// The limit, in bytes.
        limit: u32,
    },
    /// A payload above [`MAX_PAYLOAD_SIZE`].
    #[error("a payload of {length} bytes, more than {MAX_PAYLOAD_SIZE}")]
    PayloadTooLong {
        /// The length, in bytes.
        length: u32,
    },
    /// The payload handed in is not what the message announces.
    #[error("a payload of {given} bytes for a message that announces {announced}")]
    PayloadMismatch {
        /// What the message announces, in bytes.
        announced: u32,
        /// What was handed in, in bytes.
        given: usize,
    },
    /// The JSON is not a message of the expected kind.
    #[error("a malformed message")]
    Malformed(#[source] serde_json::Error),
    /// A value that JSON cannot express.
    #[error("a message that cannot be written as JSON")]
    Encode(#[source] serde_json::Error),
    /// The payload does not end with the connection's nonce: it belongs to another connection.
    #[error("a payload that is not sealed with this connection's nonce")]
    WrongSeal,
    /// An earlier error lost the message boundaries.
    #[error("the stream lost its message boundaries")]
    Desynchronised,
}
