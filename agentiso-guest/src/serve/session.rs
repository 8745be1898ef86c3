//! One connection from its hello to its terminal reply.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use agentiso_guest::PROTOCOL_GENERATION;
use agentiso_guest::frame::FrameError;
use agentiso_guest::hello::{Hello, Verdict, Welcome};
use agentiso_guest::key::Proof;
use agentiso_guest::limits::MAX_CONNECTIONS;
use agentiso_guest::message::{ErrorCode, Reply, Request};

use super::connection::{Connection, Lost};
use crate::agent::Agent;
use crate::failure::{Failure, Stop};

/// How long the last words on a connection that is about to be reset may take.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Counts a connection as served for as long as it lives.
struct Served<'a>(&'a AtomicUsize);

impl<'a> Served<'a> {
    fn count(counter: &'a AtomicUsize) -> Option<Self> {
        counter
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |served| {
                (served < MAX_CONNECTIONS).then_some(served + 1)
            })
            .ok()
            .map(|_| Self(counter))
    }
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Answers a hello, takes one request and serves it until its terminal reply is written.
///
/// # Errors
/// How the connection was lost.
pub(super) fn run(
    agent: &Arc<Agent>,
    connection: &mut Connection,
    hello: &Hello,
    proof: Option<Proof>,
) -> Result<(), Lost> {
    connection.begin(hello.hello, agent.sessions.enter());
    let result = answer(agent, connection, hello, proof);
    // A connection of another life counts until its channel is closed: its bytes must not meet the next one's.
    if !matches!(result, Err(Lost::Detached)) {
        connection.end();
    }
    result
}

/// Tells a host that it has the wrong key. It learns nothing else, and nothing of it is carried out.
pub(super) fn refuse(connection: &mut Connection, hello: &Hello) {
    connection.send_welcome(&Welcome {
        welcome: hello.hello,
        generation: PROTOCOL_GENERATION,
        agent: String::new(),
        verdict: Verdict::WrongKey,
        request: false,
        proof: None,
    });
    connection.flush_until(Instant::now() + LAST_WORDS);
}

fn answer(
    agent: &Arc<Agent>,
    connection: &mut Connection,
    hello: &Hello,
    proof: Option<Proof>,
) -> Result<(), Lost> {
    #[cfg(feature = "hostile")]
    if let Some(lost) = super::hostile::take_over(connection, hello) {
        return Err(lost);
    }
    let served = Served::count(&agent.served);
    let verdict = if hello.generation != PROTOCOL_GENERATION {
        Verdict::WrongGeneration
    } else if served.is_none() {
        Verdict::Busy
    } else {
        Verdict::Accepted
    };
    if hello.request && verdict == Verdict::Accepted && !agent.sessions.begin_request(hello.hello) {
        // Its host has given it up and asks elsewhere. The request is passed over.
        return Ok(());
    }
    connection.send_welcome(&Welcome {
        welcome: hello.hello,
        generation: PROTOCOL_GENERATION,
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        verdict,
        request: hello.request,
        proof,
    });
    if verdict != Verdict::Accepted {
        return connection.flush();
    }
    let result = serve_one(agent, connection);
    if let Err(lost) = &result
        && let Some((code, message)) = last_words(lost)
    {
        connection.send(&Reply::Error { code, message });
        connection.flush_until(Instant::now() + LAST_WORDS);
    }
    result
}

fn serve_one(agent: &Arc<Agent>, connection: &mut Connection) -> Result<(), Lost> {
    let request = connection.receive_request()?;
    let shutdown = match request {
        Request::Shutdown { grace_ms } => Some(Duration::from_millis(grace_ms)),
        _ => None,
    };
    match perform(agent, connection, request) {
        Ok(reply) => connection.send(&reply),
        Err(Stop::Failed(failure)) => connection.send(&failure.into()),
        Err(Stop::Lost(lost)) => return Err(lost),
    }
    if let Some(grace) = shutdown.filter(|_| agent.may_shut_down()) {
        // The reply comes first, but a host that does not read it does not keep the power on.
        connection.flush_until(Instant::now() + LAST_WORDS);
        agent.shut_down(grace);
    }
    connection.flush()
}

