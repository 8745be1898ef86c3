//! Background jobs.

use std::{collections::BTreeMap, time::Duration};

use agentiso_guest::{
    limits::JOB_OUTPUT_BYTES,
    message::{Command, ErrorCode, Exit, Job, Reply},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, watch},
};

use super::{
    Answer, Refusal,
    commands::{Printed, Program, Signals, Stream},
    exec::send_output,
    wire::{Disconnected, Wire},
};
use crate::testkit::{FakeGuest, guest::GuestState};

/// Most characters of a command that a job shows.
const SHOWN_COMMAND: usize = 64;

/// The jobs of a guest, by number.
#[derive(Default)]
pub(in crate::testkit) struct JobTable {
    jobs: BTreeMap<u64, Entry>,
}

struct Entry {
    job: Job,
    out: Kept,
    err: Kept,
    signals: Signals,
    /// Changes with each output and with the end.
    news: watch::Sender<()>,
}

/// The newest bytes of a stream.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    total: u64,
}

impl Kept {
    fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        let excess = self.bytes.len().saturating_sub(JOB_OUTPUT_BYTES);
        self.bytes.drain(..excess);
    }

    /// What came after the first `seen` bytes, as far as it is kept.
    fn since(&self, seen: u64) -> &[u8] {
        let new = usize::try_from(self.total - seen).unwrap_or(usize::MAX).min(self.bytes.len());
        &self.bytes[self.bytes.len() - new..]
    }
}

impl JobTable {
    pub(super) fn list(&self) -> Vec<Job> {
        self.jobs.values().map(|entry| entry.job.clone()).collect()
    }

    fn entry(&mut self, job: u64) -> Result<&mut Entry, Refusal> {
        self.jobs
            .get_mut(&job)
            .ok_or_else(|| Refusal::new(ErrorCode::NotFound, format!("find job {job}: there is none")))
    }
}

impl GuestState {
    pub(super) fn new_pid(&mut self) -> u32 {
        self.next_pid += 1;
        self.next_pid
    }
}

pub(super) fn start(guest: &FakeGuest, command: Command) -> Answer {
    let (_, no_stdin) = mpsc::channel(1);
    let (printer, printed) = mpsc::channel(4);
    let shown: String = command.argv.join(" ").chars().take(SHOWN_COMMAND).collect();
    let program = Program::find(guest, command, no_stdin, printer)?;
    let signals = Signals::default();
    let job = {
        let mut state = guest.state();
        let pid = state.new_pid();
        let id = state.jobs.jobs.keys().next_back().copied().unwrap_or(0) + 1;
        let job = Job { id, pid, command: shown, exit: None, stdout_bytes: 0, stderr_bytes: 0 };
        let entry = Entry {
            job: job.clone(),
            out: Kept::default(),
            err: Kept::default(),
            signals: signals.clone(),
            news: watch::Sender::new(()),
        };
        state.jobs.jobs.insert(id, entry);
        job
    };
    let id = job.id;
    let guest = guest.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = supervise(&guest, id, program, printed, signals) => {}
            () = guest.off() => {}
        }
    });
    Ok(Reply::Job { job })
}

async fn supervise(
    guest: &FakeGuest,
    id: u64,
    program: Program,
    mut printed: mpsc::Receiver<Printed>,
    signals: Signals,
) {
    let keep = |(stream, bytes): Printed| {
        change(guest, id, |entry| match stream {
            Stream::Out => entry.out.push(&bytes),
            Stream::Err => entry.err.push(&bytes),
        });
    };
    let mut running = Box::pin(program.run());
    let exit = loop {
        tokio::select! {
            Some(output) = printed.recv() => keep(output),
            status = &mut running => break Exit::Code(status),
            signal = signals.received() => break Exit::Signal(signal),
        }
    };
    drop(running);
    while let Ok(output) = printed.try_recv() {
        keep(output);
    }
    change(guest, id, |entry| entry.job.exit = Some(exit));
}

fn change(guest: &FakeGuest, id: u64, act: impl FnOnce(&mut Entry)) {
    if let Ok(entry) = guest.state().jobs.entry(id) {
        act(entry);
        entry.job.stdout_bytes = entry.out.total;
        entry.job.stderr_bytes = entry.err.total;
        entry.news.send_replace(());
    }
}

pub(super) fn signal(guest: &FakeGuest, job: u64, signal: u8) -> Answer {
    guest.state().jobs.entry(job)?.signals.send(signal);
    Ok(Reply::Done)
}

/// How far a client has seen a job.
#[derive(Default)]
struct Seen {
    out: u64,
    err: u64,
}

/// What a client has not seen yet, the job as it is, and word of the next change.
fn look(
    guest: &FakeGuest,
    id: u64,
    seen: &mut Seen,
) -> Result<(Vec<Printed>, Job, watch::Receiver<()>), Refusal> {
    let mut state = guest.state();
    let entry = state.jobs.entry(id)?;
    let news = entry.news.subscribe();
    let output = vec![
        (Stream::Out, entry.out.since(seen.out).to_vec()),
        (Stream::Err, entry.err.since(seen.err).to_vec()),
    ];
    *seen = Seen { out: entry.out.total, err: entry.err.total };
    Ok((output, entry.job.clone(), news))
}

pub(super) async fn poll<S: AsyncRead + AsyncWrite + Unpin + Send>(
    wire: &mut Wire<S>,
    guest: &FakeGuest,
    id: u64,
) -> Result<Answer, Disconnected> {
    let (output, job, _) = match look(guest, id, &mut Seen::default()) {
        Ok(seen) => seen,
        Err(refusal) => return Ok(Err(refusal)),
    };
    for printed in output {
        send_output(wire, printed).await?;
    }
    Ok(Ok(Reply::Job { job }))
}

pub(super) async fn wait<S: AsyncRead + AsyncWrite + Unpin + Send>(
    wire: &mut Wire<S>,
    guest: &FakeGuest,
    id: u64,
    timeout_ms: Option<u64>,
) -> Result<Answer, Disconnected> {
    let ended = async {
        while let Ok((_, Job { exit: None, .. }, mut news)) = look(guest, id, &mut Seen::default()) {
            // Forgotten meanwhile: the next look says so.
            let _ = news.changed().await;
        }
    };
    let limit = Duration::from_millis(timeout_ms.unwrap_or(u64::from(u32::MAX)));
    tokio::select! {
        // Over or not, the client is told how the job stands.
        _ = tokio::time::timeout(limit, ended) => {}
        () = wire.hung_up() => return Err(Disconnected),
    }
    poll(wire, guest, id).await
}

pub(super) async fn attach<S: AsyncRead + AsyncWrite + Unpin + Send>(
    wire: &mut Wire<S>,
    guest: &FakeGuest,
    id: u64,
) -> Result<Answer, Disconnected> {
    let mut seen = Seen::default();
    loop {
        let (output, job, mut news) = match look(guest, id, &mut seen) {
            Ok(seen) => seen,
            Err(refusal) => return Ok(Err(refusal)),
        };
        for printed in output {
            send_output(wire, printed).await?;
        }
        if let Some(exit) = job.exit {
            return Ok(Ok(Reply::Exited { exit }));
        }
        tokio::select! {
            // Forgotten meanwhile: the next look says so.
            _ = news.changed() => {}
            () = wire.hung_up() => return Err(Disconnected),
        }
    }
}
