//! What differs between the files of two workspaces, found inside their guests.
//!
//! Both guests walk their trees in the same order; the host compares the two streams as they come and holds little of
//! either at a time, whatever the guests say. Where size and times leave doubt, both are asked for the content's hash.

mod judge;
mod merge;
mod reader;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::engine::{Engine, caller};
use crate::channel::client::{ErrorCode, GuestError, RawPath, TreeKind};
use crate::error::EngineError;
use crate::types::{InvalidName, SnapshotName};

/// Differences that wait for whoever reads them.
const DIFFERENCES_AHEAD: usize = 64;

/// What to compare.
#[derive(Clone, Debug)]
pub struct DiffSpec {
    /// What is compared with.
    pub from: DiffSide,
    /// What is compared. A file that is only here was added.
    pub to: DiffSide,
    /// A file, or a folder with all below it; absolute. Of the root file system alone.
    pub path: RawPath,
}

/// A workspace as it is, or as a snapshot has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiffSide {
    /// Name, id or beginning of the id.
    pub workspace: String,
    /// The snapshot.
    pub snapshot: Option<SnapshotName>,
}

impl std::str::FromStr for DiffSide {
    type Err = InvalidName;

    /// Reads `WORKSPACE` or `WORKSPACE@SNAPSHOT`.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        // Neither names nor ids have an @.
        Ok(match text.split_once('@') {
            Some((workspace, snapshot)) => {
                Self { workspace: workspace.to_owned(), snapshot: Some(SnapshotName::new(snapshot)?) }
            }
            None => Self { workspace: text.to_owned(), snapshot: None },
        })
    }
}

impl std::fmt::Display for DiffSide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.workspace)?;
        match &self.snapshot {
            Some(snapshot) => write!(f, "@{snapshot}"),
            None => Ok(()),
        }
    }
}

/// Something that is not the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// What happened to it.
    pub change: Change,
    /// Its absolute path. In JSON a backslash is `\\` and a byte that is no UTF-8 or not printable is `\xNN`, so that
    /// nothing is lost.
    pub path: RawPath,
    /// What of it is not the same; empty unless it was modified.
    pub what: Vec<Aspect>,
    /// What it was; none if it was added.
    pub old: Option<FileState>,
    /// What it is; none if it was deleted.
    pub new: Option<FileState>,
}

/// What happened to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It is new.
    Added,
    /// It is not what it was.
    Modified,
    /// It is gone.
    Deleted,
    /// On one side something else is mounted there, so that what the disk has there cannot be seen. It and all that is
    /// below it may differ or not.
    NotCompared,
}

/// In what a file is not the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aspect {
    /// What it is: a file, a folder, a link, ...
    Kind,
    /// What is in it.
    Content,
    /// Permission bits.
    Mode,
    /// Owner or group.
    Owner,
    /// Where a symbolic link points.
    Target,
    /// Which device it stands for.
    Device,
}

/// A file on one side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileState {
    /// What it is.
    pub kind: TreeKind,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits as four octal digits, as in `0644`.
    pub mode: String,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Last modification, in seconds since 1970.
    pub modified: i64,
    /// Where a symbolic link points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<RawPath>,
}

/// Differences, as they are found. Dropping it ends the search.
#[derive(Debug)]
pub struct DiffStream {
    items: mpsc::Receiver<Result<Difference, EngineError>>,
}

impl DiffStream {
    /// The next difference; `None` when all was compared. Cancel safe.
    ///
    /// # Errors
    /// No such workspace, snapshot or path; a paused machine; a helper that does not start; a guest that cannot be
    /// reached or breaks the protocol. What came before is right, and what would have come is unknown.
    pub async fn next(&mut self) -> Result<Option<Difference>, EngineError> {
        self.items.recv().await.transpose()
    }
}

impl Engine {
    /// Begins to compare.
    pub(super) async fn diff(self: &Arc<Self>, spec: DiffSpec) -> Result<DiffStream, EngineError> {
        if !spec.path.as_bytes().starts_with(b"/") {
            return Err(EngineError::Parameters {
                reason: format!("the path \"{}\" is not absolute", spec.path),
                remedy: "begin it with a slash".to_owned(),
            });
        }
        let (found, items) = mpsc::channel(DIFFERENCES_AHEAD);
        let (begun, beginning) = oneshot::channel();
        let (engine, worker) = (Arc::clone(self), Arc::clone(self));
        tokio::spawn(async move {
            let work = async move {
                // Nobody waits for it only if the whole diff was dropped just now.
                let _ = begun.send(());
                if let Err(error) = worker.run_diff(spec, &found).await {
                    let _ = found.send(Err(error)).await;
                }
                Ok(())
            };
            if let Err(error) = engine.finish(work).await {
                tracing::warn!(error = %error.report(), "a comparison ended unexpectedly");
            }
        });
        // From here on closing the host waits for the end of it, helpers included.
        let _ = beginning.await;
        Ok(DiffStream { items })
    }

    async fn run_diff(
        &self,
        spec: DiffSpec,
        found: &mpsc::Sender<Result<Difference, EngineError>>,
    ) -> Result<(), EngineError> {
        let (caller, callers) = caller();
        let readers = async {
            tokio::join!(self.reader(&spec.from, callers.clone()), self.reader(&spec.to, callers.clone()))
        };
        tokio::pin!(readers);
        let (from, to) = tokio::select! {
            ready = &mut readers => ready,
            () = found.closed() => {
                // A helper that is being made is undone, not dropped.
                drop(caller);
                readers.await
            }
        };
        let compared = match (&from, &to) {
            (Ok(from), Ok(to)) => tokio::select! {
                compared = judge::compare(from, to, &spec, found) => compared,
                () = found.closed() => Ok(()),
            },
            _ => Ok(()),
        };
        let mut result = compared;
        for reader in [from, to] {
            match reader {
                Ok(reader) => self.put_away(reader).await,
                Err(error) => result = result.and(Err(error)),
            }
        }
        result
    }
}

/// What is the matter with a guest, named after its workspace.
fn failed(name: &str, source: GuestError) -> EngineError {
    EngineError::operation("compare the files of", name, source)
}

/// Whether there is nothing at the path that was asked for.
fn is_missing(error: &GuestError) -> bool {
    matches!(error, GuestError::Refused { code: ErrorCode::NotFound, .. })
}
