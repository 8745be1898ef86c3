//! Opening a connection: hello until welcome, on another lane where one stays silent.

use std::time::Duration;

use agentiso_guest::{
    PROTOCOL_GENERATION,
    frame::encode_plain,
    hello::{Hello, NONCE_BYTES, Nonce, Verdict, Welcome, WelcomeScanner},
    message::Request,
};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::{
    CHUNK_DEADLINE, GuestClient,
    error::{Call, GuestError},
    halves::{ReadHalf, WriteHalf, split},
    session::{InputWriter, ReplyReader, Session},
    text::clean_text,
};
use crate::channel::{ChannelError, GuestStream, Lane};

/// Pause before a hello that was not answered is sent again.
const HELLO_INTERVAL: Duration = Duration::from_millis(500);

/// A lane that is silent for this long is left for another; the next one gets twice as long, and so on, so that a
/// slow guest is given the time it needs.
const LANE_PATIENCE: Duration = Duration::from_millis(1500);

/// How long to look for another lane when one is silent.
const OTHER_LANE_LIMIT: Duration = Duration::from_millis(50);

/// Pause before connecting again to an agent that closed the connection before it said anything, or was busy.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// Longest request that is sent along with the hello.
const MAX_PIPELINED_BYTES: usize = 8 * 1024;

/// Bytes that one read brings while the welcome is looked for.
const READ_BYTES: usize = 4096;

/// Whether a request changes nothing in the guest, so that it does no harm if it is carried out twice, or late.
///
/// Only such a request goes out with the first hello. If that hello is not answered in time, nobody can know whether
/// it was lost together with the request or will still be read.
fn is_read_only(request: &Request) -> bool {
    match request {
        Request::Ping
        | Request::Info
        | Request::JobList
        | Request::JobPoll { .. }
        | Request::FileRead { .. }
        | Request::FileList { .. }
        | Request::FileStat { .. }
        | Request::Walk { .. }
        | Request::Hash { .. }
        | Request::ArchiveRead { .. }
        | Request::Sync => true,
        Request::Exec { .. }
        | Request::JobStart { .. }
        | Request::JobWait { .. }
        | Request::JobAttach { .. }
        | Request::JobSignal { .. }
        | Request::FileWrite { .. }
        | Request::FileEdit { .. }
        | Request::ArchiveWrite { .. }
        | Request::EnvSet { .. }
        | Request::EnvClear
        | Request::Configure(_)
        | Request::Freeze { .. }
        | Request::Thaw
        | Request::Shutdown { .. } => false,
    }
}

/// The lane of a request: what must get through when users keep every lane busy goes on the one kept for it.
fn lane_of(request: &Request, asked: Lane) -> Lane {
    match request {
        Request::JobSignal { .. }
        | Request::Configure(_)
        | Request::Freeze { .. }
        | Request::Thaw
        | Request::Sync
        | Request::Shutdown { .. } => Lane::Control,
        _ => asked,
    }
}

impl GuestClient {
    /// Opens a connection for one request and sends it; `message_limit` is the longest reply that it can have.
    ///
    /// Unless the request is read-only, it is sent at most once: an error before the welcome means that it was not
    /// sent, an error after it that its fate is unknown.
    pub(super) async fn open(
        &self,
        operation: &'static str,
        request: &Request,
        message_limit: u32,
    ) -> Result<Session, GuestError> {
        let call = Call { id: self.record.id, operation };
        let mut encoded = Vec::new();
        encode_plain(&mut encoded, request).map_err(|error| call.request(error))?;
        let lane = lane_of(request, self.lane);
        let deadline = Instant::now() + self.connect_limit;
        let mut pipelined =
            (is_read_only(request) && encoded.len() <= MAX_PIPELINED_BYTES).then_some(encoded.as_slice());
        let mut patience = LANE_PATIENCE;
        let mut silent: Option<Opener> = None;
        let mut is_busy = false;
        loop {
            let mut opener = match (self.connect(lane, deadline, silent.is_some()).await, silent.take()) {
                (Ok(stream), _) => Opener::new(call, stream, pipelined.take())?,
                // No other lane: stay with this one.
                (Err(ChannelError::Busy { .. } | ChannelError::NoAnswer { .. }), Some(silent)) => silent,
                (Err(error), _) => return Err(call.channel(error)),
            };
            match opener.run(deadline.min(Instant::now() + patience)).await? {
                Progress::Welcomed { welcome, rest } => {
                    if is_accepted(call, &welcome)? {
                        return opener.into_session(&encoded, message_limit, &rest).await;
                    }
                    is_busy = true;
                    sleep(RECONNECT_PAUSE).await;
                }
                Progress::Silent => {
                    patience *= 2;
                    silent = Some(opener);
                }
                Progress::Closed => sleep(RECONNECT_PAUSE).await,
            }
            if Instant::now() >= deadline {
                if is_busy {
                    return Err(GuestError::AgentBusy { operation, id: call.id });
                }
                let waited = self.connect_limit;
                return Err(call.channel(ChannelError::NoAnswer { id: call.id, waited }));
            }
        }
    }

    async fn connect(
        &self,
        lane: Lane,
        deadline: Instant,
        is_second: bool,
    ) -> Result<GuestStream, ChannelError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = if is_second { left.min(OTHER_LANE_LIMIT) } else { left };
        let connecting = self.channel.connect(&self.record, lane, limit);
        // The channel keeps to the limit by itself; a second guard costs nothing.
        let guard = Instant::now() + limit + Duration::from_secs(1);
        timeout_at(guard, connecting)
            .await
            .unwrap_or(Err(ChannelError::NoAnswer { id: self.record.id, waited: limit }))
    }
}

