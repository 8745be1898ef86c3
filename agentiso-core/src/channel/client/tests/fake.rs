//! An agent that follows a script, behind a channel of in-memory pipes or behind real serial slots.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use agentiso_guest::{
    PROTOCOL_GENERATION,
    frame::{self, Decoder, Frame, Message},
    hello::{Hello, Nonce, Verdict, Welcome},
    key::{MachineKey, Proof},
    message::{Input, Reply, Request},
};
use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use crate::{
    channel::{
        ChannelCapabilities, ChannelError, ChannelRecord, ChannelSpec, GuestChannel, GuestIo, GuestStream,
        Lane, PreparedChannel, client::GuestClient,
    },
    types::WorkspaceId,
};

/// Bytes that each direction of an in-memory pipe holds.
const PIPE_BYTES: usize = 64 * 1024;

type Script = Arc<dyn Fn(usize, Agent) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// Runs a script for each connection; it is told which one it is, counted from 0.
pub(super) struct ScriptedChannel {
    script: Script,
    /// Connections that can be made in all; the next one is told that all lanes are busy.
    lanes: usize,
    made: AtomicUsize,
    key: Option<MachineKey>,
}

#[async_trait]
impl GuestChannel for ScriptedChannel {
    fn capabilities(&self) -> ChannelCapabilities {
        ChannelCapabilities { name: "scripted".to_owned(), concurrent: self.lanes, open: Vec::new() }
    }

    async fn prepare(&self, _: ChannelSpec) -> Result<PreparedChannel, ChannelError> {
        panic!("tests do not prepare a scripted channel")
    }

    async fn leftovers(&self) -> Result<Vec<ChannelRecord>, ChannelError> {
        Ok(Vec::new())
    }

    async fn connect(
        &self,
        channel: &ChannelRecord,
        _: Lane,
        limit: Duration,
    ) -> Result<GuestStream, ChannelError> {
        let number = self.made.fetch_add(1, Ordering::SeqCst);
        if number >= self.lanes {
            return Err(ChannelError::Busy { id: channel.id, lanes: self.lanes, waited: limit });
        }
        let (host, guest) = duplex(PIPE_BYTES);
        tokio::spawn((self.script)(number, Agent::new(Box::new(guest))));
        Ok(match &self.key {
            Some(key) => GuestStream::with_key(host, key.clone()),
            None => GuestStream::private(host),
        })
    }

    async fn release(&self, _: &ChannelRecord) -> Result<(), ChannelError> {
        Ok(())
    }
}

/// A client of an agent that runs `script` for each connection.
pub(super) fn client<F, T>(script: F) -> GuestClient
where
    F: Fn(usize, Agent) -> T + Send + Sync + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    client_with_lanes(usize::MAX, script)
}

/// The same with a limited number of connections.
pub(super) fn client_with_lanes<F, T>(lanes: usize, script: F) -> GuestClient
where
    F: Fn(usize, Agent) -> T + Send + Sync + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    client_of(lanes, None, script)
}

/// The same over connections that anybody could make, to a machine with this key.
pub(super) fn client_with_key<F, T>(key: MachineKey, script: F) -> GuestClient
where
    F: Fn(usize, Agent) -> T + Send + Sync + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    client_of(usize::MAX, Some(key), script)
}

fn client_of<F, T>(lanes: usize, key: Option<MachineKey>, script: F) -> GuestClient
where
    F: Fn(usize, Agent) -> T + Send + Sync + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let script: Script = Arc::new(move |number, agent| Box::pin(script(number, agent)));
    let channel = ScriptedChannel { script, lanes, made: AtomicUsize::new(0), key };
    let record = ChannelRecord { id: WorkspaceId::random(), details: serde_json::Value::Null };
    GuestClient::new(Arc::new(channel), record)
}

