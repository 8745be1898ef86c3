//! What this storage asks of the kernel, and the answers as types.

use std::{collections::BTreeMap, io, path::PathBuf};

use super::{
    names::Tag,
    sys::{Map, Value},
};
use crate::{
    storage::StorageError,
    types::{DiskId, SnapshotId},
};
use uuid::Uuid;

/// One request or a look, each whole or not at all. Names of datasets are full ones.
pub(super) trait Kernel: Send + Sync + std::fmt::Debug {
    /// The volumes with one of these ids in their name, and what they stand on.
    fn find(&self, ids: &[Uuid], detail: Detail) -> Result<Volumes, KernelError>;

    /// All volumes with their snapshots.
    fn all(&self) -> Result<Volumes, KernelError>;

    /// Space of what was written to each dataset since the snapshot before it, everything included that was written
    /// until now: the pool writes it out first. What is not there any more is left out.
    fn written(&self, names: &[&str]) -> Result<BTreeMap<String, u64>, KernelError>;

    /// Makes an empty volume without a reservation.
    fn create_volume(&self, name: &str, tag: &Tag) -> Result<(), KernelError>;

    /// Makes a volume that begins as a snapshot, and is at least as large.
    fn clone_snapshot(&self, name: &str, origin: &str, tag: &Tag) -> Result<(), KernelError>;

    /// Takes a snapshot of a volume: of what its users' finished writes have reached.
    fn snapshot(&self, name: &str, tag: &Tag) -> Result<(), KernelError>;

    /// Changes a volume or snapshot of ours; refuses to touch any other.
    fn change(&self, name: &str, change: Change<'_>) -> Result<(), KernelError>;

    /// The device that a volume is. Waits for it to appear.
    fn device(&self, volume: &str) -> Result<PathBuf, KernelError>;
}

/// How much to look at: each is slower than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Detail {
    /// The volumes themselves.
    Volumes,
    /// With their snapshots, and the volumes that they were cloned from, down to a base.
    Histories,
    /// And the space that is left.
    Space,
}

/// A change to one dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change<'a> {
    /// Sets a user property.
    Set(&'a str, &'a str),
    /// Removes a user property. Not there: no effect.
    Clear(&'a str),
    /// Makes a clone the owner of the snapshot that it was made from, and of all older ones.
    Promote,
    /// Removes a volume that has no snapshots, or a snapshot that has no clones.
    Destroy,
}

/// Why the kernel did not do something.
#[derive(Debug, thiserror::Error)]
pub(super) enum KernelError {
    /// An error number.
    #[error("{0}")]
    Number(#[from] io::Error),
    /// Our own guard.
    #[error("it is left alone: {0}")]
    Refused(String),
    /// A program in the kernel failed.
    #[error("a program in the kernel failed: {0}")]
    Program(String),
    /// An answer that makes no sense.
    #[error("the kernel's answer lacks {0}")]
    Answer(String),
}

impl KernelError {
    pub(super) fn number(&self) -> Option<i32> {
        match self {
            Self::Number(error) => error.raw_os_error(),
            _ => None,
        }
    }

    /// It is there already.
    pub(super) fn exists(&self) -> bool {
        self.number() == Some(libc::EEXIST)
    }

    /// It is not there.
    pub(super) fn missing(&self) -> bool {
        self.number() == Some(libc::ENOENT)
    }

    /// As an error of the storage: what was being done, to what.
    pub(super) fn during(self, operation: &'static str, object: &str) -> StorageError {
        let pool = object.split(['/', '@']).next().unwrap_or(object);
        let missing = |what: String, remedy: String| StorageError::Missing { what, remedy };
        match self.number() {
            Some(libc::ENOSPC | libc::EDQUOT) => StorageError::Full {
                what: format!("{object}: `agentiso prune` frees space, `zpool add {pool} DEVICE` adds some"),
            },
            Some(libc::EAGAIN) => missing(
                format!("a pool {pool} that works (it has stopped after errors of its disks)"),
                format!("see `zpool status {pool}`, then `zpool clear {pool}`"),
            ),
            Some(libc::EROFS) => missing(
                format!("write access to the pool {pool} (it is imported read-only)"),
                format!("`zpool export {pool}`, then `zpool import {pool}`"),
            ),
            Some(libc::EPERM | libc::EACCES) => {
                missing("the right to manage ZFS".to_owned(), "run agentiso as root".to_owned())
            }
            _ => {
                let source = match self {
                    Self::Number(error) => error,
                    other => io::Error::other(other),
                };
                StorageError::Io { operation, object: object.to_owned(), source }
            }
        }
    }
}

/// What there is in the containers, of ours.
#[derive(Clone, Debug, Default)]
pub(super) struct Volumes {
    /// By name.
    pub(super) volumes: BTreeMap<String, Volume>,
    /// What can still be written, in bytes; 0 if nobody asked.
    pub(super) available: u64,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Volume {
    pub(super) tag: Tag,
    /// Only there while others stand on its snapshots.
    pub(super) removed: bool,
    /// The snapshot that was begun, or has been taken since.
    pub(super) pending: Option<SnapshotId>,
    /// The snapshot it was cloned from, where that was looked at.
    pub(super) origin: Option<String>,
    /// By full name.
    pub(super) snapshots: BTreeMap<String, Snapshot>,
}

/// A snapshot of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// None if somebody else took it.
    pub(super) tag: Option<Tag>,
    /// Only there while others stand on it.
    pub(super) removed: bool,
    /// Names of the volumes that are clones of it.
    pub(super) clones: Vec<String>,
}

impl Snapshot {
    pub(super) fn disk(&self) -> Option<DiskId> {
        self.tag.as_ref()?.disk()
    }
}

/// Reads a program's answer.
pub(super) struct Answer<'a> {
    map: &'a Map,
    /// What it is about, for complaints.
    of: &'a str,
}

