//! Commands in the foreground, streamed.

use std::{collections::VecDeque, time::Duration};

use agentiso_guest::message::{Command, Exit, Input, Reply};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

use super::{
    Answer,
    commands::{Printed, Program, Stream},
    wire::{Disconnected, Wire},
};
use crate::testkit::FakeGuest;

/// Chunks of output that wait for the client before the command does.
const OUTPUT_CHUNKS: usize = 4;

/// Chunks of input that wait for the command before the client does.
const INPUT_CHUNKS: usize = 16;

/// Runs a command and streams it. A client that hangs up ends it.
pub(super) async fn run<S: AsyncRead + AsyncWrite + Unpin + Send>(
    wire: &mut Wire<S>,
    guest: &FakeGuest,
    command: Command,
    has_stdin: bool,
    timeout_ms: Option<u64>,
) -> Result<Answer, Disconnected> {
    let (stdin, stdin_reader) = mpsc::channel(INPUT_CHUNKS);
    let (printer, mut printed) = mpsc::channel(OUTPUT_CHUNKS);
    let program = match Program::find(guest, command, stdin_reader, printer) {
        Ok(program) => program,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let mut stdin = has_stdin.then_some(stdin);
    let mut waiting = VecDeque::new();
    let mut stdin_ended = false;
    let pid = guest.state().new_pid();
    wire.send(Reply::Started { pid }, &[]).await?;

    let mut running = Box::pin(program.run());
    let timeout = async {
        match timeout_ms {
            Some(limit) => tokio::time::sleep(Duration::from_millis(limit)).await,
            None => std::future::pending().await,
        }
    };
    let mut timeout = Box::pin(timeout);
    let exit = loop {
        if stdin_ended && waiting.is_empty() {
            stdin = None;
        }
        tokio::select! {
            biased;
            status = &mut running => break Exit::Code(status),
            () = &mut timeout => break Exit::TimedOut,
            Some(output) = printed.recv() => send_output(wire, output).await?,
            permit = reserve(stdin.clone()), if !waiting.is_empty() => match permit {
                Some(permit) => { permit.send(waiting.pop_front().unwrap_or_default()); }
                // The command closed its standard input: what comes for it is thrown away.
                None => { waiting.clear(); stdin = None; }
            },
            frame = wire.input(), if waiting.len() < INPUT_CHUNKS => {
                let frame = frame?;
                match frame.message {
                    Input::Stdin { .. } if stdin.is_some() && !stdin_ended => waiting.push_back(frame.payload),
                    Input::StdinEnd => stdin_ended = true,
                    Input::Signal { signal } => break Exit::Signal(signal),
                    Input::Stdin { .. } | Input::Resize { .. } | Input::Data { .. } | Input::End => {}
                }
            },
        }
    };
    drop(running);
    while let Ok(output) = printed.try_recv() {
        send_output(wire, output).await?;
    }
    Ok(Ok(Reply::Exited { exit }))
}

/// Room for one chunk of input; `None` if nobody reads it.
async fn reserve(stdin: Option<mpsc::Sender<Vec<u8>>>) -> Option<mpsc::OwnedPermit<Vec<u8>>> {
    stdin?.reserve_owned().await.ok()
}

pub(super) async fn send_output<S: AsyncRead + AsyncWrite + Unpin + Send>(
    wire: &mut Wire<S>,
    (stream, bytes): Printed,
) -> Result<(), Disconnected> {
    // No command prints more at once than a payload may hold, except a file's whole content.
    for chunk in bytes.chunks(256 * 1024) {
        let payload = u32::try_from(chunk.len()).map_err(|_| Disconnected)?;
        let reply = match stream {
            Stream::Out => Reply::Stdout { payload },
            Stream::Err => Reply::Stderr { payload },
        };
        wire.send(reply, chunk).await?;
    }
    Ok(())
}
