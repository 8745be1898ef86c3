//! What datasets are called, and the user properties that say what they are.
//!
//! Names hold ids so that people and quick searches find them. What a volume or snapshot is, says its tag.

use crate::{
    storage::StorageError,
    types::{BaseId, DiskId, SnapshotId},
};

/// On the file systems: the state folder that they belong to.
pub(super) const STATE: &str = "agentiso:state";
/// On each volume and snapshot of ours, set there and not inherited: a [`Tag`].
pub(super) const IS: &str = "agentiso:is";
/// On a disk's volume: the snapshot that was begun.
pub(super) const PENDING: &str = "agentiso:pending";
/// On a volume or snapshot that was removed, and is only there while others are made from it.
pub(super) const REMOVED: &str = "agentiso:removed";

/// Longest name that ZFS takes, in bytes, without its end.
const MAX_NAME_BYTES: usize = 255;
/// What our own names add to that of the dataset: `/workspaces/UUID-XXXXXXXX@UUID`.
const ADDED_BYTES: usize = 12 + 36 + 9 + 1 + 36;

/// Name of a base's snapshot.
pub(super) const SEALED: &str = "sealed";

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

    /// A volume beside the one that has the id alone for its name.
    pub(super) fn another_volume(&self, container: Container, id: impl std::fmt::Display) -> String {
        let random = uuid::Uuid::new_v4().simple().to_string();
        format!("{}-{}", self.volume(container, id), &random[..8])
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

/// What a volume or snapshot is. Written once, together with the dataset, and never changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) subject: Subject,
    /// Size of the disk it shows.
    pub(super) bytes: u64,
    /// Larger than that of everything of the same disk that was there before: nanoseconds since 1970, as long as no
    /// clock is set back.
    pub(super) order: u64,
    /// The snapshot that a disk was made from, if not from a base.
    pub(super) made_from: Option<SnapshotId>,
}

/// Whose content it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    Base(BaseId),
    Disk(DiskId),
}

/// What every tag of a state folder begins with.
pub(super) fn ours(state: &str) -> String {
    format!("state={state} ")
}

impl Tag {
    /// The property's value.
    pub(super) fn write(&self, state: &str) -> String {
        let subject = match self.subject {
            Subject::Base(base) => format!("base={base}"),
            Subject::Disk(disk) => format!("disk={disk}"),
        };
        let made_from = self.made_from.map(|snapshot| format!(" made-from={snapshot}")).unwrap_or_default();
        format!("{}{subject} bytes={} order={}{made_from}", ours(state), self.bytes, self.order)
    }

    /// Reads the property's value; `None` if it is of another state folder, or makes no sense.
    pub(super) fn read(value: &str, state: &str) -> Option<Self> {
        let (mut subject, mut bytes, mut order, mut made_from) = (None, None, None, None);
        for word in value.strip_prefix(&ours(state))?.split(' ') {
            let (key, value) = word.split_once('=')?;
            match key {
                "base" => subject = Some(Subject::Base(value.parse().ok()?)),
                "disk" => subject = Some(Subject::Disk(value.parse().ok()?)),
                "bytes" => bytes = Some(value.parse().ok()?),
                "order" => order = Some(value.parse().ok()?),
                "made-from" => made_from = Some(value.parse().ok()?),
                _ => return None,
            }
        }
        Some(Self { subject: subject?, bytes: bytes?, order: order?, made_from })
    }

    pub(super) fn base(&self) -> Option<BaseId> {
        match self.subject {
            Subject::Base(base) => Some(base),
            Subject::Disk(_) => None,
        }
    }

    pub(super) fn disk(&self) -> Option<DiskId> {
        match self.subject {
            Subject::Disk(disk) => Some(disk),
            Subject::Base(_) => None,
        }
    }
}

/// The next place in an order: after `last`, and now if that is after it.
pub(super) fn order_after(last: u64) -> u64 {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    u64::try_from(now).unwrap_or(0).max(last.saturating_add(1))
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
    fn tag_is_read_as_it_was_written() {
        let base =
            Tag { subject: Subject::Base(BaseId::random()), bytes: 0, order: u64::MAX, made_from: None };
        let disk = Tag {
            subject: Subject::Disk(DiskId::random()),
            bytes: 1 << 40,
            order: 0,
            made_from: Some(SnapshotId::random()),
        };
        for tag in [base, disk] {
            assert_eq!(Tag::read(&tag.write("s1"), "s1"), Some(tag));
        }
    }

    #[test]
    fn tag_of_others_is_none_of_ours() {
        let tag =
            Tag { subject: Subject::Base(BaseId::random()), bytes: 1, order: 2, made_from: None }.write("s1");
        let values = [
            "",
            "state=s1",
            "state=s1 ",
            "state=s1 disk=x bytes=1 order=2",
            &format!("{tag} more=1"),
            &tag[1..],
        ];
        for value in values {
            assert_eq!(Tag::read(value, "s1"), None, "{value:?}");
        }
        assert_eq!(Tag::read(&tag, "s"), None);
        assert_eq!(Tag::read(&tag, "s11"), None);
    }

    #[test]
    fn order_goes_on_when_the_clock_was_set_back() {
        assert_eq!(order_after(u64::MAX - 1), u64::MAX);
        assert!(order_after(5) > 1 << 60);
    }

    #[test]
    fn longest_name_of_ours_fits() {
        let root = Root::parse(&format!("t/{}", "a".repeat(MAX_NAME_BYTES - ADDED_BYTES - 2))).unwrap();
        let volume = root.another_volume(Container::Workspaces, DiskId::random());
        let name = format!("{volume}@{}", SnapshotId::random());
        assert_eq!(name.len(), MAX_NAME_BYTES);
    }
}
