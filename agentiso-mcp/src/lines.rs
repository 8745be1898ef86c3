//! Lines of a client, each of bounded length: what is longer is skipped, not kept.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};

/// Longest line, in bytes.
pub(crate) const MAX_LINE_BYTES: usize = 16 * 1024 * 1024;

/// What a line that was too long is replaced with: the protocol answers it as an invalid request.
const INSTEAD: &[u8] = b"{}\n";

/// Reads from a client. Of a line that is too long, the reader behind sees its beginning, which it skips, and then an
/// invalid request, so that the client gets an answer.
pub(crate) struct BoundedLines<R> {
    inner: R,
    /// Bytes of the line so far.
    length: usize,
    /// What is still to be given to the reader.
    instead: &'static [u8],
    buffer: Vec<u8>,
    start: usize,
}

/// Bytes read at once.
const CHUNK: usize = 64 * 1024;

impl<R> BoundedLines<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, length: 0, instead: &[], buffer: Vec::with_capacity(CHUNK), start: 0 }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for BoundedLines<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if !this.instead.is_empty() {
            let (now, later) = this.instead.split_at(this.instead.len().min(out.remaining()));
            out.put_slice(now);
            this.instead = later;
            return Poll::Ready(Ok(()));
        }
        if this.start == this.buffer.len() {
            this.buffer.resize(CHUNK, 0);
            this.start = CHUNK;
            let mut read = ReadBuf::new(&mut this.buffer);
            let result = Pin::new(&mut this.inner).poll_read(context, &mut read);
            let filled = read.filled().len();
            if let Poll::Pending | Poll::Ready(Err(_)) = result {
                return result;
            }
            ready!(result)?;
            this.buffer.truncate(filled);
            this.start = 0;
            if filled == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        let waiting = &this.buffer[this.start..];
        let end = waiting.iter().position(|byte| *byte == b'\n').map_or(waiting.len(), |at| at + 1);
        let now = &waiting[..end.min(out.remaining())];
        out.put_slice(now);
        this.start += now.len();
        this.length = this.length.saturating_add(now.len());
        if now.last() == Some(&b'\n') {
            if this.length > MAX_LINE_BYTES {
                tracing::warn!(bytes = this.length, "skipped a message of more than 16 MiB");
                this.instead = INSTEAD;
            }
            this.length = 0;
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    async fn read(input: Vec<u8>) -> Vec<u8> {
        let mut output = Vec::new();
        BoundedLines::new(input.as_slice()).read_to_end(&mut output).await.unwrap();
        output
    }

    #[tokio::test]
    async fn lines_within_the_limit_pass_unchanged() {
        let mut longest = vec![b'a'; MAX_LINE_BYTES - 1];
        longest.push(b'\n');
        for input in [b"".to_vec(), b"a\nb".to_vec(), b"\n\n".to_vec(), longest] {
            assert!(read(input.clone()).await == input);
        }
    }

    #[tokio::test]
    async fn line_that_is_too_long_is_followed_by_an_invalid_request() {
        let mut input = vec![b'a'; MAX_LINE_BYTES];
        input.extend_from_slice(b"\nnext\n");

        let output = read(input.clone()).await;

        assert_eq!(&output[MAX_LINE_BYTES + 1..], b"{}\nnext\n");
    }
}
