//! Processes that a test run left behind.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crate::run::{self, Done, Failure};

/// How long processes that are just ending have.
const GRACE: Duration = Duration::from_secs(10);

/// A process that uses the folder.
struct Leftover {
    pid: u32,
    name: String,
    file: PathBuf,
}

/// Fails if a process runs a program of one of the folders, has a file of it open, or stands in it: every state folder
/// of a test run is below them, and every machine and companion process has its disk, its logs or its program there.
/// Ends what it finds.
pub(crate) fn check(folders: &[&Path]) -> Done {
    let deadline = Instant::now() + GRACE;
    let found = loop {
        let found = find(folders);
        if found.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            break found;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    let mut names = Vec::new();
    for Leftover { pid, name, file } in found {
        println!("left over: process {pid} ({name}) uses {}", file.display());
        run::succeeds(Command::new("kill").args(["-KILL", &pid.to_string()]));
        names.push(format!("{name} ({pid})"));
    }
    Err(Failure::new(format!("processes were left over: {}", names.join(", "))))
}

fn find(folders: &[&Path]) -> Vec<Leftover> {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != std::process::id()).filter_map(|pid| uses(pid, folders)).collect()
}

fn uses(pid: u32, folders: &[&Path]) -> Option<Leftover> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let descriptors =
        fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
    let links = [process.join("exe"), process.join("cwd")].into_iter().chain(descriptors);
    let is_inside = |file: &PathBuf| folders.iter().any(|folder| file.starts_with(folder));
    let file = links.filter_map(|link| fs::read_link(link).ok()).find(is_inside)?;
    let name = fs::read_to_string(process.join("comm")).unwrap_or_default().trim().to_owned();
    Some(Leftover { pid, name, file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_that_stands_in_the_folder_is_found_until_it_ends() {
        let folder = std::env::temp_dir().join(format!("xtask-leftovers-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let folder = fs::canonicalize(&folder).unwrap();
        let mut child = Command::new("sleep").arg("60").current_dir(&folder).spawn().unwrap();

        let found = find(&[&folder]);
        child.kill().unwrap();
        child.wait().unwrap();
        let after = find(&[&folder]);
        fs::remove_dir_all(&folder).unwrap();

        assert_eq!(found.iter().map(|left| left.pid).collect::<Vec<_>>(), [child.id()]);
        assert!(after.is_empty());
    }
}
