//! Programs of the machine's own that run after it was copied, while its user processes are still frozen.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agentiso_guest::limits::{HOOK_LIMIT_MS, HOOKS_LIMIT_MS};
use agentiso_guest::message::{Command, ErrorCode, Exit, Input};
use rustix::event::PollFlags;
use rustix::io::Errno;

use crate::agent::Agent;
use crate::exec::{Prepared, collect, kill_group, output_pipe};
use crate::failure::{Failure, Stop};
use crate::freezer::UserGroup;
use crate::serve::Connection;
use crate::sys::spawn::Spawned;

/// Where they are.
const FOLDER: &str = "/etc/agentiso/after-fork.d";
/// Most of them.
const MAX_HOOKS: usize = 256;
/// What is kept of a hook's output for an error, in bytes.
const KEPT_BYTES: usize = 4096;
/// Bytes read at once.
const READ_BYTES: usize = 4096;
/// How often what hooks left running is looked for before it is left where it is.
const MOVES: usize = 16;

/// What hooks are told.
#[derive(Debug)]
pub(super) struct Identity<'a> {
    pub(super) hostname: &'a str,
    pub(super) machine_id: &'a str,
}

/// Runs all hooks, one after the other in the order of their names.
///
/// They run as any command does, but for their group: that of user work is frozen. What they leave running joins it at
/// the end.
///
/// # Errors
/// One cannot be started, fails, or takes too long; those behind it are not run. Or the connection is lost.
pub(super) fn run(agent: &Agent, connection: &mut Connection, identity: &Identity<'_>) -> Result<(), Stop> {
    run_folder(agent, connection, identity, Path::new(FOLDER))
}

fn run_folder(
    agent: &Agent,
    connection: &mut Connection,
    identity: &Identity<'_>,
    folder: &Path,
) -> Result<(), Stop> {
    let hooks = list(folder)?;
    if hooks.is_empty() {
        return Ok(());
    }
    let failed = |error| Failure::io("running hooks: making their group", &error);
    let group = match &agent.group {
        Some(user) => Some(UserGroup::create(&user.sibling("hooks")).map_err(failed)?),
        None => None,
    };
    let all = Instant::now() + Duration::from_millis(HOOKS_LIMIT_MS);
    for hook in hooks {
        let deadline = all.min(Instant::now() + Duration::from_millis(HOOK_LIMIT_MS));
        run_one(agent, connection, identity, &hook, group.as_ref(), deadline)?;
    }
    if let (Some(group), Some(user)) = (&group, &agent.group) {
        hand_over(group, user);
        group.remove();
    }
    Ok(())
}

/// The hooks in a folder, in the order of their names; none if there is no folder.
fn list(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(Failure::io(format!("running hooks: listing {}", folder.display()), &error));
        }
    };
    let mut hooks: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| is_hook_name(entry.file_name().as_encoded_bytes()))
        .map(|entry| entry.path())
        // A link counts as what it leads to.
        .filter(|path| {
            fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        })
        .collect();
    if hooks.len() > MAX_HOOKS {
        return Err(Failure::new(
            ErrorCode::Exhausted,
            format!("running hooks: {} has {} of them, more than {MAX_HOOKS}", folder.display(), hooks.len()),
        ));
    }
    hooks.sort();
    Ok(hooks)
}

/// As run-parts has it: what editors and package managers leave beside a file is none.
fn is_hook_name(name: &[u8]) -> bool {
    !name.is_empty()
        && !name.starts_with(b".")
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte))
}

