//! What datasets are called, and the user properties that say what they are.
//!
//! A name is only a name: which disk or base a volume is, whose a snapshot is, say the properties.

use std::collections::BTreeMap;

use crate::{
    storage::StorageError,
    types::{BaseId, DiskId, SnapshotId},
};

/// What the names of our user properties begin with.
pub(super) const PREFIX: &str = "agentiso:";

/// The state folder that a dataset belongs to. On each dataset of ours, set there and not inherited.
pub(super) const STATE: &str = "state";
/// The base that a volume is, or that a snapshot is the sealed content of.
pub(super) const BASE: &str = "base";
/// The disk that a volume is, or that a snapshot is of.
pub(super) const DISK: &str = "disk";
/// On a disk's volume: the snapshot it was made from, if not from a base.
pub(super) const MADE_FROM: &str = "made-from";
/// On a disk's volume: the snapshot that was begun.
pub(super) const PENDING: &str = "pending";
/// On a volume or snapshot that was removed, and is only there while others are made from it.
pub(super) const REMOVED: &str = "removed";

/// Longest name that ZFS takes, in bytes, without its end.
const MAX_NAME_BYTES: usize = 255;
/// What our own names add to that of the dataset: `/workspaces/UUID@UUID`.
const ADDED_BYTES: usize = 12 + 36 + 1 + 36;

/// Name of a base's snapshot.
pub(super) const SEALED: &str = "sealed";

/// Tags of a dataset, without their prefix.
pub(super) type Tags = BTreeMap<String, String>;

/// The dataset that everything is below, as in `tank/agentiso`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Root(String);

impl Root {
    /// Checks a name.
    pub(super) fn parse(name: &str) -> Result<Self, StorageError> {
        let valid_part = |part: &str| {
            !part.is_empty()
                && part != "."
                && part != ".."
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
        };
        if name.contains('/')
            && name.split('/').all(valid_part)
            && name.starts_with(|first: char| first.is_ascii_alphabetic())
            && name.len() + ADDED_BYTES <= MAX_NAME_BYTES
        {
            return Ok(Self(name.to_owned()));
        }
        Err(StorageError::Missing {
            what: format!("a dataset that could be named {name:?}"),
            remedy: format!(
                "name one below a pool, as in tank/agentiso: letters, digits and -_.: only, at most {} bytes",
                MAX_NAME_BYTES - ADDED_BYTES
            ),
        })
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The pool it is in.
    pub(super) fn pool(&self) -> &str {
        self.0.split('/').next().unwrap_or(&self.0)
    }

    /// The dataset that one kind of volume is in.
    pub(super) fn container(&self, container: Container) -> String {
        format!("{}/{}", self.0, container.name())
    }

    /// A volume.
    pub(super) fn volume(&self, container: Container, id: impl std::fmt::Display) -> String {
        format!("{}/{}/{id}", self.0, container.name())
    }
}

/// What is below the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Container {
    Bases,
    /// Disks that were made from a base.
    Workspaces,
    /// Disks that were made from a snapshot.
    Forks,
}

impl Container {
    pub(super) const ALL: [Self; 3] = [Self::Bases, Self::Workspaces, Self::Forks];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bases => "base",
            Self::Workspaces => "workspaces",
            Self::Forks => "forks",
        }
    }
}

/// A tag's full name.
pub(super) fn property(tag: &str) -> String {
    format!("{PREFIX}{tag}")
}

/// The tags of a base's volume and its snapshot.
pub(super) fn base_tags(state: &str, base: BaseId) -> Tags {
    tags(state, [(BASE, base.to_string())])
}

/// The tags of a disk's volume.
pub(super) fn disk_tags(state: &str, disk: DiskId, made_from: Option<SnapshotId>) -> Tags {
    let made_from = made_from.map(|snapshot| (MADE_FROM, snapshot.to_string()));
    tags(state, std::iter::once((DISK, disk.to_string())).chain(made_from))
}

/// The tags of a disk's snapshot.
pub(super) fn snapshot_tags(state: &str, disk: DiskId) -> Tags {
    tags(state, [(DISK, disk.to_string())])
}

fn tags(state: &str, rest: impl IntoIterator<Item = (&'static str, String)>) -> Tags {
    let rest = rest.into_iter().map(|(tag, value)| (tag.to_owned(), value));
    std::iter::once((STATE.to_owned(), state.to_owned())).chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_zfs_takes_are_taken() {
        for name in ["tank/agentiso", "p/a/b.c", "rpool-1/vm_s:x"] {
            assert_eq!(Root::parse(name).unwrap().as_str(), name);
        }
        assert_eq!(Root::parse("tank/a/b").unwrap().pool(), "tank");
        let longest = format!("t/{}", "a".repeat(MAX_NAME_BYTES - ADDED_BYTES - 2));
        assert!(Root::parse(&longest).is_ok());
    }

    #[test]
    fn other_names_are_refused() {
        let too_long = format!("t/{}", "a".repeat(MAX_NAME_BYTES - ADDED_BYTES - 1));
        let names = [
            "", "tank", "/a", "tank/", "tank//a", "tank/..", "tank/.", "tank/a@b", "tank/a#b", "tank/a b",
            "tank/a%b", "1tank/a", "tank/ä", "tank/a\n", "-t/a", &too_long,
        ];
        for name in names {
            assert!(matches!(Root::parse(name), Err(StorageError::Missing { .. })), "{name:?}");
        }
    }

    #[test]
    fn longest_name_of_ours_fits() {
        let root = Root::parse(&format!("t/{}", "a".repeat(MAX_NAME_BYTES - ADDED_BYTES - 2))).unwrap();
        let name =
            format!("{}@{}", root.volume(Container::Workspaces, DiskId::random()), SnapshotId::random());
        assert_eq!(name.len(), MAX_NAME_BYTES);
    }
}
