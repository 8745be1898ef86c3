//! Two walks, side by side.

use std::cmp::Ordering;

use crate::channel::client::{GuestError, RawPath, TreeEntry, TreeKind, TreeStream};

/// Entries in the order of their paths.
pub(super) trait Entries: Send {
    /// The next one.
    fn next(&mut self) -> impl Future<Output = Result<Option<TreeEntry>, GuestError>> + Send;
}

/// Nothing at all where there is no walk.
impl Entries for Option<TreeStream> {
    async fn next(&mut self) -> Result<Option<TreeEntry>, GuestError> {
        match self {
            Some(walk) => walk.next().await,
            None => Ok(None),
        }
    }
}

/// Which of the two an error came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    From,
    To,
}

/// What is at one path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pair {
    /// Only on the first side.
    From(TreeEntry),
    /// Only on the second.
    To(TreeEntry),
    /// On both.
    Both(TreeEntry, TreeEntry),
    /// On both, and something else is mounted there on one of them. What is below it is passed over.
    Covered(TreeEntry, TreeEntry),
}

/// Brings the entries of two walks together. Holds one of each.
#[derive(Debug)]
pub(super) struct Merge<F, T> {
    from: F,
    to: T,
    next_from: Option<TreeEntry>,
    next_to: Option<TreeEntry>,
    /// Below this nothing is compared.
    covered: Option<RawPath>,
}

impl<F: Entries, T: Entries> Merge<F, T> {
    /// Begins with the first entries, which have been taken already.
    pub(super) fn new(from: F, first_from: Option<TreeEntry>, to: T, first_to: Option<TreeEntry>) -> Self {
        Self { from, to, next_from: first_from, next_to: first_to, covered: None }
    }

    /// What is at the next path; `None` at the end of both.
    pub(super) async fn next(&mut self) -> Result<Option<Pair>, (Side, GuestError)> {
        loop {
            let order = match (&self.next_from, &self.next_to) {
                (None, None) => return Ok(None),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(from), Some(to)) => from.path.cmp(&to.path),
            };
            let from = if order.is_le() { self.take_from().await? } else { None };
            let to = if order.is_ge() { self.take_to().await? } else { None };
            let pair = match (from, to) {
                (Some(from), Some(to)) => match (from.kind, to.kind) {
                    // What is mounted is not on the disk, and what it covers is as it was when that was mounted.
                    (TreeKind::Mount, TreeKind::Mount) => continue,
                    (TreeKind::Mount, _) | (_, TreeKind::Mount) => {
                        self.covered = Some(from.path.clone());
                        return Ok(Some(Pair::Covered(from, to)));
                    }
                    _ => Pair::Both(from, to),
                },
                (Some(from), None) => Pair::From(from),
                (None, Some(to)) => Pair::To(to),
                (None, None) => continue,
            };
            let (Pair::From(entry) | Pair::To(entry) | Pair::Both(entry, _) | Pair::Covered(entry, _)) =
                &pair;
            if !self.covered.as_ref().is_some_and(|covered| entry.path.is_within(covered)) {
                self.covered = None;
                return Ok(Some(pair));
            }
        }
    }

    async fn take_from(&mut self) -> Result<Option<TreeEntry>, (Side, GuestError)> {
        let next = self.from.next().await.map_err(|error| (Side::From, error))?;
        Ok(std::mem::replace(&mut self.next_from, next))
    }

    async fn take_to(&mut self) -> Result<Option<TreeEntry>, (Side, GuestError)> {
        let next = self.to.next().await.map_err(|error| (Side::To, error))?;
        Ok(std::mem::replace(&mut self.next_to, next))
    }
}

#[cfg(test)]
mod tests {
    use super::super::judge::tests::entry;
    use super::*;

    struct Listed(std::vec::IntoIter<TreeEntry>);

    impl Entries for Listed {
        async fn next(&mut self) -> Result<Option<TreeEntry>, GuestError> {
            Ok(self.0.next())
        }
    }

    fn listed(paths: &[&str]) -> Listed {
        let entry = |path: &&str| match path.strip_suffix('!') {
            Some(mount) => TreeEntry { kind: TreeKind::Mount, ..entry(mount) },
            None => entry(path),
        };
        Listed(paths.iter().map(entry).collect::<Vec<_>>().into_iter())
    }

    async fn merged(from: &[&str], to: &[&str]) -> Vec<String> {
        let (mut from, mut to) = (listed(from), listed(to));
        let (first_from, first_to) = (from.next().await.unwrap(), to.next().await.unwrap());
        let mut merge = Merge::new(from, first_from, to, first_to);
        let mut pairs = Vec::new();
        while let Some(pair) = merge.next().await.unwrap() {
            pairs.push(match pair {
                Pair::From(entry) => format!("-{}", entry.path),
                Pair::To(entry) => format!("+{}", entry.path),
                Pair::Both(entry, _) => format!("={}", entry.path),
                Pair::Covered(entry, _) => format!("?{}", entry.path),
            });
        }
        pairs
    }

    #[tokio::test]
    async fn paths_meet_in_order() {
        assert_eq!(
            merged(&["", "a", "a/b", "a-b", "z"], &["", "a", "a/c", "a-b", "b"]).await,
            ["=", "=a", "-a/b", "+a/c", "=a-b", "+b", "-z"]
        );
        assert_eq!(merged(&[], &["", "a"]).await, ["+", "+a"]);
        assert_eq!(merged(&["", "a"], &[]).await, ["-", "-a"]);
        assert_eq!(merged(&[], &[]).await, Vec::<String>::new());
    }

    #[tokio::test]
    async fn what_a_mount_covers_is_not_compared() {
        assert_eq!(merged(&["", "m!", "n"], &["", "m!", "n"]).await, ["=", "=n"]);
        assert_eq!(merged(&["", "m!", "m2"], &["", "m", "m/x", "m/x/y", "m2"]).await, ["=", "?m", "=m2"]);
        assert_eq!(merged(&["", "m", "m/x"], &["", "m!"]).await, ["=", "?m"]);
    }
}