/// What a host that is still there is told before its connection is reset.
fn last_words(lost: &Lost) -> Option<(ErrorCode, String)> {
    match lost {
        Lost::Gone | Lost::Replaced(_) | Lost::Detached => None,
        Lost::Malformed(FrameError::Malformed(error)) => {
            Some((ErrorCode::Invalid, format!("the message is not one this agent knows: {error}")))
        }
        Lost::Malformed(error) => Some((ErrorCode::Invalid, format!("the connection is reset: {error}"))),
        Lost::Stalled => {
            Some((ErrorCode::TimedOut, "the connection is reset: a message stayed incomplete".to_owned()))
        }
        Lost::TooLarge => Some((
            ErrorCode::Exhausted,
            "the connection is reset: too many connections send very long messages at once".to_owned(),
        )),
    }
}

/// Carries out a request. The reply is the terminal one.
fn perform(agent: &Arc<Agent>, connection: &mut Connection, request: Request) -> Result<Reply, Stop> {
    use crate::{archive, configure, exec, files, freezer, info, jobs, walk};

    if agent.is_ending() && !matches!(request, Request::Ping | Request::Info | Request::Void { .. }) {
        return Err(Failure::new(
            ErrorCode::Conflict,
            format!("{}: the machine is shutting down", request.name()),
        )
        .into());
    }
    if matches!(request, Request::Shutdown { .. }) && !agent.may_shut_down() {
        let text = "shutting down: refused, this agent serves a unix socket and is not a machine of its own";
        return Err(Failure::new(ErrorCode::NotPermitted, text).into());
    }
    match request {
        Request::Ping => {}
        Request::Exec { command, stdin, tty, timeout_ms } => {
            #[cfg(feature = "hostile")]
            if let Some(reply) = super::hostile::command(&command) {
                return Ok(reply);
            }
            return exec::run(agent, connection, &command, stdin, tty, timeout_ms);
        }
        Request::JobStart { command } => return jobs::start(agent, connection, &command),
        Request::JobList => return Ok(jobs::list(agent)),
        Request::JobPoll { job } => return jobs::poll(agent, connection, job),
        Request::JobWait { job, timeout_ms } => return jobs::wait(agent, connection, job, timeout_ms),
        Request::JobAttach { job } => return jobs::attach(agent, connection, job),
        Request::JobSignal { job, signal } => jobs::signal(agent, job, signal)?,
        Request::FileRead { path, offset, limit } => files::read(connection, &path, offset, limit)?,
        Request::FileWrite { path, mode, parents } => files::write(connection, &path, mode, parents)?,
        Request::FileEdit { path, old, new } => files::edit(&path, &old, &new)?,
        Request::FileList { path } => files::list(connection, &path)?,
        Request::FileStat { path } => return Ok(files::stat(&path)?),
        Request::Walk { path, root_file_system } => walk::walk(connection, &path, root_file_system)?,
        Request::Hash { root, files } => walk::hash(connection, &root, &files)?,
        Request::ArchiveRead { path, follow } => archive::read(connection, &path, follow)?,
        Request::ArchiveWrite { path, compression, preserve } => {
            archive::write(connection, &path, compression, preserve)?;
        }
        Request::EnvSet { vars } => agent.environment.set(vars)?,
        Request::EnvClear => agent.environment.clear(),
        Request::Configure(configuration) => return configure::apply(agent, connection, &configuration),
        Request::Freeze { capture, timeout_ms } => freezer::freeze(agent, connection, capture, timeout_ms)?,
        Request::Thaw { capture } => freezer::thaw(agent, capture)?,
        Request::Sync => rustix::fs::sync(),
        // Begun once the reply is on its way.
        Request::Shutdown { .. } => {}
        Request::Info => return Ok(info::gather()?),
        Request::Void { nonce } => {
            if !agent.sessions.make_void(nonce) {
                let text = "giving up a request: it was begun";
                return Err(Failure::new(ErrorCode::Conflict, text).into());
            }
        }
    }
    Ok(Reply::Done)
}
