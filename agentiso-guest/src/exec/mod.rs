//! Commands whose output is streamed to the connection that asked for them.

mod command;
mod stranded;
mod stream;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentiso_guest::message::{Command, Exit, Reply, TtySize};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

pub(crate) use command::Prepared;
pub(crate) use stranded::{Stranded, adopt_stranded, hang_up_stranded};
pub(crate) use stream::TERMINAL_REST;
use stream::{Output, Streams};

use crate::agent::{Agent, retry};
use crate::failure::{Failure, Stop};
use crate::freezer::{self, Entry};
use crate::jobs::Stream;
use crate::serve::Connection;
use crate::sys::signal::signal_group;
use crate::sys::spawn::Spawned;

/// Runs a command, streams what it prints, and returns how it ended. Children of it that still run hold nothing up:
/// they live on, and what they print later is thrown away.
///
/// # Errors
/// It could not be started, or the connection was lost: its process group then has SIGHUP, and SIGKILL
/// [`HANGUP_GRACE_MS`](agentiso_guest::limits::HANGUP_GRACE_MS) later. In a clone it goes on as a background job.
pub(crate) fn run(
    agent: &Arc<Agent>,
    connection: &mut Connection,
    command: &Command,
    stdin: bool,
    tty: Option<TtySize>,
    timeout_ms: Option<u64>,
) -> Result<Reply, Stop> {
    let prepared = Prepared::new(agent, command, tty.is_some())?;
    let entry = freezer::enter(agent, connection)?;
    let (child, mut streams) = match tty {
        Some(size) => start_on_terminal(agent, entry.as_ref(), &prepared, stdin, size)?,
        None => start_on_pipes(agent, entry.as_ref(), &prepared, stdin)?,
    };
    drop(entry);
    // A deadline that the clock cannot express never comes.
    let deadline = timeout_ms.and_then(|limit| Instant::now().checked_add(Duration::from_millis(limit)));
    connection.send(&Reply::Started { pid: child.pid.as_raw_nonzero().get().unsigned_abs() });
    match streams.run(connection, &child, deadline) {
        Ok(exit) => {
            for pipe in streams.into_survivors() {
                agent.keeper.drain(pipe);
            }
            Ok(Reply::Exited { exit })
        }
        Err(lost) => {
            stranded::lose(agent, streams.into_orphan(child, &command.argv, deadline), &lost);
            Err(lost.into())
        }
    }
}

fn start_on_pipes(
    agent: &Agent,
    entry: Option<&Entry<'_>>,
    prepared: &Prepared,
    stdin: bool,
) -> Result<(Spawned, Streams), Failure> {
    let (stdout, stdout_of_child) = output_pipe()?;
    let (stderr, stderr_of_child) = output_pipe()?;
    let (input, input_of_child) = if stdin {
        let (reader, writer) = pipe()?;
        make_non_blocking(&writer)?;
        (Some(writer), Some(reader))
    } else {
        (None, None)
    };
    let stdin = input_of_child.as_ref().unwrap_or(&agent.null);
    let stdio = [stdin.as_fd(), stdout_of_child.as_fd(), stderr_of_child.as_fd()];
    let child = prepared.start(agent, entry, stdio, false)?;
    let outputs = [Some(Output::new(stdout, Stream::Stdout)), Some(Output::new(stderr, Stream::Stderr))];
    Ok((child, Streams::of_pipes(input, outputs)))
}

fn start_on_terminal(
    agent: &Agent,
    entry: Option<&Entry<'_>>,
    prepared: &Prepared,
    stdin: bool,
    size: TtySize,
) -> Result<(Spawned, Streams), Failure> {
    let failed = |error| Failure::system("opening a pseudo-terminal", error);
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).map_err(failed)?;
    unlockpt(&master).map_err(failed)?;
    let terminal = ioctl_tiocgptpeer(&master, flags).map_err(failed)?;
    resize(&master, size).map_err(failed)?;
    make_non_blocking(&master)?;
    let child = prepared.start(agent, entry, [terminal.as_fd(), terminal.as_fd(), terminal.as_fd()], true)?;
    Ok((child, Streams::of_terminal(master, stdin)))
}

fn resize(terminal: impl AsFd, size: TtySize) -> Result<(), Errno> {
    tcsetwinsize(terminal, Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 })
}

/// A pipe for output: our end does not block.
pub(crate) fn output_pipe() -> Result<(OwnedFd, OwnedFd), Failure> {
    let (reader, writer) = pipe()?;
    make_non_blocking(&reader)?;
    Ok((reader, writer))
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Failure> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|error| Failure::system("opening a pipe for the command", error))
}

fn make_non_blocking(end: &OwnedFd) -> Result<(), Failure> {
    rustix::fs::fcntl_setfl(end, OFlags::NONBLOCK)
        .map_err(|error| Failure::system("preparing a pipe for the command", error))
}

/// Collects a command that has ended: how it ended.
pub(crate) fn collect(child: &Spawned) -> Option<Exit> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let status = match retry(|| waitid(WaitId::PidFd(child.pidfd.as_fd()), options)) {
        Ok(Some(status)) => status,
        Ok(None) => return None,
        // Collected by someone else, which the agent has no code for; better an answer than a wait without end.
        Err(_) => return Some(Exit::Signal(9)),
    };
    let byte = |value: Option<i32>| value.and_then(|value| u8::try_from(value & 0xff).ok());
    byte(status.exit_status()).map(Exit::Code).or_else(|| byte(status.terminating_signal()).map(Exit::Signal))
}

/// Kills a command and its whole process group.
pub(crate) fn kill_group(child: &Spawned) {
    signal_group(child.pid, SIGKILL);
}

pub(crate) const SIGKILL: u8 = 9;
pub(crate) const SIGHUP: u8 = 1;
