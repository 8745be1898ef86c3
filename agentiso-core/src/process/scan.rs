//! Finds processes of a state folder, whoever started them and whether or not a record knows them.
//!
//! Every process that agentiso starts has the word `agentiso-STATE-WORKSPACE` on its command line. A process can
//! change that word in its own memory, so it says which processes to look at and is no proof of anything else:
//! only processes of a user that agentiso could have started them under are listed.

use std::{io, os::unix::fs::MetadataExt};

use crate::types::{MachineUid, ProcessRef, WorkspaceId};

/// Longest command line that is read, in bytes. A machine's is below 16 KiB.
const MAX_COMMAND_LINE_BYTES: u64 = 64 * 1024;

/// A process of the state folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundProcess {
    /// Whose process it says it is.
    pub(crate) workspace: WorkspaceId,
    /// The process.
    pub(crate) process: ProcessRef,
    /// Its command line, the program's name first.
    pub(crate) words: Vec<String>,
}

/// The word that a process of this workspace carries on its command line.
pub(crate) fn start_name(state_id: &str, workspace: WorkspaceId) -> String {
    format!("agentiso-{state_id}-{workspace}")
}

/// Processes with a word of this state folder on their command line, that run under the caller's user id or, if the
/// caller is root, under a machine's.
///
/// # Errors
/// /proc cannot be read.
pub(crate) fn named(state_id: &str) -> io::Result<Vec<FoundProcess>> {
    let prefix = format!("agentiso-{state_id}-");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Processes come and go while one looks: what cannot be read is no process of ours any more.
        found.extend(inspect(pid, &prefix).ok().flatten());
    }
    Ok(found)
}

fn inspect(pid: u32, prefix: &str) -> io::Result<Option<FoundProcess>> {
    let Some(process) = ProcessRef::of(pid)? else { return Ok(None) };
    let words = command_line(pid)?;
    let name = words.iter().find_map(|word| word.strip_prefix(prefix)?.parse::<WorkspaceId>().ok());
    let Some(workspace) = name else { return Ok(None) };
    let owned = could_be_ours(std::fs::metadata(format!("/proc/{pid}"))?.uid());
    // The number may have changed hands since the first line.
    Ok((owned && process.is_alive()).then_some(FoundProcess { workspace, process, words }))
}

fn could_be_ours(uid: u32) -> bool {
    let own = rustix::process::geteuid();
    if own.is_root() { uid >= MachineUid::FIRST } else { uid == own.as_raw() }
}

fn command_line(pid: u32) -> io::Result<Vec<String>> {
    use io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(format!("/proc/{pid}/cmdline"))?
        .take(MAX_COMMAND_LINE_BYTES)
        .read_to_end(&mut bytes)?;
    Ok(bytes.split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect())
}
