use std::time::Duration;

use agentiso_guest::message::{Input, Reply};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::{
    CHUNK_DEADLINE, GuestError,
    session::{Session, kind, payload_length},
};

/// Bytes of a file or archive in one message of ours.
const DATA_CHUNK: usize = 256 * 1024;

/// How long the guest may take, once it has everything, to put it in place.
const FINISH_DEADLINE: Duration = Duration::from_secs(120);

/// How long to wait for the reason when the guest closed the connection while data was being sent.
const REASON_LIMIT: Duration = Duration::from_secs(1);

/// The bytes of a file or archive, as they come from the guest. Dropping it closes the connection.
///
/// Holds one message at a time; what is not taken stays in the guest.
pub struct DataStream {
    session: Session,
    /// Bytes that may still come, and how many were asked for.
    bound: Option<(u64, u64)>,
    is_over: bool,
}

impl std::fmt::Debug for DataStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataStream")
            .field("bound", &self.bound)
            .field("is_over", &self.is_over)
            .finish_non_exhaustive()
    }
}

impl DataStream {
    /// A stream of at most `limit` bytes.
    pub(super) fn new(session: Session, limit: Option<u64>) -> Self {
        Self { session, bound: limit.map(|limit| (limit, limit)), is_over: false }
    }

    /// The next bytes, at most 1 MiB; `None` at the end. Cancelled: nothing is lost.
    ///
    /// # Errors
    /// See [`GuestError`]; the next bytes must come within 30 s. After an error the stream is at its end.
    pub async fn chunk(&mut self) -> Result<Option<Vec<u8>>, GuestError> {
        if self.is_over {
            return Ok(None);
        }
        let chunk = self.next_chunk().await;
        self.is_over = !matches!(chunk, Ok(Some(_)));
        chunk
    }

    async fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, GuestError> {
        let call = self.session.replies.call();
        let frame = self.session.replies.next_within(CHUNK_DEADLINE).await?;
        match frame.message {
            Reply::Data { payload: 0 } => Err(call.unexpected("an empty chunk")),
            Reply::Data { payload } => {
                if let Some((left, asked)) = &mut self.bound {
                    let Some(rest) = left.checked_sub(u64::from(payload)) else {
                        return Err(call.too_much(*asked, "bytes"));
                    };
                    *left = rest;
                }
                Ok(Some(frame.payload))
            }
            Reply::Done => Ok(None),
            other => Err(call.unexpected(kind(&other))),
        }
    }

    /// Writes all bytes to `out` and flushes it. Returns how many there were.
    ///
    /// # Errors
    /// See [`GuestError`]; part of the bytes may have been written.
    pub async fn copy_to<W: AsyncWrite + Unpin>(mut self, out: &mut W) -> Result<u64, GuestError> {
        let call = self.session.replies.call();
        let local = |error| call.local("writing what the guest sent", error);
        let mut total = 0_u64;
        while let Some(chunk) = self.chunk().await? {
            out.write_all(&chunk).await.map_err(local)?;
            total += chunk.len() as u64;
        }
        out.flush().await.map_err(local)?;
        Ok(total)
    }
}

/// Takes the bytes of a file or archive to the guest. Dropping it before [`DataSink::finish`] gives up: a file is then
/// unchanged, of an archive some entries may have been unpacked.
pub struct DataSink {
    session: Session,
}

impl std::fmt::Debug for DataSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataSink").finish_non_exhaustive()
    }
}

impl DataSink {
    pub(super) fn new(session: Session) -> Self {
        Self { session }
    }

    /// Sends bytes, in chunks of 256 KiB. A guest that has failed already says so here.
    ///
    /// # Errors
    /// See [`GuestError`]; each chunk must be taken within 30 s. The sink is of no use after an error.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), GuestError> {
        for chunk in bytes.chunks(DATA_CHUNK) {
            self.send(&Input::Data { payload: payload_length(chunk) }, chunk).await?;
        }
        Ok(())
    }

    /// Sends all that `input` has. Returns how many bytes there were.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub async fn copy_from<R: AsyncRead + Unpin>(&mut self, input: &mut R) -> Result<u64, GuestError> {
        let call = self.session.replies.call();
        let mut buffer = vec![0; DATA_CHUNK];
        let mut total = 0_u64;
        loop {
            let read = input
                .read(&mut buffer)
                .await
                .map_err(|error| call.local("reading what the guest is to get", error))?;
            if read == 0 {
                return Ok(total);
            }
            self.write(&buffer[..read]).await?;
            total += read as u64;
        }
    }

    /// Says that this was all, and waits until the guest has put it in place.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub async fn finish(mut self) -> Result<(), GuestError> {
        self.send(&Input::End, &[]).await?;
        let call = self.session.replies.call();
        match self.session.replies.next_within(FINISH_DEADLINE).await?.message {
            Reply::Done => Ok(()),
            other => Err(call.unexpected(kind(&other))),
        }
    }

    /// Sends one message while listening for an error.
    async fn send(&mut self, input: &Input, payload: &[u8]) -> Result<(), GuestError> {
        let Session { replies, inputs, .. } = &mut self.session;
        let call = replies.call();
        let sending = timeout(CHUNK_DEADLINE, inputs.send(input, payload));
        let sent = tokio::select! {
            biased;
            reply = replies.next() => return Err(match reply {
                Ok(early) => call.unexpected(kind(&early.message)),
                Err(error) => error,
            }),
            sent = sending => sent.unwrap_or(Err(call.timeout(CHUNK_DEADLINE))),
        };
        match sent {
            // The guest may have said why before it closed the connection.
            Err(GuestError::Disconnected { .. }) => match replies.next_within(REASON_LIMIT).await {
                Err(reason @ GuestError::Refused { .. }) => Err(reason),
                _ => Err(call.disconnected()),
            },
            other => other,
        }
    }
}
