//! What this storage asks of the kernel, and the answers as types.

use std::{collections::BTreeMap, io, path::PathBuf};

use super::{
    names::{self, Tags},
    sys::{Map, Value},
};
use crate::{
    storage::StorageError,
    types::{BaseId, DiskId, SnapshotId},
};

/// One request or a look, each whole or not at all. Names of datasets are full ones.
pub(super) trait Kernel: Send + Sync + std::fmt::Debug {
    /// All volumes in the containers. `settled` ones show the space of everything written so far, which makes the pool
    /// write it out; else what was written in the last seconds may not be counted yet.
    fn volumes(&self, settled: bool) -> Result<Volumes, KernelError>;

    /// Makes an empty volume without a reservation.
    fn create_volume(&self, name: &str, bytes: u64, tags: &Tags) -> Result<(), KernelError>;

    /// Makes a volume that begins as a snapshot, and is at least as large.
    fn clone_snapshot(&self, name: &str, origin: &str, bytes: u64, tags: &Tags) -> Result<(), KernelError>;

    /// Takes a snapshot of a volume: of what its users' finished writes have reached.
    fn snapshot(&self, name: &str, tags: &Tags) -> Result<(), KernelError>;

    /// Changes a volume or snapshot of ours; refuses to touch any other.
    fn change(&self, name: &str, change: Change<'_>) -> Result<(), KernelError>;

    /// The device that a volume is. Waits for it to appear.
    fn device(&self, volume: &str) -> Result<PathBuf, KernelError>;
}

/// A change to one dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change<'a> {
    /// Sets a tag.
    Set(&'a str, &'a str),
    /// Removes a tag. Not there: no effect.
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
                what: format!(
                    "{object}: free space in the pool {pool}, as with `agentiso prune`, or add a disk to it"
                ),
            },
            Some(libc::EAGAIN) => missing(
                format!("the pool {pool}, which has stopped all work after errors of its disks,"),
                format!("see `zpool status {pool}`, then `zpool clear {pool}`"),
            ),
            Some(libc::EROFS) => missing(
                format!("write access to the pool {pool}, which is imported read-only,"),
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

/// What there is in the containers.
#[derive(Clone, Debug, Default)]
pub(super) struct Volumes {
    /// By name.
    pub(super) volumes: BTreeMap<String, Volume>,
    /// What can still be written, in bytes.
    pub(super) available: u64,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Volume {
    pub(super) tags: Tags,
    /// The snapshot it was cloned from.
    pub(super) origin: Option<String>,
    /// Size of the disk it shows.
    pub(super) bytes: u64,
    /// The pool's count of transactions when it was made.
    pub(super) created: u64,
    /// Space of what was written since its newest snapshot, or its origin.
    pub(super) written: u64,
    /// By full name.
    pub(super) snapshots: BTreeMap<String, Snapshot>,
}

/// A snapshot of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub(super) tags: Tags,
    /// Names of the volumes that are clones of it.
    pub(super) clones: Vec<String>,
    pub(super) bytes: u64,
    pub(super) created: u64,
    /// Space of what was written between the next older snapshot, or the origin, and this.
    pub(super) written: u64,
}

/// An id in a tag; `None` if there is no such tag, or it is no id.
fn id<T: std::str::FromStr>(tags: &Tags, tag: &str) -> Option<T> {
    tags.get(tag)?.parse().ok()
}

impl Volume {
    pub(super) fn base(&self) -> Option<BaseId> {
        id(&self.tags, names::BASE)
    }

    pub(super) fn disk(&self) -> Option<DiskId> {
        id(&self.tags, names::DISK)
    }

    pub(super) fn made_from(&self) -> Option<SnapshotId> {
        id(&self.tags, names::MADE_FROM)
    }

    pub(super) fn pending(&self) -> Option<SnapshotId> {
        id(&self.tags, names::PENDING)
    }

    pub(super) fn is_removed(&self) -> bool {
        self.tags.contains_key(names::REMOVED)
    }
}

impl Snapshot {
    pub(super) fn base(&self) -> Option<BaseId> {
        id(&self.tags, names::BASE)
    }

    pub(super) fn disk(&self) -> Option<DiskId> {
        id(&self.tags, names::DISK)
    }

    pub(super) fn is_removed(&self) -> bool {
        self.tags.contains_key(names::REMOVED)
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

    pub(super) fn is_true(&self, name: &str) -> bool {
        self.map.get(name) == Some(&Value::Bool(true))
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

    pub(super) fn tags(&self) -> Result<Tags, KernelError> {
        let tags = self.list("tags")?.iter();
        let text = |(tag, value): (&String, &Value)| match value {
            Value::Text(value) => Some((tag.clone(), value.clone())),
            _ => None,
        };
        Ok(tags.filter_map(text).collect())
    }

    pub(super) fn volume(&self) -> Result<Volume, KernelError> {
        let mut snapshots = BTreeMap::new();
        for (name, value) in self.list("snapshots")? {
            let Value::List(map) = value else { return Err(self.lacks(name)) };
            snapshots.insert(name.clone(), Answer::new(map, name).snapshot()?);
        }
        Ok(Volume {
            tags: self.tags()?,
            origin: self.text("origin").filter(|origin| !origin.is_empty()).map(str::to_owned),
            bytes: self.number("bytes")?,
            created: self.number("created")?,
            written: self.number("written")?,
            snapshots,
        })
    }

    fn snapshot(&self) -> Result<Snapshot, KernelError> {
        Ok(Snapshot {
            tags: self.tags()?,
            clones: self.list("clones")?.keys().cloned().collect(),
            bytes: self.number("bytes")?,
            created: self.number("created")?,
            written: self.number("written")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map<const N: usize>(pairs: [(&str, Value); N]) -> Map {
        pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn snapshot() -> Map {
        map([
            ("tags", Value::List(map([("disk", Value::Text("no id".to_owned()))]))),
            ("clones", Value::List(map([("tank/a", Value::Bool(true))]))),
            ("bytes", Value::Signed(5)),
            ("created", Value::Number(7)),
            ("written", Value::Signed(0)),
        ])
    }

    #[test]
    fn volume_is_read_with_its_snapshots() {
        let disk = DiskId::random();
        let mut answer = snapshot();
        answer.insert("tags".to_owned(), Value::List(map([("disk", Value::Text(disk.to_string()))])));
        answer.insert("origin".to_owned(), Value::Text("tank/b@s".to_owned()));
        answer.insert("snapshots".to_owned(), Value::List(map([("tank/a@s", Value::List(snapshot()))])));

        let volume = Answer::new(&answer, "tank/a").volume().unwrap();

        assert_eq!((volume.disk(), volume.base(), volume.bytes, volume.created), (Some(disk), None, 5, 7));
        assert_eq!(volume.origin.as_deref(), Some("tank/b@s"));
        let snapshot = &volume.snapshots["tank/a@s"];
        assert_eq!((snapshot.clones.as_slice(), snapshot.disk()), (["tank/a".to_owned()].as_slice(), None));
    }

    #[test]
    fn answer_that_lacks_something_says_what() {
        for missing in ["tags", "clones", "bytes", "created", "written"] {
            let mut answer = snapshot();
            answer.remove(missing);
            let error = Answer::new(&answer, "tank/a@s").snapshot().unwrap_err().to_string();
            assert!(error.contains(missing) && error.contains("tank/a@s"), "{error}");
        }
        let mut negative = snapshot();
        negative.insert("bytes".to_owned(), Value::Signed(-1));
        assert!(Answer::new(&negative, "tank/a@s").snapshot().is_err());
    }

    #[test]
    fn errors_name_the_pool_and_the_remedy() {
        let during = |number| {
            KernelError::from(io::Error::from_raw_os_error(number)).during("make", "tank/agentiso/base/x@y")
        };
        for (number, remedy) in [
            (libc::ENOSPC, "add a disk"),
            (libc::EAGAIN, "zpool clear tank"),
            (libc::EROFS, "zpool import tank"),
            (libc::EPERM, "as root"),
        ] {
            assert!(during(number).to_string().contains(remedy), "{}", during(number));
        }
        assert!(matches!(during(libc::EIO), StorageError::Io { operation: "make", .. }));
    }
}
