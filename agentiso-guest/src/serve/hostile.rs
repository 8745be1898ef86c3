//! A test build of the agent that misbehaves on command (feature `hostile`). Never part of a release.
//!
//! It is the agent, and boots and serves as one, until it is told to run the program `agentiso-hostile MODE`. From then
//! on every connection meets that mode.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use agentiso_guest::PROTOCOL_GENERATION;
use agentiso_guest::frame::{encode, encode_plain};
use agentiso_guest::hello::{Hello, Nonce, Verdict, Welcome};
use agentiso_guest::limits::MAX_PAYLOAD_SIZE;
use agentiso_guest::message::{Command, Exit, Reply, Request};

use super::connection::{Connection, Lost};

/// The program that is none.
const PROGRAM: &str = "agentiso-hostile";

/// What is done to a connection.
type Misbehaviour = fn(&mut Connection, &Hello) -> Lost;

/// What can be done, and how it is asked for.
const MODES: [(&str, Misbehaviour); 13] = [
    ("random", random),
    ("huge-length", huge_length),
    ("out-of-order", out_of_order),
    ("replay", replay),
    ("deaf", deaf),
    ("slow", slow),
    ("flood", flood),
    ("endless", endless),
    ("lies", lies),
    ("wrong-seal", wrong_seal),
    ("hang-up", hang_up),
    ("reboot", reboot),
    ("exhaust", exhaust),
];

/// Which one, counted from 1; 0 while the agent behaves.
static MODE: AtomicUsize = AtomicUsize::new(0);

/// What was said on the first connection that met [`replay`].
static RECORDED: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Takes the command that ends the good behaviour. `None`: another command.
pub(super) fn command(command: &Command) -> Option<Reply> {
    let [program, mode] = command.argv.as_slice() else { return None };
    if program != PROGRAM {
        return None;
    }
    let found = MODES.iter().position(|(name, _)| name == mode);
    MODE.store(found.map_or(0, |at| at + 1), Ordering::Release);
    Some(Reply::Exited { exit: Exit::Code(if found.is_some() { 0 } else { 2 }) })
}

/// Misbehaves on a connection, if that is what was asked for. It is lost then.
pub(super) fn take_over(connection: &mut Connection, hello: &Hello) -> Option<Lost> {
    let mode = MODE.load(Ordering::Acquire).checked_sub(1)?;
    MODES.get(mode).map(|(_, misbehave)| misbehave(connection, hello))
}

fn welcome(hello: &Hello) -> Vec<u8> {
    let mut bytes = Vec::new();
    let welcome = Welcome {
        welcome: hello.hello,
        generation: PROTOCOL_GENERATION,
        agent: "hostile".to_owned(),
        verdict: Verdict::Accepted,
        request: hello.request,
        proof: None,
    };
    let encoded = encode_plain(&mut bytes, &welcome);
    debug_assert!(encoded.is_ok());
    bytes
}

fn reply(reply: &Reply, payload: &[u8], nonce: Nonce) -> Vec<u8> {
    let mut bytes = Vec::new();
    let encoded = encode(&mut bytes, reply, payload, nonce);
    debug_assert!(encoded.is_ok());
    bytes
}

fn stdout(bytes: &[u8], nonce: Nonce) -> Vec<u8> {
    reply(&Reply::Stdout { payload: u32::try_from(bytes.len()).unwrap_or(0) }, bytes, nonce)
}

/// A generator of noise; nothing depends on its quality.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}

/// Noise, with whole frames of noise in between.
fn random(connection: &mut Connection, hello: &Hello) -> Lost {
    let mut noise = Noise(u64::from_le_bytes([7; 8]) ^ u64::from(std::process::id()));
    let mut bytes = if noise.next().is_multiple_of(2) { welcome(hello) } else { Vec::new() };
    loop {
        let count = usize::from(noise.next().to_le_bytes()[1]) + 1;
        let content = noise.bytes(count);
        if noise.next().is_multiple_of(2) {
            bytes.extend(u32::try_from(count).unwrap_or(1).to_be_bytes());
        }
        bytes.extend(content);
        if !connection.say(&bytes) {
            return Lost::Gone;
        }
        bytes.clear();
    }
}

/// Lengths that nobody should believe.
fn huge_length(connection: &mut Connection, hello: &Hello) -> Lost {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    const LENGTHS: [u32; 6] = [u32::MAX, 0x7fff_ffff, 0x8000_0000, 0, 32 * 1024 * 1024, 32 * 1024 * 1024 + 1];
    let length = LENGTHS[TURN.fetch_add(1, Ordering::AcqRel) % LENGTHS.len()];
    let mut bytes = welcome(hello);
    bytes.extend(length.to_be_bytes());
    bytes.push(b'{');
    connection.say(&bytes);
    deaf(connection, hello)
}

/// Good replies in an order that makes no sense.
fn out_of_order(connection: &mut Connection, hello: &Hello) -> Lost {
    let mut bytes = welcome(hello);
    for _ in 0..3 {
        bytes.extend(stdout(b"before the start", hello.hello));
        bytes.extend(reply(&Reply::Entries { entries: Vec::new() }, &[], hello.hello));
        bytes.extend(reply(&Reply::Exited { exit: Exit::Code(0) }, &[], hello.hello));
        bytes.extend(reply(&Reply::Started { pid: 1 }, &[], hello.hello));
        bytes.extend(reply(&Reply::Done, &[], hello.hello));
    }
    connection.say(&bytes);
    deaf(connection, hello)
}