impl<'a> Answer<'a> {
    pub(super) fn new(map: &'a Map, of: &'a str) -> Self {
        Self { map, of }
    }

    fn lacks(&self, what: &str) -> KernelError {
        KernelError::Answer(format!("{what} of {}", self.of))
    }

    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        match self.map.get(name) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    pub(super) fn number(&self, name: &str) -> Result<u64, KernelError> {
        match self.map.get(name) {
            Some(Value::Number(number)) => Ok(*number),
            // Programs count in signed numbers.
            Some(Value::Signed(number)) => u64::try_from(*number).map_err(|_| self.lacks(name)),
            _ => Err(self.lacks(name)),
        }
    }

    pub(super) fn list(&self, name: &str) -> Result<&'a Map, KernelError> {
        match self.map.get(name) {
            Some(Value::List(map)) => Ok(map),
            _ => Err(self.lacks(name)),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    fn tag(&self, state: &str) -> Option<Tag> {
        Tag::read(self.text("is")?, state)
    }

    /// The volumes in a list, those that are ours.
    pub(super) fn volumes(&self, state: &str) -> Result<BTreeMap<String, Volume>, KernelError> {
        let mut volumes = BTreeMap::new();
        for (name, value) in self.list("volumes")? {
            let Value::List(map) = value else { return Err(self.lacks(name)) };
            if let Some(volume) = Answer::new(map, name).volume(state)? {
                volumes.insert(name.clone(), volume);
            }
        }
        Ok(volumes)
    }

    /// A volume; `None` if it is not ours.
    fn volume(&self, state: &str) -> Result<Option<Volume>, KernelError> {
        let Some(tag) = self.tag(state) else { return Ok(None) };
        let mut snapshots = BTreeMap::new();
        for (name, value) in self.list("snapshots")? {
            let Value::List(map) = value else { return Err(self.lacks(name)) };
            let answer = Answer::new(map, name);
            let clones = answer.list("clones")?.keys().cloned().collect();
            let snapshot = Snapshot { tag: answer.tag(state), removed: answer.has("removed"), clones };
            snapshots.insert(name.clone(), snapshot);
        }
        Ok(Some(Volume {
            tag,
            removed: self.has("removed"),
            pending: self.text("pending").and_then(|id| id.parse().ok()),
            origin: self.text("origin").map(str::to_owned),
            snapshots,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::zfs::names::Subject;

    fn map<const N: usize>(pairs: [(&str, Value); N]) -> Map {
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn text(text: impl Into<String>) -> Value {
        Value::Text(text.into())
    }

    fn tag() -> Tag {
        Tag { subject: Subject::Disk(DiskId::random()), bytes: 5, order: 7, made_from: None }
    }

    fn snapshot(tag: &Tag) -> Map {
        map([("is", text(tag.write("s"))), ("clones", Value::List(map([("tank/c", Value::Bool(true))])))])
    }

    #[test]
    fn volume_is_read_with_its_snapshots() {
        let (tag, pending) = (tag(), SnapshotId::random());
        let foreign = map([("clones", Value::List(Map::new()))]);
        let snapshots =
            map([("tank/a@s", Value::List(snapshot(&tag))), ("tank/a@daily", Value::List(foreign))]);
        let volume = map([
            ("is", text(tag.write("s"))),
            ("pending", text(pending.to_string())),
            ("origin", text("tank/b@s")),
            ("snapshots", Value::List(snapshots)),
        ]);
        let answer = map([("volumes", Value::List(map([("tank/a", Value::List(volume))])))]);

        let volumes = Answer::new(&answer, "tank").volumes("s").unwrap();
        let of_others = Answer::new(&answer, "tank").volumes("another").unwrap();

        let volume = &volumes["tank/a"];
        assert_eq!((&volume.tag, volume.pending, volume.removed), (&tag, Some(pending), false));
        assert_eq!(volume.origin.as_deref(), Some("tank/b@s"));
        assert_eq!(volume.snapshots["tank/a@s"].clones, ["tank/c"]);
        assert_eq!(volume.snapshots["tank/a@s"].disk(), tag.disk());
        assert_eq!(volume.snapshots["tank/a@daily"].tag, None);
        assert_eq!(of_others, BTreeMap::new());
    }

    #[test]
    fn answer_that_lacks_something_says_what() {
        let volume = map([("is", text(tag().write("s")))]);
        let answer = map([("volumes", Value::List(map([("tank/a", Value::List(volume))])))]);
        let error = Answer::new(&answer, "tank").volumes("s").unwrap_err().to_string();
        assert!(error.contains("snapshots of tank/a"), "{error}");
        let negative = map([("available", Value::Signed(-1))]);
        assert!(Answer::new(&negative, "tank").number("available").is_err());
    }

    #[test]
    fn errors_name_the_pool_and_the_remedy() {
        let during = |number| {
            KernelError::from(io::Error::from_raw_os_error(number)).during("make", "tank/agentiso/base/x@y")
        };
        for (number, remedy) in [
            (libc::ENOSPC, "zpool add tank"),
            (libc::EAGAIN, "zpool clear tank"),
            (libc::EROFS, "zpool import tank"),
            (libc::EPERM, "as root"),
        ] {
            assert!(during(number).to_string().contains(remedy), "{}", during(number));
        }
        assert!(matches!(during(libc::EIO), StorageError::Io { operation: "make", .. }));
    }
}
