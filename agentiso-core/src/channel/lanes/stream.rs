use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::folder::LaneLock;

/// A connection on a lane, which nobody else can take until this is dropped.
#[derive(Debug)]
pub(in crate::channel) struct Held<T> {
    // Fields are dropped in this order: the connection is closed when the lane becomes free.
    connection: T,
    lock: LaneLock,
}

impl<T> Held<T> {
    pub(super) fn new(connection: T, lock: LaneLock) -> Self {
        Self { connection, lock }
    }

    /// The same lane with another connection.
    pub(in crate::channel) fn with<U>(self, connection: U) -> Held<U> {
        Held { connection, lock: self.lock }
    }

    /// Whether the lane is still one of the machine's: no longer, once the channel was released.
    pub(in crate::channel) fn is_valid(&self) -> bool {
        self.lock.is_valid()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Held<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Held<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.connection).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }
}
