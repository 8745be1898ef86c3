//! The agent as a service under another init: it serves, and leaves the rest of the system alone.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::system::{RebootCommand, reboot};

use crate::agent::Agent;
use crate::console::say;
use crate::freezer::UserGroup;
use crate::init::channels;
use crate::serve::{gate::Gate, streams, timeout_until};
use crate::supervise::{Ending, Ports, supervise};
use crate::sys::signal;

/// Programs that end a system in its own way; the first that is there is taken.
const POWER_OFF: [&str; 3] = ["/sbin/poweroff", "/usr/sbin/poweroff", "/bin/poweroff"];

/// Longest wait that a request can ask for.
const MAX_GRACE: Duration = Duration::from_secs(3600);
/// How long killed processes have to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(2);

/// A socket to serve instead of devices.
pub(crate) struct Socket {
    /// Where it is made.
    pub(crate) path: PathBuf,
    /// A file of 32 bytes that whoever connects must know.
    pub(crate) key: Option<PathBuf>,
}

/// A socket file that disappears with the agent.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // If it is gone, so much the better.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Serves until a signal or a shutdown request.
pub(crate) fn run(unix: Option<Socket>) -> ExitCode {
    match serve(unix.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&error);
            ExitCode::FAILURE
        }
    }
}

fn serve(unix: Option<&Socket>) -> Result<(), String> {
    signal::keep_inherited_descriptors_private();
    let signals = signal::take_over().map_err(|error| format!("preparing signals: {error}"))?;
    let agent = Agent::new(UserGroup::of_service()).map_err(|error| format!("starting: {error}"))?;
    let agent = Arc::new(agent);
    let mut socket_file = None;
    let ports = match unix {
        Some(Socket { path, key }) => {
            agent.refuse_shutdown();
            let listening = |error| format!("listening on {}: {error}", path.display());
            let socket = streams::listen_unix(path).map_err(listening)?;
            socket_file = Some(SocketFile(path.clone()));
            let gate = key.clone().map_or(Gate::Open, Gate::KeyFile);
            streams::serve(&agent, socket, gate).map_err(listening)?;
            None
        }
        None => {
            let (slots, uevents) = channels::open(&agent)?;
            Some(Ports { slots, uevents })
        }
    };
    let ending = supervise(&agent, &signals, ports, None, false);
    drop(socket_file);
    let (Ending::Requested(grace) | Ending::Signal(grace)) = ending;
    if let Some(group) = &agent.group {
        end_group(group, grace);
    }
    match ending {
        Ending::Signal(_) => Ok(()),
        Ending::Requested(_) => power_off(),
    }
}

/// Ends everything that was started: SIGTERM, then SIGKILL.
fn end_group(group: &UserGroup, grace: Duration) {
    // What is frozen hears no signal but SIGKILL.
    let _ = group.thaw();
    for process in group.processes() {
        if let Some(process) = rustix::process::Pid::from_raw(process) {
            // It may have ended meanwhile.
            let _ = rustix::process::kill_process(process, rustix::process::Signal::TERM);
        }
    }
    wait_until_empty(group, grace);
    let _ = group.kill();
    wait_until_empty(group, KILL_LIMIT);
    group.remove();
}

fn wait_until_empty(group: &UserGroup, limit: Duration) {
    let Ok(events) = group.events() else { return };
    let deadline = Instant::now() + limit.min(MAX_GRACE);
    while events.is_populated().unwrap_or(false) && Instant::now() < deadline {
        let mut fds = [PollFd::new(&events, PollFlags::PRI)];
        let _ = poll(&mut fds, Some(&timeout_until(Some(deadline))));
    }
}

/// Ends the system in its own way; where it has none, directly.
fn power_off() -> Result<(), String> {
    rustix::fs::sync();
    if let Some(program) = POWER_OFF.iter().find(|program| Path::new(program).exists()) {
        let mut child = std::process::Command::new(program)
            .spawn()
            .map_err(|error| format!("shutting down: executing {program}: {error}"))?;
        return match child.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("shutting down: {program} failed: {status}")),
            Err(error) => Err(format!("shutting down: {error}")),
        };
    }
    reboot(RebootCommand::PowerOff).map_err(|error| format!("shutting down: {error}"))
}
