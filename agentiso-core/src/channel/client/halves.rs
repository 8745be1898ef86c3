use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::secret::wipe;
use crate::channel::GuestStream;

/// A connection in two halves. It lives as long as its reading half: with that the operation is over, whoever still
/// holds the other.
pub(super) fn split(stream: GuestStream) -> (ReadHalf, WriteHalf) {
    let shared = Arc::new(Mutex::new(Shared { stream: Some(stream), writer: None, is_cut: false }));
    (ReadHalf(shared.clone()), WriteHalf { shared, pending: Vec::new(), written: 0, is_secret: false })
}

struct Shared {
    /// `None` once the reading half was dropped.
    stream: Option<GuestStream>,
    /// Who waits to write: must hear when the stream goes.
    writer: Option<Waker>,
    /// The last thing written was the beginning of something.
    is_cut: bool,
}

/// Held for one non-blocking call at a time.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The half that reads. Dropping it closes the connection.
pub(super) struct ReadHalf(Arc<Mutex<Shared>>);

impl ReadHalf {
    /// Reads what is there, waiting for the first byte; 0 at the end of the stream. Cancelled: nothing was read.
    pub(super) async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| {
            let mut shared = lock(&self.0);
            let Some(stream) = &mut shared.stream else { return Poll::Ready(Ok(0)) };
            let mut buffer = ReadBuf::new(buffer);
            ready!(Pin::new(stream).poll_read(cx, &mut buffer))?;
            Poll::Ready(Ok(buffer.filled().len()))
        })
        .await
    }
}

impl ReadHalf {
    /// Takes the connection away from both halves, as if it were closed; `None` if it is, or something was written in
    /// part.
    pub(super) fn take_stream(&mut self) -> Option<GuestStream> {
        let (stream, writer, is_cut) = {
            let mut shared = lock(&self.0);
            (shared.stream.take(), shared.writer.take(), shared.is_cut)
        };
        if let Some(writer) = writer {
            writer.wake();
        }
        stream.filter(|_| !is_cut)
    }
}

impl Drop for ReadHalf {
    fn drop(&mut self) {
        drop(self.take_stream());
    }
}

/// The half that writes, through a buffer: what was put into it is sent sooner or later and in order, even if whoever
/// put it there was cancelled while waiting. So no frame is ever cut short by a cancelled call.
pub(super) struct WriteHalf {
    shared: Arc<Mutex<Shared>>,
    pending: Vec<u8>,
    /// Bytes at the front of `pending` that were written.
    written: usize,
    /// What is in the buffer is secret, and overwritten once it is sent.
    is_secret: bool,
}

impl Drop for WriteHalf {
    fn drop(&mut self) {
        if self.is_secret {
            wipe(&mut self.pending);
        }
    }
}

impl WriteHalf {
    /// From now on what was in the buffer is overwritten.
    pub(super) fn wipe_when_sent(&mut self) {
        self.is_secret = true;
    }

    /// Whether everything was written.
    pub(super) fn is_drained(&self) -> bool {
        self.written == self.pending.len()
    }

    /// Where to put bytes to send. Callers drain first, so that no more than one frame is ever in here.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.pending
    }

    /// Writes what is in the buffer.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = lock(&self.shared);
        let Shared { stream, writer, is_cut } = &mut *shared;
        let Some(stream) = stream else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        while self.written < self.pending.len() {
            match Pin::new(&mut *stream).poll_write(cx, &self.pending[self.written..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => {
                    self.written += n;
                    *is_cut = self.written < self.pending.len();
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    *writer = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            }
        }
        if self.is_secret {
            wipe(&mut self.pending);
        }
        self.pending.clear();
        self.written = 0;
        Pin::new(stream).poll_flush(cx)
    }

    /// Writes what is in the buffer. Cancelled: the rest stays in it.
    pub(super) async fn drain(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_drain(cx)).await
    }
}
