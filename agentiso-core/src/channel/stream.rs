use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use agentiso_guest::{
    PROTOCOL_GENERATION,
    hello::{Hello, Nonce, Verdict, Welcome},
    key::{MachineKey, Side},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a connection to an agent is made of.
pub trait GuestIo: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> GuestIo for T {}

/// A connection to an agent, and what both sides prove to each other in its hello. Dropping it closes it and frees its
/// lane.
pub struct GuestStream {
    io: Box<dyn GuestIo>,
    key: Option<MachineKey>,
}

impl GuestStream {
    /// A connection that nobody but this host and that machine can make.
    pub fn private(io: impl GuestIo + 'static) -> Self {
        Self { io: Box::new(io), key: None }
    }

    /// A connection that anybody can make, to a machine that has this key.
    pub fn with_key(io: impl GuestIo + 'static, key: MachineKey) -> Self {
        Self { io: Box::new(io), key: Some(key) }
    }

    /// What both sides prove to each other.
    pub fn introduction(&self) -> Introduction {
        Introduction(self.key.clone())
    }
}

impl std::fmt::Debug for GuestStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestStream").field("key", &self.key).finish_non_exhaustive()
    }
}

impl AsyncRead for GuestStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// What the two sides of a connection prove to each other.
#[derive(Clone, Debug)]
pub struct Introduction(Option<MachineKey>);

impl Introduction {
    /// The host's hello.
    pub fn hello(&self, nonce: Nonce, request: bool) -> Hello {
        let proof = self.0.as_ref().map(|key| key.proof(Side::Host, nonce));
        Hello { hello: nonce, generation: PROTOCOL_GENERATION, request, proof }
    }

    /// Whether a welcome comes from the machine. One that refuses the host's proof cannot prove anything itself.
    pub fn is_from_the_machine(&self, welcome: &Welcome) -> bool {
        match (&self.0, &welcome.proof) {
            (None, _) => true,
            (Some(_), None) => welcome.verdict == Verdict::WrongKey,
            (Some(key), Some(proof)) => key.is_proven(Side::Agent, welcome.welcome, proof),
        }
    }
}
