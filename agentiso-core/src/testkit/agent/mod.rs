//! The agent of a fake guest: serves the wire protocol on a byte stream, with files in a map and built-in commands.

mod commands;
mod exec;
mod files;
mod jobs;
mod walk;
mod wire;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use agentiso_guest::{
    limits::{MAX_ENV_VAR_BYTES, MAX_ENV_VARS},
    message::{Configuration, ErrorCode, GuestInfo, Reply, Request},
};
use tokio::io::{AsyncRead, AsyncWrite};

use super::FakeGuest;
pub(super) use jobs::JobTable;
use wire::{Disconnected, Wire};

/// Serves one connection as the agent of that guest does, until the operation is over, the connection lost, or the
/// guest's power cut.
///
/// Archives are kept as they came, in one file, and given back the same: the fake agent looks into no tar stream.
pub async fn serve_agent<S: AsyncRead + AsyncWrite + Unpin + Send>(stream: S, guest: FakeGuest) {
    guest.state().connections += 1;
    tokio::select! {
        _ = serve(stream, &guest) => {}
        () = guest.off() => {}
    }
    guest.state().connections -= 1;
}

/// What ends an operation without a reply of its own.
type Answer = Result<Reply, Refusal>;

/// An operation failed, in words for the client.
#[derive(Debug)]
struct Refusal {
    code: ErrorCode,
    message: String,
}

