//! A small blocking client, and an agent of one's own to speak to.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command as Process, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agentiso_guest::frame::{Decoder, Frame, Message, encode, encode_plain};
use agentiso_guest::hello::{Hello, NONCE_BYTES, Nonce, Verdict, Welcome, WelcomeScanner};
use agentiso_guest::message::{Command, ErrorCode, Exit, Input, Reply, Request};
use tempfile::TempDir;

/// How long anything may take in a test.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A running agent with a folder of its own. Ended when dropped.
pub(crate) struct Agent {
    process: Child,
    folder: TempDir,
}

impl Agent {
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts the agent with extra variables in its own environment.
    pub(crate) fn start_with(environment: &[(&str, &str)]) -> Self {
        Self::start_in(TempDir::new().unwrap(), environment, &[])
    }

    /// Starts an agent that serves whoever knows the key in the file `key`.
    pub(crate) fn start_with_key(key: &[u8]) -> Self {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("key");
        std::fs::write(&file, key).unwrap();
        Self::start_in(folder, &[], &["--key", file.to_str().unwrap()])
    }

    fn start_in(folder: TempDir, environment: &[(&str, &str)], more: &[&str]) -> Self {
        let process = Process::new(env!("CARGO_BIN_EXE_agentiso-guest"))
            .arg("--service")
            .arg("--unix")
            .arg(folder.path().join("socket"))
            .args(more)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let agent = Self { process, folder };
        wait_for("the agent's socket", || UnixStream::connect(agent.socket()).is_ok());
        agent
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    /// A path in the agent's folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn text_path(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn connect(&self) -> Connection {
        let (connection, welcome) = Connection::greet(UnixStream::connect(self.socket()).unwrap());
        assert_eq!(welcome.verdict, Verdict::Accepted);
        connection
    }

    /// One operation without input on a connection of its own.
    pub(crate) fn ask(&self, request: &Request) -> Answer {
        let mut connection = self.connect();
        connection.request(request);
        connection.answer()
    }

    pub(crate) fn shell(&self, line: &str) -> Answer {
        self.ask(&exec(&["/bin/sh", "-c", line]))
    }

    /// Resident memory of the agent in KiB.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub(crate) fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }

