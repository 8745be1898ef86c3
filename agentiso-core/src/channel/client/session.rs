use std::{
    task::{Context, Poll},
    time::Duration,
};

use agentiso_guest::{
    frame::{self, Decoder, Frame, FrameError, Message},
    hello::{Nonce, Verdict, Welcome},
    limits::MAX_PAYLOAD_SIZE,
    message::{Input, Reply},
};
use tokio::time::timeout;

use super::{
    error::{Call, GuestError},
    halves::{ReadHalf, WriteHalf},
    idle::IdleStreams,
};

/// Bytes that the first read of a connection may bring; enough for most operations.
const FIRST_READ: usize = 8 * 1024;
/// Bytes that one read brings at most.
const LARGEST_READ: usize = 64 * 1024;

/// A connection whose hello was answered and whose request was sent.
pub(super) struct Session {
    pub(super) replies: ReplyReader,
    pub(super) inputs: InputWriter,
    /// When the request was made.
    pub(super) sent: std::time::Instant,
}

/// Reads what the agent says. Holds at most one message and its payload.
pub(super) struct ReplyReader {
    call: Call,
    half: ReadHalf,
    nonce: Nonce,
    decoder: Decoder,
    read_buffer: Vec<u8>,
    /// Each hello that was sent again may be answered again, before the first reply.
    welcomes_due: u32,
    /// Where the connection may stay open when all is said.
    home: Option<IdleStreams>,
}

impl ReplyReader {
    /// A reader that begins with the bytes behind the welcome and accepts no message longer than `message_limit`.
    pub(super) fn new(
        call: Call,
        half: ReadHalf,
        nonce: Nonce,
        message_limit: u32,
        first: &[u8],
        welcomes_due: u32,
        home: Option<IdleStreams>,
    ) -> Self {
        let mut decoder = Decoder::new(nonce).with_message_limit(message_limit);
        decoder.feed(first);
        Self { call, half, nonce, decoder, read_buffer: vec![0; FIRST_READ], welcomes_due, home }
    }

    /// The last reply has come: closes the connection, or leaves it to the next operation.
    pub(super) fn release(&mut self) {
        let stream = self.half.take_stream();
        let is_at_boundary = self.welcomes_due == 0 && !self.decoder.is_mid_message();
        if let (Some(stream), Some(home), true) = (stream, self.home.take(), is_at_boundary) {
            home.keep(stream);
        }
    }

    pub(super) fn call(&self) -> Call {
        self.call
    }

    /// The next reply, whenever it comes; [`Reply::Error`] comes as [`GuestError::Refused`]. Cancelled: nothing is
    /// lost.
    pub(super) async fn next(&mut self) -> Result<Frame<Reply>, GuestError> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return match frame.message {
                    Reply::Error { code, message } => Err(self.call.refused(code, &message)),
                    _ => Ok(frame),
                };
            }
            let read =
                self.half.read(&mut self.read_buffer).await.map_err(|error| self.call.connection(error))?;
            if read == 0 {
                return Err(self.call.disconnected());
            }
            self.decoder.feed(&self.read_buffer[..read]);
            if read == self.read_buffer.len() && read < LARGEST_READ {
                self.read_buffer.resize(read * 2, 0);
            }
        }
    }

    /// The next reply, if it comes within `limit`.
    pub(super) async fn next_within(&mut self, limit: Duration) -> Result<Frame<Reply>, GuestError> {
        timeout(limit, self.next()).await.unwrap_or_else(|_elapsed| Err(self.call.timeout(limit)))
    }

    fn take_frame(&mut self) -> Result<Option<Frame<Reply>>, GuestError> {
        let call = self.call;
        while self.welcomes_due > 0 {
            let Some(Frame { message, payload }) = self.decoder.next_frame().map_err(|e| call.frame(e))?
            else {
                return Ok(None);
            };
            match message {
                Opening::Reply(message) => {
                    self.welcomes_due = 0;
                    return Ok(Some(Frame { message, payload }));
                }
                Opening::Welcome(welcome) => {
                    self.welcomes_due -= 1;
                    if welcome.welcome != self.nonce || welcome.verdict != Verdict::Accepted {
                        return Err(call.unexpected("another welcome"));
                    }
                }
            }
        }
        self.decoder.next_frame().map_err(|error| call.frame(error))
    }
}

/// What may come while a hello that was sent more than once is being answered.
enum Opening {
    Welcome(Welcome),
    Reply(Reply),
}

impl Message for Opening {
    fn payload_len(&self) -> u32 {
        match self {
            Self::Welcome(_) => 0,
            Self::Reply(reply) => reply.payload_len(),
        }
    }

    fn from_json(body: &[u8]) -> Result<Self, serde_json::Error> {
        Reply::from_json(body)
            .map(Self::Reply)
            .or_else(|error| serde_json::from_slice(body).map(Self::Welcome).map_err(|_| error))
    }
}

/// Sends what belongs to a running operation.
pub(super) struct InputWriter {
    call: Call,
    half: WriteHalf,
    nonce: Nonce,
}

impl InputWriter {
    pub(super) fn new(call: Call, half: WriteHalf, nonce: Nonce) -> Self {
        Self { call, half, nonce }
    }

    /// Sends what an earlier call left behind, then this, all of it. Cancelled: it will be sent, or has not been
    /// taken at all; never half of it.
    pub(super) async fn send(&mut self, input: &Input, payload: &[u8]) -> Result<(), GuestError> {
        self.half.drain().await.map_err(|error| self.call.connection(error))?;
        self.put(input, payload).map_err(|error| self.call.request(error))?;
        self.half.drain().await.map_err(|error| self.call.connection(error))
    }

    /// Writes what earlier calls left behind.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.half.poll_drain(cx)
    }

    /// Puts a frame where the next drain finds it.
    pub(super) fn put(&mut self, input: &Input, payload: &[u8]) -> Result<(), FrameError> {
        frame::encode(self.half.buffer(), input, payload, self.nonce)
    }

    /// Sends what is in the buffer, if that takes no longer than `limit`.
    pub(super) async fn drain_within(&mut self, limit: Duration) -> Result<(), GuestError> {
        match timeout(limit, self.half.drain()).await {
            Ok(drained) => drained.map_err(|error| self.call.connection(error)),
            Err(_elapsed) => Err(self.call.timeout(limit)),
        }
    }
}

/// The length of one payload.
pub(super) fn payload_length(payload: &[u8]) -> u32 {
    // No caller passes more than a chunk; a longer one would be refused by its length when it is encoded.
    u32::try_from(payload.len()).unwrap_or(MAX_PAYLOAD_SIZE + 1)
}

/// What a reply is called in an error.
pub(super) fn kind(reply: &Reply) -> &'static str {
    match reply {
        Reply::Started { .. } => "\"started\"",
        Reply::Stdout { .. } => "\"stdout\"",
        Reply::Stderr { .. } => "\"stderr\"",
        Reply::Exited { .. } => "\"exited\"",
        Reply::Job { .. } => "\"job\"",
        Reply::Jobs { .. } => "\"jobs\"",
        Reply::Data { .. } => "\"data\"",
        Reply::Entries { .. } => "\"entries\"",
        Reply::Entry { .. } => "\"entry\"",
        Reply::Tree { .. } => "\"tree\"",
        Reply::Hashing { .. } => "\"hashing\"",
        Reply::Hashed { .. } => "\"hashed\"",
        Reply::Info { .. } => "\"info\"",
        Reply::Configured { .. } => "\"configured\"",
        Reply::Done => "\"done\"",
        Reply::Error { .. } => "\"error\"",
    }
}
