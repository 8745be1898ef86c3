//! The least that starting a machine from a template can take here: QEMU alone, driven by a script that blocks.
//!
//! The same program, arguments and files as agentiso's machines have, and nothing of agentiso: no confinement, no
//! companions, no records, no configuration of the guest, no second thread. What is opened before QEMU is started is
//! not counted.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use agentiso_guest::{
    PROTOCOL_GENERATION,
    frame::{Decoder, encode_plain},
    hello::{Hello, Nonce, WelcomeScanner},
    message::{Command as GuestCommand, Exit, Reply, Request},
};
use serde_json::{Value, json};

use crate::{Done, recipe::Recipe};

/// A QEMU or a guest that is silent for this long has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// What took how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// From the start of QEMU to its greeting.
    pub(crate) greeting: Duration,
    /// Loading the device state.
    pub(crate) load: Duration,
    /// Letting it run, until QEMU says that it does.
    pub(crate) run: Duration,
    /// A hello and a command to the end of the command.
    pub(crate) exec: Duration,
    /// All of it.
    pub(crate) total: Duration,
}

/// A QEMU that goes when this does.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // It has ended already, or is killed: there is nothing that could be done about an error.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a machine, runs a command in it, and ends it.
pub(crate) fn sample(recipe: &Recipe, line: &str) -> Done<Times> {
    let mut prepared = recipe.prepare()?;
    let nonce = Nonce::from_bytes(uuid::Uuid::new_v4().into_bytes());
    let opening = opening(nonce, line)?;
    let mut command = Command::new(&recipe.program);
    command.args(&prepared.words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());

    let begun = Instant::now();
    let _machine = Machine(command.spawn()?);
    prepared.passed.clear();
    let mut monitor = Monitor::greet(&connect(&prepared.socket("qmp"))?)?;
    let greeting = begun.elapsed();
    monitor.execute(json!({ "execute": "qmp_capabilities" }))?;
    let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
    monitor.execute(json!({ "execute": "migrate-set-capabilities", "arguments": events }))?;
    monitor.execute(json!({ "execute": "migrate-incoming", "arguments": { "uri": "file:/dev/fdset/2" } }))?;
    monitor.loaded()?;
    let loaded = begun.elapsed();
    monitor.execute(json!({ "execute": "cont" }))?;
    let running = begun.elapsed();
    let mut slot = connect(&prepared.socket("slot0"))?;
    slot.write_all(&opening)?;
    wait_for_exit(&mut slot, nonce)?;
    let total = begun.elapsed();
    drop(prepared.far);
    Ok(Times { greeting, load: loaded - greeting, run: running - loaded, exec: total - running, total })
}

fn connect(path: &std::path::Path) -> std::io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A hello and a command, sent as one.
fn opening(nonce: Nonce, line: &str) -> Done<Vec<u8>> {
    let argv = ["/bin/sh", "-c", line].map(str::to_owned).to_vec();
    let command = GuestCommand { argv, ..GuestCommand::default() };
    let request = Request::Exec { command, stdin: false, tty: None, timeout_ms: None };
    let mut bytes = Vec::new();
    encode_plain(
        &mut bytes,
        &Hello { hello: nonce, generation: PROTOCOL_GENERATION, request: true, proof: None },
    )?;
    encode_plain(&mut bytes, &request)?;
    Ok(bytes)
}

fn wait_for_exit(slot: &mut UnixStream, nonce: Nonce) -> Done {
    let mut scanner = WelcomeScanner::new(nonce);
    let mut received = vec![0; 4096];
    let mut decoder = Decoder::new(nonce);
    let mut welcomed = false;
    loop {
        let read = slot.read(&mut received)?;
        if read == 0 {
            return Err("the machine has closed its channel".into());
        }
        if welcomed {
            decoder.feed(&received[..read]);
        } else if let Some((_, rest)) = scanner.feed(&received[..read])? {
            welcomed = true;
            decoder.feed(&rest);
        }
        while welcomed && let Some(frame) = decoder.next_frame::<Reply>()? {
            match frame.message {
                Reply::Exited { exit: Exit::Code(0) } => return Ok(()),
                Reply::Started { .. } | Reply::Stdout { .. } => {}
                other => return Err(format!("the command came to {other:?}").into()),
            }
        }
    }
}

/// QEMU's control socket.
struct Monitor {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    /// Whether an event has said that the device state is loaded.
    loaded: bool,
}

impl Monitor {
    fn greet(stream: &UnixStream) -> Done<Self> {
        let reader = BufReader::new(stream.try_clone()?);
        let mut monitor = Self { reader, writer: stream.try_clone()?, loaded: false };
        monitor.line()?;
        Ok(monitor)
    }

    fn line(&mut self) -> Done<Value> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err("QEMU has ended".into());
        }
        let message: Value = serde_json::from_str(&line)?;
        if message["event"] == "MIGRATION" {
            match message["data"]["status"].as_str() {
                Some("completed") => self.loaded = true,
                Some("failed") => return Err("QEMU could not load the device state".into()),
                _ => {}
            }
        }
        Ok(message)
    }

    fn execute(&mut self, command: Value) -> Done {
        self.writer.write_all(command.to_string().as_bytes())?;
        loop {
            let message = self.line()?;
            if let Some(error) = message.get("error") {
                return Err(format!("QEMU answered {error}").into());
            }
            if message.get("return").is_some() {
                return Ok(());
            }
        }
    }

    fn loaded(&mut self) -> Done {
        while !self.loaded {
            self.line()?;
        }
        Ok(())
    }
}
