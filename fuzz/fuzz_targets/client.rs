//! The host's typed client against an agent that says anything, in answer to every operation there is.
//!
//! Input: a byte that chooses the operation, one of flags, then what the agent says once it has welcomed the host. With
//! the first flag that is a list of messages, each a length of two bytes (little-endian) and so many bytes of JSON, which
//! are framed as they should be; the payload that one announces follows it and is sealed. Without it, the bare bytes.
#![no_main]

use std::{sync::Arc, time::Duration};

use agentiso_core::{
    channel::{
        ChannelCapabilities, ChannelError, ChannelRecord, ChannelSpec, GuestChannel, GuestStream, Lane,
        PreparedChannel,
        client::{
            CollectOptions, Command, Compression, Configure, ExecSpec, FileRange, GuestClient, GuestError, RawPath,
            WriteOptions,
        },
    },
    types::WorkspaceId,
};
use agentiso_guest::{
    PROTOCOL_GENERATION,
    frame::{Message, encode_plain},
    hello::{Hello, Verdict, Welcome},
    message::Reply,
};
use async_trait::async_trait;
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

/// The agent's words are messages, well framed and sealed.
const FRAMED: u8 = 1;
/// The agent does not hang up when it has said everything.
const STAYS: u8 = 2;
/// It says everything in pieces of this many bytes: bits 2 to 7.
const PIECES: u8 = 0xfc;

/// Longest time any operation here may take, waits included: the clock is virtual.
const LIMIT: Duration = Duration::from_secs(600);
/// What user processes are frozen for.
const CAPTURE: uuid::Uuid = uuid::Uuid::nil();

fuzz_target!(|data: &[u8]| {
    let [operation, flags, words @ ..] = data else { return };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let (operation, flags, words) = (*operation, *flags, words.to_vec());
    runtime.block_on(async move {
        let channel = Arc::new(Hostile { flags, words });
        let record = ChannelRecord { id: WorkspaceId::random(), details: serde_json::Value::Null };
        let client = GuestClient::new(channel, record);
        let done = tokio::time::timeout(LIMIT, run(&client, operation)).await;
        let done = done.expect("an agent holds an operation up for ever");
        if let Err(error) = done {
            let text = format!("{error}");
            assert!(text.len() < 128 * 1024, "an error of {} bytes", text.len());
            assert!(!text.chars().any(|c| c.is_control() && c != '\n' && c != '\t'), "control characters: {text:?}");
        }
    });
});

async fn run(client: &GuestClient, operation: u8) -> Result<(), GuestError> {
    let path = || RawPath::new(&b"/x"[..]);
    let timeout = Some(Duration::from_secs(10));
    match operation % 24 {
        0 => client.ping().await,
        1 => client.info().await.map(drop),
        2 => {
            let options = CollectOptions { max_output_bytes: 1000, ..CollectOptions::default() };
            let output = client.exec_collect(ExecSpec::shell("true").timeout(Duration::from_secs(10)), options).await?;
            // The text that says that it was cut comes on top.
            assert!(output.stdout.len() <= 1100 && output.stderr.len() <= 1100, "more output than was asked for");
            Ok(())
        }
        3 => {
            let mut stream = client.exec(ExecSpec::shell("true").stdin().timeout(Duration::from_secs(10))).await?;
            let _ = stream.input().write_all(b"input").await;
            while stream.next().await?.is_some() {}
            assert!(stream.next().await?.is_none(), "an event after the last");
            Ok(())
        }
        4 => {
            let content = client.read_file("/x", 1, 1000).await?;
            assert!(content.len() <= 1000, "more than was asked for");
            Ok(())
        }
        5 => client.list_files("/").await.map(drop),
        6 => client.stat_file("/x").await.map(drop),
        7 => client.edit_file("/x", "a", "b").await,
        8 => {
            let mut entries = client.walk(path()).await?;
            let mut last: Option<RawPath> = None;
            while let Some(entry) = entries.next().await? {
                assert!(entry.path.is_relative(), "a path that leads away");
                assert!(last.as_ref().is_none_or(|last| *last < entry.path), "out of order");
                last = Some(entry.path);
            }
            Ok(())
        }
        9 => {
            let files = vec![RawPath::new(&b"a"[..]), RawPath::new(&b"b"[..])];
            let hashes = client.hash_files(path(), files).await?;
            assert_eq!(hashes.len(), 2);
            Ok(())
        }
        10 => {
            let mut stream = client.read_archive("/x", false).await?;
            while stream.chunk().await?.is_some() {}
            Ok(())
        }
        11 => {
            let mut sink = client.write_archive("/x", Compression::None, false).await?;
            sink.write(&[1; 100_000]).await?;
            sink.finish().await
        }
        12 => {
            let mut content = &[1; 1000][..];
            client.write_file("/x", WriteOptions::default(), &mut content).await.map(drop)
        }
        13 => client.env_set([("A".to_owned(), Some("b".to_owned()))].into()).await,
        14 => client.env_clear().await,
        15 => {
            let configure = Configure { set_clock: true, clone: true, ..Configure::default() };
            client.configure(configure).await.map(drop)
        }
        16 => client.freeze(CAPTURE, Duration::from_secs(2)).await,
        17 => client.thaw(CAPTURE).await,
        18 => client.sync().await,
        19 => client.shutdown(Duration::from_secs(1)).await,
        20 => {
            let command = Command { argv: vec!["true".to_owned()], ..Command::default() };
            client.job_start(command).await.map(drop)
        }
        21 => client.job_list().await.map(drop),
        22 => client.job_wait(7, timeout).await.map(drop),
        _ => {
            let mut stream = client.open_file("/x", FileRange::default()).await?;
            while stream.chunk().await?.is_some() {}
            Ok(())
        }
    }
}

