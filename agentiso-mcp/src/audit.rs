//! The audit log: a line of JSON for every tool call, in the state folder.
//!
//! `{"time_ms":..,"session":"..","tool":"..","workspaces":["UUID"],"outcome":"ok","duration_ms":..}`. The outcome is
//! `ok`, the code of the error, or `cancelled`. Parameters and results are not in it: they may be secret.

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use agentiso_core::types::WorkspaceId;
use rustix::fs::{FlockOperation, OFlags};
use serde_json::json;

/// What the log is called, in the state folder.
const NAME: &str = "mcp-audit.jsonl";

/// A log of this size is put aside, as NAME.1, and a new one begun.
const MAX_BYTES: u64 = 64 * 1024 * 1024;

/// The audit log of a state folder. Any number of servers write to it, each line whole.
#[derive(Debug)]
pub(crate) struct Audit {
    path: PathBuf,
}

impl Audit {
    /// The log of the state folder at this path.
    pub(crate) fn at(state_dir: &Path) -> Self {
        Self { path: state_dir.join(NAME) }
    }

    /// Adds a line.
    pub(crate) fn write(
        &self,
        session: &str,
        tool: &str,
        workspaces: &BTreeSet<WorkspaceId>,
        outcome: &str,
        duration: Duration,
    ) {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let line = json!({
            "time_ms": milliseconds(since_1970),
            "session": session,
            "tool": tool,
            "workspaces": workspaces,
            "outcome": outcome,
            "duration_ms": milliseconds(duration),
        });
        if let Err(error) = self.append(&format!("{line}\n")) {
            tracing::warn!(path = %self.path.display(), %error, "could not write the audit log");
        }
    }

    fn append(&self, line: &str) -> io::Result<()> {
        let mut file = self.open()?;
        // Whoever put the log aside meanwhile has done so under the lock.
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        let metadata = file.metadata()?;
        let present = std::fs::metadata(&self.path).map(|metadata| metadata.ino()).ok();
        if present != Some(metadata.ino()) {
            drop(file);
            file = self.open()?;
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        } else if metadata.len() >= MAX_BYTES {
            std::fs::rename(&self.path, self.path.with_extension("jsonl.1"))?;
            drop(file);
            file = self.open()?;
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        }
        // One write, so that a crash leaves no half line.
        file.write_all(line.as_bytes())
    }

    fn open(&self) -> io::Result<File> {
        let no_follow = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
        OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(no_follow).open(&self.path)
    }
}

/// The workspaces that a call had to do with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Touched(Arc<Mutex<BTreeSet<WorkspaceId>>>);

impl Touched {
    /// One more.
    pub(crate) fn add(&self, id: WorkspaceId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
    }

    /// All of them.
    pub(crate) fn all(&self) -> BTreeSet<WorkspaceId> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn lines_of_several_writers_stay_whole_and_private() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let audit = Audit::at(folder.path());
                    let touched = BTreeSet::from([WorkspaceId::random()]);
                    for _ in 0..50 {
                        audit.write("s", "exec", &touched, "ok", Duration::from_millis(7));
                    }
                });
            }
        });

        let path = folder.path().join(NAME);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 200);
        for line in text.lines() {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!((&value["tool"], &value["duration_ms"]), (&"exec".into(), &7.into()));
        }
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn log_that_is_full_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        File::create(&path).unwrap().set_len(MAX_BYTES).unwrap();

        Audit::at(folder.path()).write("s", "exec", &BTreeSet::new(), "ok", Duration::ZERO);

        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
        assert_eq!(std::fs::metadata(path.with_extension("jsonl.1")).unwrap().len(), MAX_BYTES);
    }

    #[test]
    fn link_in_its_place_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let other = folder.path().join("other");
        std::fs::write(&other, "").unwrap();
        std::os::unix::fs::symlink(&other, folder.path().join(NAME)).unwrap();

        Audit::at(folder.path()).write("s", "exec", &BTreeSet::new(), "ok", Duration::ZERO);

        assert_eq!(std::fs::read_to_string(&other).unwrap(), "");
    }
}