    /// Sends SIGTERM and waits for the end; returns whether it was a success.
    pub(crate) fn end(&mut self) -> bool {
        if let Ok(Some(status)) = self.process.try_wait() {
            return status.success();
        }
        let id = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        let begin = Instant::now();
        while begin.elapsed() < LIMIT {
            if let Ok(Some(status)) = self.process.try_wait() {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        false
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits for a condition, with a deadline.
pub(crate) fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < LIMIT, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn fresh_nonce() -> Nonce {
    static COUNTER: AtomicU64 = AtomicU64::new(1);
    let mut bytes = [0xa5; NONCE_BYTES];
    bytes[..8].copy_from_slice(&COUNTER.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    Nonce::from_bytes(bytes)
}

/// Everything that one operation was answered.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) data: Vec<u8>,
    pub(crate) entries: Vec<agentiso_guest::message::Entry>,
    pub(crate) terminal: Option<Reply>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn exit(&self) -> Exit {
        match &self.terminal {
            Some(Reply::Exited { exit }) => *exit,
            other => panic!("not an exit: {other:?}"),
        }
    }

    pub(crate) fn error(&self) -> (ErrorCode, &str) {
        match &self.terminal {
            Some(Reply::Error { code, message }) => (*code, message),
            other => panic!("not an error: {other:?}"),
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.terminal == Some(Reply::Done)
    }
}

/// A connection to the agent.
pub(crate) struct Connection {
    pub(crate) socket: UnixStream,
    pub(crate) nonce: Nonce,
    decoder: Decoder,
}

impl Connection {
    /// Says hello on a socket that may have been used before.
    pub(crate) fn greet(mut socket: UnixStream) -> (Self, Welcome) {
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let nonce = fresh_nonce();
        socket.write_all(&hello_bytes(nonce, agentiso_guest::PROTOCOL_GENERATION)).unwrap();
        let mut scanner = WelcomeScanner::new(nonce);
        let mut buffer = [0; 4096];
        loop {
            let count = socket.read(&mut buffer).unwrap();
            assert!(count > 0, "closed before the welcome");
            if let Some((welcome, rest)) = scanner.feed(&buffer[..count]).unwrap() {
                let mut decoder = Decoder::new(nonce);
                decoder.feed(&rest);
                return (Self { socket, nonce, decoder }, welcome);
            }
        }
    }

    /// A second handle on the same connection, to write while another reads.
    pub(crate) fn writer(&self) -> Self {
        let socket = self.socket.try_clone().unwrap();
        Self { socket, nonce: self.nonce, decoder: Decoder::new(self.nonce) }
    }

    pub(crate) fn request(&mut self, request: &Request) {
        let mut bytes = Vec::new();
        encode(&mut bytes, request, &[], self.nonce).unwrap();
        self.socket.write_all(&bytes).unwrap();
    }

    pub(crate) fn input(&mut self, input: &Input, payload: &[u8]) {
        let mut bytes = Vec::new();
        encode(&mut bytes, input, payload, self.nonce).unwrap();
        self.socket.write_all(&bytes).unwrap();
    }

    pub(crate) fn stdin(&mut self, bytes: &[u8]) {
        self.input(&Input::Stdin { payload: u32::try_from(bytes.len()).unwrap() }, bytes);
    }

    /// Sends a whole file or archive.
    pub(crate) fn data(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(1024 * 1024) {
            self.input(&Input::Data { payload: u32::try_from(chunk.len()).unwrap() }, chunk);
        }
        self.input(&Input::End, &[]);
    }

    /// The next frame, or `None` once the agent has closed the connection.
    pub(crate) fn next<M: Message>(&mut self) -> Option<Frame<M>> {
        let mut buffer = vec![0; 256 * 1024];
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            match self.socket.read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => self.decoder.feed(&buffer[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("reading: {error}"),
            }
        }
    }

    /// Frames up to the terminal one, given to `take`.
    pub(crate) fn stream(&mut self, mut take: impl FnMut(&Frame<Reply>)) -> Reply {
        loop {
            let frame: Frame<Reply> = self.next().expect("closed before the terminal reply");
            take(&frame);
            if frame.message.is_terminal() {
                return frame.message;
            }
        }
    }

    pub(crate) fn answer(&mut self) -> Answer {
        let mut answer = Answer::default();
        let terminal = self.stream(|frame| match &frame.message {
            Reply::Stdout { .. } => answer.stdout.extend_from_slice(&frame.payload),
            Reply::Stderr { .. } => answer.stderr.extend_from_slice(&frame.payload),
            Reply::Data { .. } => answer.data.extend_from_slice(&frame.payload),
            Reply::Entries { entries } => answer.entries.extend_from_slice(entries),
            _ => {}
        });
        answer.terminal = Some(terminal);
        answer
    }

    /// Reads output until it contains `text`.
    pub(crate) fn read_until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            let frame: Frame<Reply> = self.next().expect("closed while output was expected");
            assert!(!frame.message.is_terminal(), "{:?} before {text:?}, after {seen:?}", frame.message);
            seen.push_str(&String::from_utf8_lossy(&frame.payload));
        }
        seen
    }
}

pub(crate) fn hello_bytes(nonce: Nonce, generation: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_plain(&mut bytes, &Hello { hello: nonce, generation, request: false, proof: None }).unwrap();
    bytes
}

pub(crate) fn command(argv: &[&str]) -> Command {
    Command { argv: argv.iter().map(|argument| (*argument).to_owned()).collect(), ..Command::default() }
}

pub(crate) fn exec(argv: &[&str]) -> Request {
    Request::Exec { command: command(argv), stdin: false, tty: None, timeout_ms: None }
}
