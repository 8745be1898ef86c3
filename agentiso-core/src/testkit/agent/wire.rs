//! Messages on one connection, from the agent's side.

use agentiso_guest::{
    PROTOCOL_GENERATION,
    frame::{Decoder, Frame, LENGTH_BYTES, Message, encode, encode_plain},
    hello::{Hello, Nonce, Verdict, Welcome},
    limits::MAX_HELLO_SIZE,
    message::{Input, Reply, Request},
};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::testkit::FakeGuest;

/// The client or the guest is gone, or the client does not speak the protocol: nobody is there to tell.
#[derive(Debug)]
pub(super) struct Disconnected;

/// One connection after its hello.
pub(super) struct Wire<S> {
    stream: S,
    guest: FakeGuest,
    nonce: Nonce,
    decoder: Decoder,
    chunk: Vec<u8>,
}

/// What may come in place of a request: a hello is sent again when its answer is slow.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum First {
    HelloAgain(Hello),
    Request(Request),
}

impl Message for First {
    fn payload_len(&self) -> u32 {
        0
    }

    fn from_json(body: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Wire<S> {
    /// Takes the client's hello and answers it.
    pub(super) async fn accept(mut stream: S, guest: FakeGuest) -> Result<Self, Disconnected> {
        let mut length = [0; LENGTH_BYTES];
        stream.read_exact(&mut length).await.map_err(|_| Disconnected)?;
        let length = u32::from_be_bytes(length);
        if length == 0 || length > MAX_HELLO_SIZE {
            return Err(Disconnected);
        }
        let mut body = vec![0; length as usize];
        stream.read_exact(&mut body).await.map_err(|_| Disconnected)?;
        let hello: Hello = serde_json::from_slice(&body).map_err(|_| Disconnected)?;
        let same_generation = hello.generation == PROTOCOL_GENERATION;
        let verdict = if same_generation { Verdict::Accepted } else { Verdict::WrongGeneration };
        let welcome = Welcome {
            welcome: hello.hello,
            generation: PROTOCOL_GENERATION,
            agent: "fake".to_owned(),
            verdict,
            request: hello.request,
            proof: None,
        };
        let mut bytes = Vec::new();
        encode_plain(&mut bytes, &welcome).map_err(|_| Disconnected)?;
        let nonce = hello.hello;
        let mut wire = Self { stream, guest, nonce, decoder: Decoder::new(nonce), chunk: Vec::new() };
        wire.write(&bytes).await?;
        if same_generation { Ok(wire) } else { Err(Disconnected) }
    }

    /// What the client calls this connection.
    pub(super) fn nonce(&self) -> Nonce {
        self.nonce
    }

    /// The operation this connection is for.
    pub(super) async fn request(&mut self) -> Result<Request, Disconnected> {
        loop {
            match self.receive::<First>().await?.message {
                First::HelloAgain(hello) if hello.hello == self.nonce => {}
                First::HelloAgain(_) => return Err(Disconnected),
                First::Request(request) => return Ok(request),
            }
        }
    }

    /// What the client sends meanwhile. Cancel safe.
    pub(super) async fn input(&mut self) -> Result<Frame<Input>, Disconnected> {
        self.receive().await
    }

    /// Waits until the client hangs up; whatever it still sends is thrown away. Cancel safe.
    pub(super) async fn hung_up(&mut self) {
        while self.input().await.is_ok() {}
    }

    /// Sends a reply. Waits while the machine is paused or the client does not read.
    pub(super) async fn send(&mut self, reply: Reply, payload: &[u8]) -> Result<(), Disconnected> {
        let mut bytes = Vec::new();
        encode(&mut bytes, &reply, payload, self.nonce).map_err(|_| Disconnected)?;
        self.write(&bytes).await
    }

    /// Ends the stream; the client reads what was sent and then its end.
    pub(super) async fn close(&mut self) {
        // A client that is gone already needs no end of its stream.
        let _ = self.stream.shutdown().await;
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Disconnected> {
        self.guest.agent_runs().await.map_err(|_| Disconnected)?;
        self.stream.write_all(bytes).await.map_err(|_| Disconnected)?;
        self.stream.flush().await.map_err(|_| Disconnected)
    }

    async fn receive<M: Message>(&mut self) -> Result<Frame<M>, Disconnected> {
        loop {
            self.guest.agent_runs().await.map_err(|_| Disconnected)?;
            if let Some(frame) = self.decoder.next_frame().map_err(|_| Disconnected)? {
                return Ok(frame);
            }
            self.chunk.clear();
            self.chunk.reserve(64 * 1024);
            if self.stream.read_buf(&mut self.chunk).await.map_err(|_| Disconnected)? == 0 {
                return Err(Disconnected);
            }
            self.decoder.feed(&self.chunk);
        }
    }
}