/// Whether the agent serves this connection; `false` if it is busy.
fn is_accepted(call: Call, welcome: &Welcome) -> Result<bool, GuestError> {
    let Call { id, operation } = call;
    match welcome.verdict {
        Verdict::Accepted if welcome.generation == PROTOCOL_GENERATION => Ok(true),
        Verdict::Busy => Ok(false),
        Verdict::Accepted | Verdict::WrongGeneration => Err(GuestError::Generation {
            operation,
            id,
            agent: clean_text(&welcome.agent),
            theirs: welcome.generation,
            ours: PROTOCOL_GENERATION,
        }),
    }
}

/// How far a connection came.
enum Progress {
    /// The agent answered; `rest` is what followed its welcome.
    Welcomed { welcome: Welcome, rest: Vec<u8> },
    /// No answer yet.
    Silent,
    /// The other side closed the connection.
    Closed,
}

/// One connection whose hello has not been answered yet.
struct Opener {
    call: Call,
    reader: ReadHalf,
    writer: WriteHalf,
    greeting: Greeting,
    next_hello: Instant,
    /// The request went along with the first hello.
    is_pipelined: bool,
}

/// A hello, sent until it is answered. It keeps its nonce: with a new one each time, the answers of a slow guest
/// would always come for the one before.
struct Greeting {
    nonce: Nonce,
    scanner: WelcomeScanner,
    hello: Vec<u8>,
    sent: u32,
}

impl Greeting {
    fn new(call: Call) -> Result<Self, GuestError> {
        let nonce = random_nonce().map_err(|error| call.local("its random source", error))?;
        let mut hello = Vec::new();
        encode_plain(&mut hello, &Hello { hello: nonce, generation: PROTOCOL_GENERATION })
            .map_err(|error| call.request(error))?;
        Ok(Self { nonce, scanner: WelcomeScanner::new(nonce), hello, sent: 0 })
    }
}

impl Opener {
    fn new(call: Call, stream: GuestStream, pipelined: Option<&[u8]>) -> Result<Self, GuestError> {
        let (reader, mut writer) = split(stream);
        let mut greeting = Greeting::new(call)?;
        writer.buffer().extend_from_slice(&greeting.hello);
        writer.buffer().extend_from_slice(pipelined.unwrap_or_default());
        greeting.sent = 1;
        let next_hello = Instant::now() + HELLO_INTERVAL;
        Ok(Self { call, reader, writer, greeting, next_hello, is_pipelined: pipelined.is_some() })
    }

    /// Says hello until it is answered or the time is over. May be called again after [`Progress::Silent`].
    async fn run(&mut self, until: Instant) -> Result<Progress, GuestError> {
        let mut received = [0; READ_BYTES];
        loop {
            let now = Instant::now();
            if now >= until {
                return Ok(Progress::Silent);
            }
            if now >= self.next_hello {
                self.say_hello_again(now)?;
            }
            let is_writing = !self.writer.is_drained();
            tokio::select! {
                read = self.reader.read(&mut received) => {
                    let read = match read {
                        Ok(0) | Err(_) => return Ok(Progress::Closed),
                        Ok(read) => read,
                    };
                    let found = self.greeting.scanner.feed(&received[..read]).map_err(|source| {
                        GuestError::Hello { operation: self.call.operation, id: self.call.id, source }
                    })?;
                    if let Some((welcome, rest)) = found {
                        return Ok(Progress::Welcomed { welcome, rest });
                    }
                }
                drained = self.writer.drain(), if is_writing => {
                    if drained.is_err() {
                        return Ok(Progress::Closed);
                    }
                }
                () = sleep_until(until.min(self.next_hello)) => {}
            }
        }
    }

    fn say_hello_again(&mut self, now: Instant) -> Result<(), GuestError> {
        self.next_hello = now + HELLO_INTERVAL;
        if !self.writer.is_drained() {
            // The one before is still on its way.
            return Ok(());
        }
        if self.is_pipelined {
            // Whether the request arrived with it cannot be known: begin anew, and let that answer go unheard.
            self.greeting = Greeting::new(self.call)?;
            self.is_pipelined = false;
        }
        self.writer.buffer().extend_from_slice(&self.greeting.hello);
        self.greeting.sent += 1;
        Ok(())
    }

    /// Goes on with the request, unless it went along with the hello.
    async fn into_session(
        self,
        request: &[u8],
        message_limit: u32,
        first: &[u8],
    ) -> Result<Session, GuestError> {
        let Self { call, reader, writer, greeting, is_pipelined, .. } = self;
        let mut inputs = InputWriter::new(call, writer, greeting.nonce);
        if !is_pipelined {
            inputs.put_request(request);
        }
        inputs.drain_within(CHUNK_DEADLINE).await?;
        let welcomes_due = greeting.sent - 1;
        let replies = ReplyReader::new(call, reader, greeting.nonce, message_limit, first, welcomes_due);
        Ok(Session { replies, inputs })
    }
}

fn random_nonce() -> std::io::Result<Nonce> {
    let mut bytes = [0_u8; NONCE_BYTES];
    let mut filled = 0;
    while filled < NONCE_BYTES {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(Nonce::from_bytes(bytes))
}