/// A client of an agent that opens each connection properly, then runs `script` with the request.
pub(super) fn serving<F, T>(script: F) -> GuestClient
where
    F: Fn(Request, Agent) -> T + Send + Sync + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let script = Arc::new(script);
    client(move |_, mut agent| {
        let script = script.clone();
        async move {
            agent.accept().await;
            let request = agent.request().await;
            script(request, agent).await;
        }
    })
}

/// The agent's end of one connection.
pub(super) struct Agent {
    stream: Box<dyn GuestIo>,
    /// Bytes that were read and not looked at yet.
    unread: Vec<u8>,
    nonce: Option<Nonce>,
    /// Whether the last hello said that its request follows.
    announced: bool,
    /// What the last hello proved.
    proof: Option<Proof>,
}

impl Agent {
    pub(super) fn new(stream: Box<dyn GuestIo>) -> Self {
        Self { stream, unread: Vec::new(), nonce: None, announced: false, proof: None }
    }

    /// The next message of the host as JSON text; `None` when the host has closed the connection.
    async fn json(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some((length, rest)) = self.unread.split_first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                if let Some(json) = rest.get(..length) {
                    let json = json.to_vec();
                    self.unread.drain(..4 + length);
                    return Some(json);
                }
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Option<()> {
        let mut buffer = vec![0; 64 * 1024];
        let read = self.stream.read(&mut buffer).await.unwrap_or(0);
        self.unread.extend_from_slice(&buffer[..read]);
        (read > 0).then_some(())
    }

    /// The next hello.
    pub(super) async fn hello(&mut self) -> Nonce {
        let json = self.json().await.expect("the host said hello");
        let hello: Hello = serde_json::from_slice(&json).expect("a hello");
        self.nonce = Some(hello.hello);
        self.announced = hello.request;
        self.proof = hello.proof;
        hello.hello
    }

    /// Whether the last hello said that its request follows.
    pub(super) fn is_announced(&self) -> bool {
        self.announced
    }

    /// What the last hello proved.
    pub(super) fn proof(&self) -> Option<Proof> {
        self.proof
    }

    /// A welcome that proves this.
    pub(super) async fn welcome_proving(&mut self, nonce: Nonce, verdict: Verdict, proof: Option<Proof>) {
        let mut bytes = Vec::new();
        let welcome = Welcome { proof, ..welcome_of(nonce, verdict, PROTOCOL_GENERATION, self.announced) };
        frame::encode_plain(&mut bytes, &welcome).unwrap();
        self.raw(&bytes).await;
    }

    /// Takes a hello and welcomes it.
    pub(super) async fn accept(&mut self) {
        let nonce = self.hello().await;
        self.welcome(nonce).await;
    }

    pub(super) async fn welcome(&mut self, nonce: Nonce) {
        self.welcome_with(nonce, Verdict::Accepted, PROTOCOL_GENERATION).await;
    }

    pub(super) async fn welcome_with(&mut self, nonce: Nonce, verdict: Verdict, generation: u32) {
        let bytes = encoded_welcome_of(nonce, verdict, generation, self.announced);
        self.raw(&bytes).await;
    }

    pub(super) async fn request(&mut self) -> Request {
        let json = self.json().await.expect("a request");
        serde_json::from_slice(&json).expect("a well-formed request")
    }

    /// The next input with its payload; `None` when the host has closed the connection.
    pub(super) async fn input(&mut self) -> Option<Frame<Input>> {
        loop {
            let mut decoder = Decoder::new(self.nonce.unwrap());
            decoder.feed(&self.unread);
            if let Some(frame) = decoder.next_frame::<Input>().expect("a sound input") {
                let mut used = Vec::new();
                frame::encode(&mut used, &frame.message, &frame.payload, self.nonce.unwrap()).unwrap();
                self.unread.drain(..used.len());
                return Some(frame);
            }
            self.fill().await?;
        }
    }

    /// Whether the host has closed the connection without another word.
    pub(super) async fn is_closed(&mut self) -> bool {
        self.unread.is_empty() && self.fill().await.is_none()
    }

    /// Bytes the host has sent without being answered within `limit`.
    pub(super) async fn waiting_bytes(&mut self, limit: Duration) -> usize {
        let _ = tokio::time::timeout(limit, async { while self.fill().await.is_some() {} }).await;
        self.unread.len()
    }

    /// Sends bytes as they are; that nobody reads them any more is no error.
    pub(super) async fn raw(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    /// Sends a reply without payload.
    pub(super) async fn reply(&mut self, reply: Reply) -> bool {
        self.frame(&reply, &[]).await
    }

    pub(super) async fn stdout(&mut self, bytes: &[u8]) -> bool {
        self.frame(&Reply::Stdout { payload: u32::try_from(bytes.len()).unwrap() }, bytes).await
    }

    pub(super) async fn stderr(&mut self, bytes: &[u8]) -> bool {
        self.frame(&Reply::Stderr { payload: u32::try_from(bytes.len()).unwrap() }, bytes).await
    }

    pub(super) async fn data(&mut self, bytes: &[u8]) -> bool {
        self.frame(&Reply::Data { payload: u32::try_from(bytes.len()).unwrap() }, bytes).await
    }

    async fn frame(&mut self, reply: &Reply, payload: &[u8]) -> bool {
        let bytes = encoded(reply, payload, self.nonce.unwrap());
        self.raw(&bytes).await
    }

    /// Does nothing until the host closes the connection.
    pub(super) async fn stay_silent(mut self) {
        while self.fill().await.is_some() {
            self.unread.clear();
        }
    }
}

pub(super) fn encoded<M: Message + serde::Serialize>(message: &M, payload: &[u8], nonce: Nonce) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(&mut bytes, message, payload, nonce).unwrap();
    bytes
}

pub(super) fn encoded_welcome(nonce: Nonce, verdict: Verdict, generation: u32) -> Vec<u8> {
    encoded_welcome_of(nonce, verdict, generation, false)
}

fn encoded_welcome_of(nonce: Nonce, verdict: Verdict, generation: u32, request: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode_plain(&mut bytes, &welcome_of(nonce, verdict, generation, request)).unwrap();
    bytes
}

fn welcome_of(nonce: Nonce, verdict: Verdict, generation: u32, request: bool) -> Welcome {
    Welcome { welcome: nonce, generation, agent: "fake \x1b[31m".to_owned(), verdict, request, proof: None }
}

/// Serves every slot of a real serial channel with the script, for as long as the guard lives.
pub(super) struct SerialMachine {
    pub(super) client: GuestClient,
    _home: tempfile::TempDir,
    tasks: tokio::task::JoinSet<()>,
}

impl SerialMachine {
    pub(super) async fn new<F, T>(script: F) -> Self
    where
        F: Fn(usize, Agent) -> T + Send + Sync + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        use crate::channel::{ChannelDevice, serial::SerialChannel};
        let home = tempfile::tempdir().unwrap();
        let spec = ChannelSpec { id: WorkspaceId::random(), run_dir: home.path().to_owned() };
        let prepared = SerialChannel.prepare(spec).await.unwrap();
        let ChannelDevice::Serial(listeners) = prepared.device else { panic!("not serial") };
        let script: Script = Arc::new(move |slot, agent| Box::pin(script(slot, agent)));
        let mut tasks = tokio::task::JoinSet::new();
        for (slot, listener) in listeners.into_iter().enumerate() {
            let listener = std::os::unix::net::UnixListener::from(listener);
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            let script = script.clone();
            tasks.spawn(async move {
                // One client at a time, as QEMU does.
                while let Ok((stream, _)) = listener.accept().await {
                    script(slot, Agent::new(Box::new(stream))).await;
                }
            });
        }
        let client = GuestClient::new(Arc::new(SerialChannel), prepared.record);
        Self { client, _home: home, tasks }
    }

    /// Ends the machine: nobody listens any more.
    pub(super) async fn stop(&mut self) {
        self.tasks.shutdown().await;
    }
}
