//! Opening a connection: hello until welcome, on another lane where one stays silent.

use std::{
    pin::Pin,
    time::{Duration, SystemTime},
};

use agentiso_guest::{
    PROTOCOL_GENERATION,
    frame::{LENGTH_BYTES, encode_plain},
    hello::{NONCE_BYTES, Nonce, Verdict, Welcome, WelcomeScanner},
    message::{Configuration, Request},
};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::{
    CHUNK_DEADLINE, GuestClient,
    error::{Call, GuestError},
    halves::{ReadHalf, WriteHalf, split},
    idle::IdleStreams,
    secret::{self, Guarded},
    session::{InputWriter, ReplyReader, Session},
    text::clean_text,
};
use crate::channel::{ChannelError, GuestStream, Introduction, Lane};

/// Pause before a hello that was not answered is sent again.
const HELLO_INTERVAL: Duration = Duration::from_millis(500);

/// A lane that is silent for this long is left for another; the next one gets twice as long, and so on, so that a
/// slow guest is given the time it needs.
const LANE_PATIENCE: Duration = Duration::from_millis(1500);

/// How long to look for another lane when one is silent.
const OTHER_LANE_LIMIT: Duration = Duration::from_millis(50);

/// Pause before connecting again to an agent that closed the connection before it said anything, or was busy.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// How long to ask whether a request was begun.
const VOID_LIMIT: Duration = Duration::from_secs(2);

/// Longest request that is sent along with the hello.
const MAX_PIPELINED_BYTES: usize = 8 * 1024;

/// Bytes that one read brings while the welcome is looked for.
const READ_BYTES: usize = 4096;

/// Most digits of a number in a request.
const LONGEST_NUMBER: usize = 20;

/// Whether a request may go out with the first hello, which saves a round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pipelining {
    /// It waits for the welcome.
    Never,
    /// It changes nothing in the guest and does no harm if it is carried out twice, or late: if its hello is not
    /// answered in time, it goes out again.
    Repeatable,
    /// It must not be carried out twice. Its hello says that it follows, and the welcome says whether it did. If the
    /// hello is not answered in time it is said again, alone; before another lane is tried the agent must have
    /// confirmed that the request was not begun and never will be ([`Request::Void`]).
    Once,
}

fn pipelining_of(request: &Request) -> Pipelining {
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
        | Request::Sync
        | Request::Void { .. } => Pipelining::Repeatable,
        Request::Exec { .. }
        | Request::JobStart { .. }
        | Request::Configure(_)
        | Request::Freeze { .. }
        | Request::Thaw { .. } => Pipelining::Once,
        Request::JobWait { .. }
        | Request::JobAttach { .. }
        | Request::JobSignal { .. }
        | Request::FileWrite { .. }
        | Request::FileEdit { .. }
        | Request::ArchiveWrite { .. }
        | Request::EnvSet { .. }
        | Request::EnvClear
        | Request::Shutdown { .. } => Pipelining::Never,
    }
}

/// The lane of a request: what must get through when users keep every lane busy goes on the one kept for it.
fn lane_of(request: &Request, asked: Lane) -> Lane {
    match request {
        Request::JobSignal { .. }
        | Request::Configure(_)
        | Request::Freeze { .. }
        | Request::Thaw { .. }
        | Request::Sync
        | Request::Shutdown { .. } => Lane::Control,
        _ => asked,
    }
}

