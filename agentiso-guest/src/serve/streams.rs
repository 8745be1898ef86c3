//! Listening sockets: vsock, and a unix socket for `--unix`.
//!
//! Worker threads accept by themselves, so a connection is served by a thread that is there already. When the last idle
//! one takes a connection, another is started, up to one more than may be served at once: that one says "busy". Workers
//! never end, because the commands that they started are their children.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use agentiso_guest::hello::HelloScanner;
use agentiso_guest::limits::{MAX_CONNECTIONS, STALLED_MESSAGE_MS};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use super::connection::Connection;
use super::gate::{Gate, Judgement};
use super::greeting::{Between, next_hello};
use super::session;
use crate::agent::{Agent, start_thread};

/// How long a connection may stay silent before its hello.
const HELLO_LIMIT: Duration = Duration::from_millis(STALLED_MESSAGE_MS);
/// How long a served connection stays open for another hello.
const REUSE_LIMIT: Duration = Duration::from_secs(1);
const MAX_WORKERS: usize = MAX_CONNECTIONS + 1;

struct Listener {
    agent: Arc<Agent>,
    socket: OwnedFd,
    gate: Gate,
    workers: AtomicUsize,
    idle: AtomicUsize,
}

/// Serves connections of a listening socket, in the background.
///
/// # Errors
/// No thread could be started.
pub(crate) fn serve(agent: &Arc<Agent>, socket: OwnedFd, gate: Gate) -> std::io::Result<()> {
    let listener = Arc::new(Listener {
        agent: Arc::clone(agent),
        socket,
        gate,
        workers: AtomicUsize::new(0),
        idle: AtomicUsize::new(0),
    });
    add_worker(&listener)
}

fn add_worker(listener: &Arc<Listener>) -> std::io::Result<()> {
    listener.workers.fetch_add(1, Ordering::AcqRel);
    listener.idle.fetch_add(1, Ordering::AcqRel);
    let own = Arc::clone(listener);
    let started = start_thread("stream", move || {
        loop {
            accept_one(&own);
        }
    });
    if started.is_err() {
        listener.workers.fetch_sub(1, Ordering::AcqRel);
        listener.idle.fetch_sub(1, Ordering::AcqRel);
    }
    started
}

fn accept_one(listener: &Arc<Listener>) {
    let accepted = accept_with(&listener.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
    let socket = match accepted {
        Ok(socket) => socket,
        Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => {
            // Connections wait in the backlog until descriptors are free again.
            std::thread::sleep(Duration::from_millis(20));
            return;
        }
        Err(_) => return,
    };
    if !listener.gate.is_open_to(&socket) {
        return;
    }
    let was_last = listener.idle.fetch_sub(1, Ordering::AcqRel) == 1;
    if was_last && listener.workers.load(Ordering::Acquire) < MAX_WORKERS {
        // Without another worker, the next connection waits for this one.
        let _ = add_worker(listener);
    }
    serve_connection(listener, socket);
    listener.idle.fetch_add(1, Ordering::AcqRel);
}

fn serve_connection(listener: &Listener, socket: OwnedFd) {
    let mut connection = Connection::on_socket(socket);
    let mut between = Between::Fresh(HelloScanner::new());
    let mut limit = HELLO_LIMIT;
    let mut next = None;
    loop {
        let hello = match next.take() {
            Some(hello) => hello,
            None => match next_hello(&mut connection, &mut between, Some(Instant::now() + limit)) {
                Ok(hello) => hello,
                Err(_) => return,
            },
        };
        let proof = match listener.gate.judge(&hello) {
            Judgement::Served(proof) => proof,
            Judgement::Refused => return session::refuse(&mut connection, &hello),
            Judgement::Ignored => return,
        };
        match session::run(&listener.agent, &mut connection, &hello, proof) {
            Ok(()) => {}
            Err(super::Lost::Replaced(hello)) => next = Some(hello),
            Err(_) => return,
        }
        limit = REUSE_LIMIT;
    }
}

/// Makes the unix socket of `--unix`, for its owner only.
///
/// # Errors
/// The path is too long, taken, or in a folder that cannot be written.
pub(crate) fn listen_unix(path: &std::path::Path) -> std::io::Result<OwnedFd> {
    use std::os::unix::fs::PermissionsExt;
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    // The standard library's backlog is 128; accepting is what must not block anything else, and it does not.
    debug_assert!(rustix::io::fcntl_getfd(listener.as_fd()).is_ok());
    Ok(listener.into())
}