struct Hostile {
    flags: u8,
    words: Vec<u8>,
}

#[async_trait]
impl GuestChannel for Hostile {
    fn capabilities(&self) -> ChannelCapabilities {
        ChannelCapabilities { name: "hostile".to_owned(), concurrent: 1, open: Vec::new() }
    }

    async fn prepare(&self, _: ChannelSpec) -> Result<PreparedChannel, ChannelError> {
        unreachable!("nobody prepares it")
    }

    async fn connect(&self, _: &ChannelRecord, _: Lane, _: Duration) -> Result<GuestStream, ChannelError> {
        let (host, guest) = duplex(64 * 1024);
        tokio::spawn(serve(guest, self.flags, self.words.clone()));
        Ok(GuestStream::private(host))
    }

    async fn release(&self, _: &ChannelRecord) -> Result<(), ChannelError> {
        Ok(())
    }

    async fn leftovers(&self) -> Result<Vec<ChannelRecord>, ChannelError> {
        Ok(Vec::new())
    }
}

async fn serve(stream: tokio::io::DuplexStream, flags: u8, words: Vec<u8>) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let Ok(length) = reader.read_u32().await else { return };
    let mut body = vec![0; length.min(1024) as usize];
    if reader.read_exact(&mut body).await.is_err() {
        return;
    }
    let hello: Hello = serde_json::from_slice(&body).expect("the host says hello");
    let mut said = Vec::new();
    let welcome = Welcome {
        welcome: hello.hello,
        generation: PROTOCOL_GENERATION,
        agent: "fuzz".to_owned(),
        verdict: Verdict::Accepted,
        request: hello.request,
        proof: None,
    };
    encode_plain(&mut said, &welcome).expect("a welcome can be sent");
    if flags & FRAMED != 0 {
        frame(&mut said, &words, hello.hello.as_bytes());
    } else {
        said.extend_from_slice(&words);
    }
    let piece = match usize::from(flags & PIECES) {
        0 => said.len(),
        some => some,
    };
    // The host's words are read and thrown away, or its writes would wait.
    let discard = tokio::spawn(async move { tokio::io::copy(&mut reader, &mut tokio::io::sink()).await });
    for piece in said.chunks(piece) {
        if writer.write_all(piece).await.is_err() {
            return;
        }
        tokio::task::yield_now().await;
    }
    if flags & STAYS != 0 {
        let _ = discard.await;
    }
}

fn frame(out: &mut Vec<u8>, mut words: &[u8], seal: &[u8]) {
    while let Some((length, rest)) = words.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (body, rest) = rest.split_at(length);
        out.extend_from_slice(&u32::try_from(length).expect("two bytes").to_be_bytes());
        out.extend_from_slice(body);
        let payload = Reply::from_json(body).map_or(0, |reply| reply.payload_len()) as usize;
        let (payload, rest) = rest.split_at(payload.min(rest.len()));
        if !payload.is_empty() {
            out.extend_from_slice(payload);
            out.extend_from_slice(seal);
        }
        words = rest;
    }
}
