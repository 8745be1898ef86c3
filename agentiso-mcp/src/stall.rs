//! Streams whose other end does not read, or does nothing at all: they fail after a while instead of waiting for ever.

use std::{
    future::Future,
    io::{self, ErrorKind},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
    time::{Instant, Sleep, sleep},
};

/// How long what may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// How long what was written may stay unread.
    pub(crate) write: Duration,
    /// How long nothing may be read or written.
    pub(crate) idle: Option<Duration>,
}

/// A stream with limits.
pub(crate) struct Stalling<S> {
    inner: S,
    limits: Limits,
    writing: Option<Pin<Box<Sleep>>>,
    idle: Option<Pin<Box<Sleep>>>,
    stalled: watch::Sender<bool>,
}

impl<S> Stalling<S> {
    pub(crate) fn new(inner: S, limits: Limits) -> Self {
        let idle = limits.idle.map(|limit| Box::pin(sleep(limit)));
        Self { inner, limits, writing: None, idle, stalled: watch::Sender::new(false) }
    }

    /// Tells when the other end has not read for too long.
    pub(crate) fn stalled(&self) -> watch::Receiver<bool> {
        self.stalled.subscribe()
    }

    /// Something was read or written.
    fn happened(&mut self) {
        if let (Some(idle), Some(limit)) = (&mut self.idle, self.limits.idle) {
            idle.as_mut().reset(Instant::now() + limit);
        }
    }

    /// What a write that cannot go on waits for, and fails with.
    fn poll_stalled(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let limit = self.limits.write;
        let timer = self.writing.get_or_insert_with(|| Box::pin(sleep(limit)));
        timer.as_mut().poll(context).map(|()| {
            self.stalled.send_replace(true);
            io::Error::new(ErrorKind::TimedOut, "the other end does not read")
        })
    }

    fn wrote<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match written {
            Poll::Ready(result) => {
                self.writing = None;
                self.happened();
                Poll::Ready(result)
            }
            Poll::Pending => self.poll_stalled(context).map(Err),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stalling<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.inner).poll_read(context, buffer) {
            Poll::Ready(result) => {
                self.happened();
                Poll::Ready(result)
            }
            Poll::Pending => match &mut self.idle {
                Some(idle) => idle
                    .as_mut()
                    .poll(context)
                    .map(|()| Err(io::Error::new(ErrorKind::TimedOut, "nothing happens on the connection"))),
                None => Poll::Pending,
            },
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stalling<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.wrote(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(context);
        // Flushing what is flushed is no sign of life.
        match flushed {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => self.poll_stalled(context).map(Err),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.inner).poll_shutdown(context);
        self.wrote(context, ended)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const WRITE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn write_that_nobody_reads_fails_in_time() {
        let (near, _far) = duplex(16);
        let mut stream = Stalling::new(near, Limits { write: WRITE, idle: None });
        let stalled = stream.stalled();
        let began = Instant::now();

        let error = stream.write_all(&[0; 64]).await.unwrap_err();

        assert_eq!((error.kind(), began.elapsed() >= WRITE), (ErrorKind::TimedOut, true));
        assert!(began.elapsed() < 2 * WRITE && *stalled.borrow());
    }

    #[tokio::test(start_paused = true)]
    async fn slow_reader_is_waited_for() {
        let (near, mut far) = duplex(16);
        let mut stream = Stalling::new(near, Limits { write: WRITE, idle: None });
        let reader = tokio::spawn(async move {
            let mut buffer = [0; 16];
            for _ in 0..4 {
                sleep(WRITE / 2).await;
                far.read_exact(&mut buffer).await.unwrap();
            }
        });

        stream.write_all(&[0; 64]).await.unwrap();
        reader.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn connection_on_which_nothing_happens_is_given_up() {
        let (near, _far) = duplex(16);
        let mut stream = Stalling::new(near, Limits { write: WRITE, idle: Some(WRITE) });

        let error = stream.read_u8().await.unwrap_err();

        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
}