impl GuestClient {
    /// Opens a connection for one request and sends it; `message_limit` is the longest reply that it can have.
    ///
    /// Unless the request is read-only, it is carried out at most once. [`GuestError::Channel`], [`GuestError::Hello`],
    /// [`GuestError::WrongKey`], [`GuestError::Stranger`], [`GuestError::Generation`], [`GuestError::AgentBusy`] and
    /// [`GuestError::Request`] mean that it was not and will not be; after any other error its fate is unknown.
    pub(super) async fn open(
        &self,
        operation: &'static str,
        request: &Request,
        message_limit: u32,
    ) -> Result<Session, GuestError> {
        let call = Call { id: self.record.id, operation };
        let lane = lane_of(request, self.lane);
        let deadline = Instant::now() + self.connect_limit;
        let mut pipelining = pipelining_of(request);
        let mut patience = LANE_PATIENCE;
        let mut silent: Option<Opener> = None;
        let mut is_busy = false;
        // What was kept open and failed is not tried again.
        let mut may_be_idle = true;
        loop {
            let mut opener = match silent.take() {
                // As long as its request may still be carried out there, its lane cannot be left.
                Some(silent) if silent.has_request() && !self.make_void(&silent, deadline).await => silent,
                silent => {
                    match (self.connect(lane, deadline, silent.is_some(), &mut may_be_idle).await, silent) {
                        (Ok(stream), _) => {
                            let pipelining = std::mem::replace(&mut pipelining, Pipelining::Never);
                            Opener::new(call, stream, request, pipelining)?
                        }
                        // No other lane: stay with this one.
                        (Err(ChannelError::Busy { .. } | ChannelError::NoAnswer { .. }), Some(silent)) => {
                            silent
                        }
                        (Err(error), _) => return Err(call.channel(error)),
                    }
                }
            };
            match opener.run(deadline.min(Instant::now() + patience)).await? {
                Progress::Welcomed { welcome, rest } => {
                    if is_accepted(call, &opener.greeting.introduction, &welcome)? {
                        // The lane that is kept for control is given back at once.
                        let home = (lane == Lane::Work).then(|| self.idle.clone());
                        return opener.into_session(request, &welcome, message_limit, &rest, home).await;
                    }
                    is_busy = true;
                    sleep(RECONNECT_PAUSE).await;
                }
                Progress::Silent => {
                    patience *= 2;
                    silent = Some(opener);
                }
                Progress::Closed => {
                    sleep(RECONNECT_PAUSE).await;
                    if opener.has_request() && !self.make_void(&opener, deadline).await {
                        return Err(call.disconnected());
                    }
                }
            }
            if Instant::now() >= deadline {
                if silent.is_some_and(|silent| silent.has_request()) {
                    return Err(call.timeout(self.connect_limit));
                }
                if is_busy {
                    return Err(GuestError::AgentBusy { operation, id: call.id });
                }
                let waited = self.connect_limit;
                return Err(call.channel(ChannelError::NoAnswer { id: call.id, waited }));
            }
        }
    }

