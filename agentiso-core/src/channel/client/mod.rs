//! The typed client of a machine's agent: what a guest can be asked to do, over any [`GuestChannel`].
//!
//! Each operation is one connection, opened with a hello of its own, so that none waits for another and no answer is ever
//! taken for that of another one. A guest may say anything at any time: every reply is checked against what is due,
//! every size is bounded, every wait has a deadline. Dropping a future or a stream closes its connection.
//!
//! - `open.rs`: the hello, lanes that stay silent, requests that may be sent along with the hello.
//! - `idle.rs`: channels that stay open for the next connection.
//! - `session.rs`, `halves.rs`: frames over a connection that is read and written at once.
//! - `exec.rs`, `collect.rs`: running commands, streamed or collected; `jobs.rs`: background jobs.
//! - `files.rs`, `data.rs`: files and archives.
//! - `walk.rs`: trees of files, and what the files contain.
//! - `configure.rs`: identity and clock; `control.rs`: environment, freezing, flushing, shutdown.
//! - `secret.rs`: what is overwritten after use.
//! - `error.rs`, `text.rs`: errors, and a guest's text made fit to be shown.

mod collect;
mod configure;
mod control;
mod data;
mod error;
mod exec;
mod files;
mod halves;
mod idle;
mod jobs;
mod open;
mod secret;
mod session;
#[cfg(test)]
mod tests;
mod text;
mod walk;

use std::{sync::Arc, time::Duration};

pub use agentiso_guest::message::{
    Command, Compression, Entry, EntryKind, ErrorCode, Exit, GuestInfo, Job, NetworkConfiguration, TtySize,
};
use agentiso_guest::message::{Reply, Request};
pub use agentiso_guest::tree::{FileTime, InvalidEscape, RawPath, TreeEntry, TreeKind};

pub use self::{
    collect::{CollectOptions, DEFAULT_EXEC_TIMEOUT, DEFAULT_MAX_OUTPUT_BYTES, ExecOutput},
    configure::{Configure, ConfigureReport},
    data::{DataSink, DataStream},
    error::{GuestError, ProtocolError},
    exec::{ExecEvent, ExecEvents, ExecInput, ExecSpec, ExecStream, exit_status},
    files::{FileRange, MAX_LISTED_ENTRIES, WriteOptions},
    jobs::JobReport,
    text::clean_text,
    walk::{FileHash, MAX_HASHED_BYTES, MAX_TREE_ENTRIES, TreeStream},
};
use self::{error::Call, secret::Guarded, session::kind};
use crate::channel::{ChannelRecord, GuestChannel, GuestStream, Lane};

/// How long to connect, hello included, unless asked otherwise.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How long one chunk of a file or archive, or the answer to a short operation, may take.
pub const CHUNK_DEADLINE: Duration = Duration::from_secs(30);

/// How long the guest may take to write all dirty data to its disk.
pub const SYNC_DEADLINE: Duration = Duration::from_secs(15);

/// How much later than the guest this host gives up on a command whose time is over.
pub const EXEC_GRACE: Duration = Duration::from_secs(5);

/// Longest reply in bytes, but for lists: an error with two of the longest paths, each byte escaped, fits.
const SHORT_REPLY: u32 = 128 * 1024;

/// The agent of one machine. Cheap to clone.
#[derive(Clone)]
pub struct GuestClient {
    channel: Arc<dyn GuestChannel>,
    record: ChannelRecord,
    lane: Lane,
    connect_limit: Duration,
    idle: idle::IdleStreams,
}

impl std::fmt::Debug for GuestClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestClient")
            .field("id", &self.record.id)
            .field("lane", &self.lane)
            .field("connect_limit", &self.connect_limit)
            .finish_non_exhaustive()
    }
}

impl GuestClient {
    /// A client of the agent behind this channel. Connects to nothing yet.
    pub fn new(channel: Arc<dyn GuestChannel>, record: ChannelRecord) -> Self {
        Self {
            channel,
            record,
            lane: Lane::Work,
            connect_limit: CONNECT_LIMIT,
            idle: idle::IdleStreams::default(),
        }
    }

    /// The same, with the lane that users' work leaves free. Signals to jobs, configure, freeze, thaw, sync and
    /// shutdown take it anyway.
    #[must_use]
    pub fn on_control_lane(mut self) -> Self {
        self.lane = Lane::Control;
        self
    }

    /// The same, with another limit for connecting: waiting for a free lane, for a guest that still boots, and for
    /// its welcome.
    #[must_use]
    pub fn with_connect_limit(mut self, limit: Duration) -> Self {
        self.connect_limit = limit;
        self
    }

    /// A connection of its own before any hello, for measuring the channel. It takes up a lane until it is dropped.
    ///
    /// # Errors
    /// [`GuestError::Channel`].
    pub async fn connect_raw(&self) -> Result<GuestStream, GuestError> {
        let call = Call { id: self.record.id, operation: "connect" };
        let connecting = self.channel.connect(&self.record, self.lane, self.connect_limit);
        connecting.await.map_err(|error| call.channel(error))
    }

    /// Asks for a sign of life.
    ///
    /// # Errors
    /// See [`GuestError`]. Nothing in the guest is changed.
    pub async fn ping(&self) -> Result<(), GuestError> {
        self.done("reach the agent", Request::Ping, CHUNK_DEADLINE).await
    }

    /// What the guest says of itself; its texts are cleaned with [`clean_text`].
    ///
    /// # Errors
    /// See [`GuestError`]. Nothing in the guest is changed.
    pub async fn info(&self) -> Result<GuestInfo, GuestError> {
        let (call, reply) = self
            .ask("ask what the guest is", &Request::Info, CHUNK_DEADLINE, |reply| {
                matches!(reply, Reply::Info { .. })
            })
            .await?;
        match reply {
            Reply::Info { info } => Ok(GuestInfo {
                kernel: clean_text(&info.kernel),
                hostname: clean_text(&info.hostname),
                ..*info
            }),
            other => Err(call.unexpected(kind(&other))),
        }
    }

    /// Carries out a request that has one short reply; `due` says which.
    async fn ask(
        &self,
        operation: &'static str,
        request: &Request,
        limit: Duration,
        due: fn(&Reply) -> bool,
    ) -> Result<(Call, Reply), GuestError> {
        let mut session = self.open(operation, request, SHORT_REPLY).await?;
        let frame = session.replies.next_within(limit).await?;
        // Whoever answers what is not due is not trusted with another operation.
        if due(&frame.message) {
            session.replies.release();
        }
        Ok((session.replies.call(), frame.message))
    }

    /// Carries out a request that is answered by [`Reply::Done`].
    async fn done(
        &self,
        operation: &'static str,
        request: Request,
        limit: Duration,
    ) -> Result<(), GuestError> {
        let request = Guarded(request);
        match self.ask(operation, &request.0, limit, |reply| *reply == Reply::Done).await? {
            (_, Reply::Done) => Ok(()),
            (call, other) => Err(call.unexpected(kind(&other))),
        }
    }
}

/// Milliseconds as the protocol counts them: never 0 for a limit that is not, at most what fits.
fn millis(limit: Duration) -> u64 {
    u64::try_from(limit.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