impl Refusal {
    fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<Refusal> for Reply {
    fn from(refusal: Refusal) -> Self {
        Self::Error { code: refusal.code, message: refusal.message }
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send>(
    stream: S,
    guest: &FakeGuest,
) -> Result<(), Disconnected> {
    guest.agent_runs().await.map_err(|_| Disconnected)?;
    let entered = guest.faults().enter("agent.hello").await.map_err(|_| Disconnected)?;
    let mut wire = Wire::accept(stream, guest.clone()).await?;
    entered.leave().await;
    let request = wire.request().await?;
    if !guest.state().fates.insert(wire.nonce()) {
        // Made void before it came this far.
        return Err(Disconnected);
    }
    let method = method_of(&request);
    let entered = match guest.faults().enter(method).await {
        Ok(entered) => entered,
        Err(fault) => {
            return wire.send(Refusal::new(ErrorCode::Failed, fault.to_string()).into(), &[]).await;
        }
    };
    let powers_off = matches!(request, Request::Shutdown { .. });
    let reply = match operate(&mut wire, guest, request).await? {
        Ok(reply) => reply,
        Err(refusal) => refusal.into(),
    };
    entered.leave().await;
    wire.send(reply, &[]).await?;
    if powers_off {
        // The client has its answer before the power goes: the stream ends with it, not before it.
        wire.close().await;
        guest.power_off();
    }
    Ok(())
}

fn method_of(request: &Request) -> &'static str {
    match request {
        Request::Ping => "agent.ping",
        Request::Exec { .. } => "agent.exec",
        Request::JobStart { .. } => "agent.job_start",
        Request::JobList => "agent.job_list",
        Request::JobPoll { .. } => "agent.job_poll",
        Request::JobWait { .. } => "agent.job_wait",
        Request::JobAttach { .. } => "agent.job_attach",
        Request::JobSignal { .. } => "agent.job_signal",
        Request::FileRead { .. } => "agent.file_read",
        Request::FileWrite { .. } => "agent.file_write",
        Request::FileEdit { .. } => "agent.file_edit",
        Request::FileList { .. } => "agent.file_list",
        Request::FileStat { .. } => "agent.file_stat",
        Request::Walk { .. } => "agent.walk",
        Request::Hash { .. } => "agent.hash",
        Request::ArchiveRead { .. } => "agent.archive_read",
        Request::ArchiveWrite { .. } => "agent.archive_write",
        Request::EnvSet { .. } => "agent.env_set",
        Request::EnvClear => "agent.env_clear",
        Request::Configure(_) => "agent.configure",
        Request::Freeze { .. } => "agent.freeze",
        Request::Thaw { .. } => "agent.thaw",
        Request::Sync => "agent.sync",
        Request::Shutdown { .. } => "agent.shutdown",
        Request::Info => "agent.info",
        Request::Void { .. } => "agent.void",
    }
}

/// Does what was asked and gives the terminal reply.
async fn operate<S: AsyncRead + AsyncWrite + Unpin + Send>(
    wire: &mut Wire<S>,
    guest: &FakeGuest,
    request: Request,
) -> Result<Answer, Disconnected> {
    let received = Instant::now();
    let answer = match request {
        Request::Ping => Ok(Reply::Done),
        Request::Exec { command, stdin, tty, timeout_ms } => {
            return exec::run(wire, guest, command, stdin || tty.is_some(), timeout_ms).await;
        }
        Request::JobStart { command } => jobs::start(guest, command),
        Request::JobList => Ok(Reply::Jobs { jobs: guest.state().jobs.list() }),
        Request::JobPoll { job } => return jobs::poll(wire, guest, job).await,
        Request::JobWait { job, timeout_ms } => return jobs::wait(wire, guest, job, timeout_ms).await,
        Request::JobAttach { job } => return jobs::attach(wire, guest, job).await,
        Request::JobSignal { job, signal } => jobs::signal(guest, job, signal),
        Request::FileRead { path, offset, limit } => {
            return files::read(wire, guest, &path, offset, limit).await;
        }
        Request::FileWrite { path, mode, parents } => {
            return files::write(wire, guest, &path, mode, parents).await;
        }
        Request::FileEdit { path, old, new } => files::edit(guest, &path, &old, &new),
        Request::FileList { path } => return files::list(wire, guest, &path).await,
        Request::FileStat { path } => files::stat(guest, &path),
        Request::Walk { path, .. } => return walk::walk(wire, guest, &path).await,
        Request::Hash { root, files } => return walk::hash(wire, guest, &root, &files).await,
        Request::ArchiveRead { path, .. } => return files::archive_read(wire, guest, &path).await,
        Request::ArchiveWrite { path, .. } => return files::archive_write(wire, guest, &path).await,
        Request::EnvSet { vars } => env_set(guest, vars),
        Request::EnvClear => {
            guest.state().env.clear();
            Ok(Reply::Done)
        }
        Request::Configure(configuration) => {
            guest.state().clones += u32::from(configuration.clone);
            configure(&mut guest.state().configuration, *configuration);
            Ok(configured(received))
        }
        Request::Freeze { capture, .. } if guest.state().over.contains(&capture) => {
            Err(Refusal::new(ErrorCode::Conflict, "freeze: that capture is over"))
        }
        Request::Freeze { .. } => {
            guest.set_frozen(true);
            Ok(Reply::Done)
        }
        Request::Thaw { capture } => {
            guest.state().over.push(capture);
            guest.set_frozen(false);
            Ok(Reply::Done)
        }
        Request::Sync | Request::Shutdown { .. } => {
            guest.sync();
            Ok(Reply::Done)
        }
        Request::Info => Ok(Reply::Info { info: Box::new(info(guest)) }),
        Request::Void { nonce } if guest.state().fates.insert(nonce) => Ok(Reply::Done),
        Request::Void { .. } => Err(Refusal::new(ErrorCode::Conflict, "give up a request: it was begun")),
    };
    Ok(answer)
}

fn env_set(guest: &FakeGuest, vars: BTreeMap<String, Option<String>>) -> Answer {
    for (name, value) in &vars {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(Refusal::new(ErrorCode::Invalid, "set the environment: a name is not valid"));
        }
        if name.len() + value.as_ref().map_or(0, String::len) > MAX_ENV_VAR_BYTES {
            return Err(Refusal::new(ErrorCode::Exhausted, "set the environment: a variable is too long"));
        }
    }
    let mut state = guest.state();
    let mut env = state.env.clone();
    for (name, value) in vars {
        match value {
            Some(value) => env.insert(name, value),
            None => env.remove(&name),
        };
    }
    if env.len() > MAX_ENV_VARS {
        return Err(Refusal::new(ErrorCode::Exhausted, "set the environment: too many variables"));
    }
    state.env = env;
    Ok(Reply::Done)
}

fn configure(present: &mut Configuration, new: Configuration) {
    present.hostname = new.hostname.or(present.hostname.take());
    present.machine_id = new.machine_id.or(present.machine_id.take());
    present.network = new.network.or(present.network.take());
    present.time_ns = new.time_ns.or(present.time_ns);
    present.entropy = new.entropy.or(present.entropy.take());
    present.grow_root |= new.grow_root;
    present.clone |= new.clone;
    present.run_hooks |= new.run_hooks;
}

/// What a configure that was received then is answered: the clocks of the host, as the guest has no others.
fn configured(received: Instant) -> Reply {
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Reply::Configured {
        realtime_ns: nanoseconds(since_1970),
        monotonic_ns: nanoseconds(since_1970),
        elapsed_ns: nanoseconds(received.elapsed()),
    }
}

fn info(guest: &FakeGuest) -> GuestInfo {
    let state = guest.state();
    GuestInfo {
        kernel: "0.0.0-fake".to_owned(),
        hostname: state.configuration.hostname.clone().unwrap_or_default(),
        uptime_ms: 1,
        memory_kib: 1,
        memory_available_kib: 1,
        root_bytes: 1,
        root_free_bytes: 1,
    }
}