/// What was good on the first connection, again on every later one.
fn replay(connection: &mut Connection, hello: &Hello) -> Lost {
    let recorded = {
        let mut recorded = RECORDED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if recorded.is_empty() {
            *recorded = welcome(hello);
            recorded.extend(reply(&Reply::Started { pid: 1 }, &[], hello.hello));
            recorded.extend(stdout(b"replayed", hello.hello));
            recorded.extend(reply(&Reply::Exited { exit: Exit::Code(0) }, &[], hello.hello));
            recorded.extend(reply(&Reply::Done, &[], hello.hello));
        }
        recorded.clone()
    };
    connection.say(&recorded);
    deaf(connection, hello)
}

/// Neither reads nor writes, until the host has gone.
fn deaf(connection: &mut Connection, _: &Hello) -> Lost {
    const LOOK_AGAIN: Duration = Duration::from_millis(50);
    while !connection.host_has_gone() {
        std::thread::sleep(LOOK_AGAIN);
    }
    Lost::Gone
}

/// One byte a second.
fn slow(connection: &mut Connection, hello: &Hello) -> Lost {
    for byte in welcome(hello) {
        if !connection.say(&[byte]) || connection.host_has_gone() {
            return Lost::Gone;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    deaf(connection, hello)
}

/// Sound messages that are none of what is due, as fast as they go.
fn flood(connection: &mut Connection, hello: &Hello) -> Lost {
    let mut bytes = welcome(hello);
    loop {
        for _ in 0..1000 {
            bytes.extend(reply(&Reply::Hashing { bytes: 1 << 40 }, &[], hello.hello));
        }
        if !connection.say(&bytes) {
            return Lost::Gone;
        }
        bytes.clear();
    }
}

/// Output without end.
fn endless(connection: &mut Connection, hello: &Hello) -> Lost {
    let most = vec![b'x'; MAX_PAYLOAD_SIZE as usize];
    let mut bytes = welcome(hello);
    bytes.extend(reply(&Reply::Started { pid: 1 }, &[], hello.hello));
    loop {
        bytes.extend(stdout(&most, hello.hello));
        if !connection.say(&bytes) {
            return Lost::Gone;
        }
        bytes.clear();
    }
}

/// Well-formed answers that are false.
fn lies(connection: &mut Connection, hello: &Hello) -> Lost {
    if !connection.say(&welcome(hello)) {
        return Lost::Gone;
    }
    let request = match connection.receive_request() {
        Ok(request) => request,
        Err(lost) => return lost,
    };
    let mut bytes = Vec::new();
    match request {
        Request::Exec { .. } => {
            bytes.extend(stdout(b"all is well", hello.hello));
            bytes.extend(reply(&Reply::Exited { exit: Exit::Code(0) }, &[], hello.hello));
        }
        Request::FileRead { .. } => {
            bytes.extend(reply(&Reply::Data { payload: 4 }, b"lies", hello.hello));
            bytes.extend(reply(&Reply::Done, &[], hello.hello));
        }
        Request::Configure(_) => {
            let told = Reply::Configured { realtime_ns: u64::MAX, monotonic_ns: 0, elapsed_ns: u64::MAX };
            bytes.extend(reply(&told, &[], hello.hello));
        }
        // Freezing, flushing, shutting down: done, it says.
        _ => bytes.extend(reply(&Reply::Done, &[], hello.hello)),
    }
    connection.say(&bytes);
    deaf(connection, hello)
}

/// A payload that is sealed for another connection.
fn wrong_seal(connection: &mut Connection, hello: &Hello) -> Lost {
    let mut bytes = welcome(hello);
    bytes.extend(reply(&Reply::Started { pid: 1 }, &[], hello.hello));
    bytes.extend(stdout(b"of another connection", Nonce::from_bytes([0; 16])));
    bytes.extend(reply(&Reply::Exited { exit: Exit::Code(0) }, &[], hello.hello));
    connection.say(&bytes);
    deaf(connection, hello)
}

/// Gone at once.
fn hang_up(_: &mut Connection, _: &Hello) -> Lost {
    Lost::Gone
}

/// The machine starts again, or ends, without another word.
fn reboot(connection: &mut Connection, hello: &Hello) -> Lost {
    if std::process::id() == 1 {
        let _ = rustix::system::reboot(rustix::system::RebootCommand::Restart);
        return deaf(connection, hello);
    }
    std::process::abort()
}

/// Takes all memory that there is. As process 1, which the kernel spares, it takes the kernel down.
fn exhaust(connection: &mut Connection, hello: &Hello) -> Lost {
    const STEP_BYTES: usize = 4 * 1024 * 1024;
    /// As a process among others it stops here: the host's memory is not what is to be filled.
    const MOST_BYTES: usize = 256 * 1024 * 1024;
    let mut hoard: Vec<Vec<u8>> = Vec::new();
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end && (std::process::id() == 1 || hoard.len() * STEP_BYTES < MOST_BYTES) {
        hoard.push(vec![1; STEP_BYTES]);
    }
    deaf(connection, hello)
}