fn run_one(
    agent: &Agent,
    connection: &mut Connection,
    identity: &Identity<'_>,
    hook: &Path,
    group: Option<&UserGroup>,
    deadline: Instant,
) -> Result<(), Stop> {
    let name = hook.display();
    let env = [("AGENTISO_HOSTNAME", identity.hostname), ("AGENTISO_WORKSPACE_ID", identity.machine_id)];
    let command = Command {
        argv: vec![hook.to_string_lossy().into_owned()],
        env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        workdir: Some("/".to_owned()),
    };
    let explain =
        |failure: Failure| Failure::new(failure.code, format!("running the hook {name}: {failure}"));
    let prepared = Prepared::clean(&command).map_err(explain)?;
    let (output, output_of_child) = output_pipe()?;
    let stdio = [agent.null.as_fd(), output_of_child.as_fd(), output_of_child.as_fd()];
    let entry = group.and_then(UserGroup::enter);
    let child = prepared.start(agent, entry.as_ref(), stdio, false).map_err(explain)?;
    drop((output_of_child, entry));
    let mut last = Vec::new();
    let exit = watch(connection, &child, &output, &mut last, deadline);
    if !matches!(exit, Ok(Some(_))) {
        kill_group(&child);
        if let Some(group) = group {
            // What it started may be in groups of its own.
            let _ = group.kill();
        }
        agent.keeper.collect(child);
    }
    let how = match exit? {
        Some(Exit::Code(0)) => return Ok(()),
        Some(Exit::Code(status)) => format!("it exited with status {status}"),
        Some(Exit::Signal(signal)) => format!("signal {signal} ended it"),
        Some(Exit::TimedOut) | None => "it took too long and was killed".to_owned(),
    };
    let printed = String::from_utf8_lossy(&last);
    let printed = match printed.trim() {
        "" => ", and printed nothing".to_owned(),
        text => format!("; the end of what it printed: {text}"),
    };
    let code = if how.contains("too long") { ErrorCode::TimedOut } else { ErrorCode::Failed };
    Err(Failure::new(code, format!("running the hook {name}: {how}{printed}")).into())
}

/// Waits for the end of a hook; `None` if the time is over first. Its children hold nothing up.
fn watch(
    connection: &mut Connection,
    child: &Spawned,
    output: &OwnedFd,
    last: &mut Vec<u8>,
    deadline: Instant,
) -> Result<Option<Exit>, Stop> {
    let mut is_open = true;
    loop {
        while connection.next_message::<Input>()?.is_some() {}
        let others =
            [is_open.then_some((output.as_fd(), PollFlags::IN)), Some((child.pidfd.as_fd(), PollFlags::IN))];
        let [printed, ended] = connection.wait(true, others, Some(deadline))?;
        let exit = if ended.is_empty() { None } else { collect(child) };
        if !printed.is_empty() || exit.is_some() {
            is_open &= read(output, last, exit.is_some());
        }
        if exit.is_some() {
            return Ok(exit);
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
    }
}

/// Reads once, or all that is there, and keeps the end of it; returns whether there may be more.
fn read(output: &OwnedFd, last: &mut Vec<u8>, all: bool) -> bool {
    let mut buffer = [0; READ_BYTES];
    // A pipe holds no more than this many pieces; a child that prints on and on does not keep this up.
    let mut pieces = if all { 16 } else { 1 };
    while pieces > 0 {
        pieces -= 1;
        match rustix::io::read(output, &mut buffer[..]) {
            Ok(0) => return false,
            Ok(count) => {
                last.extend_from_slice(&buffer[..count]);
                last.drain(..last.len().saturating_sub(KEPT_BYTES));
            }
            Err(Errno::AGAIN | Errno::INTR) => return true,
            Err(_) => return false,
        }
    }
    true
}

/// Moves what hooks left running to where user work is, to be frozen and thawed with it.
fn hand_over(hooks: &UserGroup, user: &UserGroup) {
    for _ in 0..MOVES {
        let left = hooks.processes();
        if left.is_empty() {
            return;
        }
        for process in left {
            // It may have ended meanwhile.
            let _ = user.take_in(process);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_are_executable_files_with_plain_names_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["20-b", "10-a.sh", "plain", "bad name", "back~", ".hidden", "é"] {
            fs::write(path(name), "").unwrap();
            let mode = if name == "plain" { 0o644 } else { 0o755 };
            fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir(path("folder")).unwrap();
        std::os::unix::fs::symlink("20-b", path("30_link")).unwrap();
        std::os::unix::fs::symlink("nowhere", path("dangling")).unwrap();

        let hooks = list(folder.path()).unwrap();

        let names: Vec<_> = hooks.iter().map(|hook| hook.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["10-a.sh", "20-b", "30_link"]);
        assert!(list(&path("none")).unwrap().is_empty());
    }
}