    /// Makes sure that the request of a connection that is not answered is never carried out; `false` if it was begun,
    /// or the agent could not be asked.
    ///
    /// The question goes the way of every other, and so comes by here once more: hence the box.
    fn make_void(
        &self,
        unanswered: &Opener,
        deadline: Instant,
    ) -> Pin<Box<dyn Future<Output = bool> + Send + 'static>> {
        let limit = deadline.saturating_duration_since(Instant::now()).min(VOID_LIMIT);
        let asking = self.clone().with_connect_limit(limit);
        let (operation, nonce) = (unanswered.call.operation, unanswered.greeting.nonce);
        Box::pin(async move {
            !limit.is_zero() && asking.done(operation, Request::Void { nonce }, limit).await.is_ok()
        })
    }

    async fn connect(
        &self,
        lane: Lane,
        deadline: Instant,
        is_second: bool,
        may_be_idle: &mut bool,
    ) -> Result<GuestStream, ChannelError> {
        if std::mem::take(may_be_idle)
            && let Some(stream) = self.idle.take()
        {
            return Ok(stream);
        }
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
fn is_accepted(call: Call, introduction: &Introduction, welcome: &Welcome) -> Result<bool, GuestError> {
    let Call { id, operation } = call;
    if !introduction.is_from_the_machine(welcome) {
        return Err(GuestError::Stranger { operation, id });
    }
    match welcome.verdict {
        Verdict::Accepted if welcome.generation == PROTOCOL_GENERATION => Ok(true),
        Verdict::Busy => Ok(false),
        Verdict::WrongKey => Err(GuestError::WrongKey { operation, id }),
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
    /// How the request went along with the first hello, if it did.
    pipelined: Pipelining,
    /// When the request was made.
    sent: std::time::Instant,
}

/// A hello, sent until it is answered. It keeps its nonce: with a new one each time, the answers of a slow guest
/// would always come for the one before.
struct Greeting {
    introduction: Introduction,
    nonce: Nonce,
    scanner: WelcomeScanner,
    sent: u32,
}

impl Greeting {
    fn new(call: Call, introduction: Introduction) -> Result<Self, GuestError> {
        let nonce = random_nonce().map_err(|error| call.local("its random source", error))?;
        Ok(Self { introduction, nonce, scanner: WelcomeScanner::new(nonce), sent: 0 })
    }

    /// Says hello, and whether the request follows.
    fn say(&mut self, call: Call, out: &mut Vec<u8>, request: bool) -> Result<(), GuestError> {
        let hello = self.introduction.hello(self.nonce, request);
        encode_plain(out, &hello).map_err(|error| call.request(error))?;
        self.sent += 1;
        Ok(())
    }
}

impl Opener {
    fn new(
        call: Call,
        stream: GuestStream,
        request: &Request,
        mut pipelined: Pipelining,
    ) -> Result<Self, GuestError> {
        let mut greeting = Greeting::new(call, stream.introduction())?;
        let (reader, mut writer) = split(stream);
        let mut encoded = Vec::new();
        let sent = std::time::Instant::now();
        put_request(call, &mut encoded, request)?;
        if encoded.len() > MAX_PIPELINED_BYTES {
            pipelined = Pipelining::Never;
        }
        greeting.say(call, writer.buffer(), pipelined == Pipelining::Once)?;
        if pipelined != Pipelining::Never {
            writer.buffer().reserve_exact(encoded.len());
            writer.buffer().append(&mut encoded);
        }
        if secret::is_secret(request) {
            writer.wipe_when_sent();
            secret::wipe(&mut encoded);
        }
        let next_hello = Instant::now() + HELLO_INTERVAL;
        Ok(Self { call, reader, writer, greeting, next_hello, pipelined, sent })
    }

    /// Whether a request that must not be carried out twice went along with the first hello.
    fn has_request(&self) -> bool {
        self.pipelined == Pipelining::Once
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
        if self.pipelined == Pipelining::Repeatable {
            // Whether the request arrived with it cannot be known: begin anew, and let that answer go unheard.
            self.greeting = Greeting::new(self.call, self.greeting.introduction.clone())?;
            self.pipelined = Pipelining::Never;
        }
        self.greeting.say(self.call, self.writer.buffer(), false)
    }

    /// Goes on with the request, unless it went along with the hello.
    async fn into_session(
        self,
        request: &Request,
        welcome: &Welcome,
        message_limit: u32,
        first: &[u8],
        home: Option<IdleStreams>,
    ) -> Result<Session, GuestError> {
        let Self { call, reader, mut writer, greeting, pipelined, mut sent, .. } = self;
        let is_there = match pipelined {
            Pipelining::Never => false,
            Pipelining::Repeatable => true,
            // Otherwise the first hello was lost, and the request with it.
            Pipelining::Once => welcome.request,
        };
        if !is_there {
            sent = std::time::Instant::now();
            put_request(call, writer.buffer(), request)?;
        }
        let mut inputs = InputWriter::new(call, writer, greeting.nonce);
        inputs.drain_within(CHUNK_DEADLINE).await?;
        let welcomes_due = greeting.sent - 1;
        let replies =
            ReplyReader::new(call, reader, greeting.nonce, message_limit, first, welcomes_due, home);
        Ok(Session { replies, inputs, sent })
    }
}

/// Appends a request as it is right now: a time in it, of a clock that is to be set, is how far ahead of the present it is.
fn put_request(call: Call, out: &mut Vec<u8>, request: &Request) -> Result<(), GuestError> {
    if secret::is_secret(request) {
        // A time that is put in may be longer than what is there now.
        out.reserve_exact(secret::encoded_len(request) + LENGTH_BYTES + LONGEST_NUMBER);
    }
    let encoded = match request {
        Request::Configure(configuration) if configuration.time_ns.is_some() => {
            let ahead = configuration.time_ns.unwrap_or_default();
            let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let now = u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX);
            let time_ns = Some(now.saturating_add(ahead));
            let configuration = Configuration { time_ns, ..(**configuration).clone() };
            encode_plain(out, &Guarded(Request::Configure(Box::new(configuration))).0)
        }
        _ => encode_plain(out, request),
    };
    encoded.map_err(|error| call.request(error))
}

fn random_nonce() -> std::io::Result<Nonce> {
    let mut bytes = [0_u8; NONCE_BYTES];
    let mut filled = 0;
    while filled < NONCE_BYTES {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(Nonce::from_bytes(bytes))
}
