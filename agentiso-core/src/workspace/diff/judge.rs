//! Whether two entries of one path are the same file.

use std::collections::VecDeque;

use agentiso_guest::limits::MAX_HASHED_FILES;
use tokio::sync::mpsc;

use super::merge::{Merge, Pair, Side};
use super::reader::Reader;
use super::{Aspect, Change, DiffSpec, Difference, FileState, failed, is_missing};
use crate::channel::client::{MAX_HASHED_BYTES, RawPath, TreeEntry, TreeKind, TreeStream};
use crate::error::EngineError;

/// Findings that wait for the hashes of others before them.
const MAX_WAITING: usize = 4096;

/// Bytes of paths in one request for hashes.
const MAX_HASH_REQUEST_BYTES: usize = 256 * 1024;

/// What size and times say of a path.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    /// In what it certainly differs.
    what: Vec<Aspect>,
    /// Whether the content must be looked at.
    in_doubt: bool,
}

fn judge(from: &TreeEntry, to: &TreeEntry) -> Verdict {
    if from.kind != to.kind {
        return Verdict { what: vec![Aspect::Kind], in_doubt: false };
    }
    let mut what = Vec::new();
    let mut in_doubt = false;
    if from.kind == TreeKind::File {
        // A program can set the time of modification, and none can set that of the last change.
        let is_untouched = from.modified == to.modified && from.changed == to.changed;
        if from.size != to.size {
            what.push(Aspect::Content);
        } else if from.size > 0 && (!is_untouched || from.fresh || to.fresh) {
            match from.size > MAX_HASHED_BYTES {
                // Too long to be read to its end. Said once too often is better than not said.
                true => what.push(Aspect::Content),
                false => in_doubt = true,
            }
        }
    }
    let differs = [
        (from.mode != to.mode, Aspect::Mode),
        ((from.uid, from.gid) != (to.uid, to.gid), Aspect::Owner),
        (from.target != to.target, Aspect::Target),
        (from.device != to.device, Aspect::Device),
    ];
    what.extend(differs.into_iter().filter(|(differs, _)| *differs).map(|(_, aspect)| aspect));
    Verdict { what, in_doubt }
}

/// Compares all that two readers find at a path.
pub(super) async fn compare(
    from: &Reader,
    to: &Reader,
    spec: &DiffSpec,
    found: &mpsc::Sender<Result<Difference, EngineError>>,
) -> Result<(), EngineError> {
    let path = &spec.path;
    let ((from_walk, first_from), (to_walk, first_to)) =
        tokio::try_join!(begin(from, path), begin(to, path))?;
    if first_from.is_none() && first_to.is_none() {
        return Err(EngineError::Parameters {
            reason: format!("there is no {path} in {}, and none in {}", from.name, to.name),
            remedy: "give a path that is there in one of them, or none for all files".to_owned(),
        });
    }
    let mut merge = Merge::new(from_walk, first_from, to_walk, first_to);
    let mut queue = Queue { from, to, path, found, waiting: VecDeque::new(), doubts: 0, doubt_bytes: 0 };
    loop {
        let pair = merge.next().await.map_err(|(side, error)| match side {
            Side::From => failed(&from.name, error),
            Side::To => failed(&to.name, error),
        })?;
        match pair {
            Some(pair) => queue.add(pair).await?,
            None => return queue.flush().await,
        }
    }
}

/// Begins a walk: its stream and its first entry, or nothing if there is nothing at the path.
async fn begin(
    reader: &Reader,
    path: &RawPath,
) -> Result<(Option<TreeStream>, Option<TreeEntry>), EngineError> {
    let mut walk = reader.client.walk(path.clone()).await.map_err(|error| failed(&reader.name, error))?;
    match walk.next().await {
        Ok(first) => Ok((Some(walk), first)),
        Err(error) if is_missing(&error) => Ok((None, None)),
        Err(error) => Err(failed(&reader.name, error)),
    }
}

/// A finding that waits its turn.
struct Waiting {
    difference: Difference,
    /// The file whose content decides, seen from where the walks began.
    doubt: Option<RawPath>,
}

/// Findings in order. Those in doubt are asked about together, and what comes after the first of them waits with them.
struct Queue<'a> {
    from: &'a Reader,
    to: &'a Reader,
    path: &'a RawPath,
    found: &'a mpsc::Sender<Result<Difference, EngineError>>,
    waiting: VecDeque<Waiting>,
    doubts: usize,
    doubt_bytes: usize,
}

impl Queue<'_> {
    async fn add(&mut self, pair: Pair) -> Result<(), EngineError> {
        let (difference, doubt) = match pair {
            Pair::From(entry) => (self.difference(Change::Deleted, Some(entry), None, Vec::new()), None),
            Pair::To(entry) => (self.difference(Change::Added, None, Some(entry), Vec::new()), None),
            Pair::Covered(from, to) => {
                (self.difference(Change::NotCompared, Some(from), Some(to), Vec::new()), None)
            }
            Pair::Both(from, to) => {
                let Verdict { what, in_doubt } = judge(&from, &to);
                if what.is_empty() && !in_doubt {
                    return Ok(());
                }
                let doubt = in_doubt.then(|| from.path.clone());
                (self.difference(Change::Modified, Some(from), Some(to), what), doubt)
            }
        };
        if let Some(doubt) = &doubt {
            self.doubts += 1;
            self.doubt_bytes += doubt.as_bytes().len();
        }
        self.waiting.push_back(Waiting { difference, doubt });
        if self.doubts == 0
            || self.doubts == MAX_HASHED_FILES
            || self.doubt_bytes >= MAX_HASH_REQUEST_BYTES
            || self.waiting.len() >= MAX_WAITING
        {
            self.flush().await?;
        }
        Ok(())
    }

    /// Has the contents in doubt compared and passes on all that waits.
    async fn flush(&mut self) -> Result<(), EngineError> {
        let doubts: Vec<RawPath> = self.waiting.iter().filter_map(|waiting| waiting.doubt.clone()).collect();
        (self.doubts, self.doubt_bytes) = (0, 0);
        let mut same = Vec::new();
        if !doubts.is_empty() {
            let ask = async |reader: &Reader| {
                let hashes = reader.client.hash_files(self.path.clone(), doubts.clone()).await;
                hashes.map_err(|error| failed(&reader.name, error))
            };
            let (from, to) = tokio::try_join!(ask(self.from), ask(self.to))?;
            // A file that went away meanwhile is not what it was.
            same = from.iter().zip(&to).map(|(from, to)| from.is_some() && from == to).collect();
        }
        let mut same = same.into_iter();
        for Waiting { mut difference, doubt } in std::mem::take(&mut self.waiting) {
            if doubt.is_some() && same.next() != Some(true) {
                difference.what.insert(0, Aspect::Content);
            }
            if difference.change == Change::Modified && difference.what.is_empty() {
                continue;
            }
            // Nobody listens any more: whoever waits for this notices.
            if self.found.send(Ok(difference)).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn difference(
        &self,
        change: Change,
        old: Option<TreeEntry>,
        new: Option<TreeEntry>,
        what: Vec<Aspect>,
    ) -> Difference {
        let below = new.as_ref().or(old.as_ref()).map(|entry| entry.path.clone()).unwrap_or_default();
        Difference { change, path: joined(self.path, &below), what, old: old.map(state), new: new.map(state) }
    }
}

/// The absolute path of an entry.
fn joined(folder: &RawPath, below: &RawPath) -> RawPath {
    if below.as_bytes().is_empty() {
        return folder.clone();
    }
    let folder = folder.as_bytes().strip_suffix(b"/").unwrap_or(folder.as_bytes());
    RawPath::new([folder, b"/", below.as_bytes()].concat())
}

fn state(entry: TreeEntry) -> FileState {
    FileState {
        kind: entry.kind,
        size: entry.size,
        mode: format!("{:04o}", entry.mode),
        uid: entry.uid,
        gid: entry.gid,
        modified: entry.modified.0,
        target: entry.target,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::channel::client::FileTime;

    pub(in super::super) fn entry(path: &str) -> TreeEntry {
        TreeEntry {
            path: RawPath::new(path),
            kind: TreeKind::File,
            size: 5,
            mode: 0o644,
            uid: 0,
            gid: 0,
            modified: FileTime(1000, 5),
            changed: FileTime(1000, 6),
            fresh: false,
            target: None,
            device: None,
        }
    }

    fn verdict(from: &TreeEntry, to: &TreeEntry) -> (Vec<Aspect>, bool) {
        let Verdict { what, in_doubt } = judge(from, to);
        (what, in_doubt)
    }

    #[test]
    fn untouched_file_is_the_same_and_anything_else_is_in_doubt() {
        let old = entry("f");

        assert_eq!(verdict(&old, &old), (vec![], false));
        for new in [
            TreeEntry { modified: FileTime(1000, 6), ..old.clone() },
            TreeEntry { modified: FileTime(999, 5), ..old.clone() },
            TreeEntry { changed: FileTime(1001, 6), ..old.clone() },
            TreeEntry { fresh: true, ..old.clone() },
        ] {
            assert_eq!(verdict(&old, &new), (vec![], true), "{new:?}");
            assert_eq!(verdict(&new, &old), (vec![], true), "{new:?}");
        }
    }

    #[test]
    fn another_size_needs_no_look_and_an_empty_file_has_nothing_to_look_at() {
        let old = entry("f");
        let longer = TreeEntry { size: 6, fresh: true, ..old.clone() };
        let empty = TreeEntry { size: 0, ..old.clone() };
        let other_empty = TreeEntry { modified: FileTime(7, 7), ..empty.clone() };
        let endless = TreeEntry { size: MAX_HASHED_BYTES + 1, ..old.clone() };
        let other_endless = TreeEntry { fresh: true, ..endless.clone() };

        assert_eq!(verdict(&old, &longer), (vec![Aspect::Content], false));
        assert_eq!(verdict(&empty, &other_empty), (vec![], false));
        assert_eq!(verdict(&endless, &endless), (vec![], false));
        assert_eq!(verdict(&endless, &other_endless), (vec![Aspect::Content], false));
    }

    #[test]
    fn mode_and_owner_alone_are_a_modification() {
        let old = entry("f");
        let new = TreeEntry { mode: 0o600, gid: 7, changed: FileTime(2000, 0), ..old.clone() };

        assert_eq!(verdict(&old, &new), (vec![Aspect::Mode, Aspect::Owner], true));
    }

    #[test]
    fn folders_are_compared_without_times_and_sizes() {
        let old = TreeEntry { kind: TreeKind::Directory, ..entry("d") };
        let new = TreeEntry { size: 4096, modified: FileTime(5, 5), fresh: true, ..old.clone() };
        let link = TreeEntry { kind: TreeKind::Symlink, target: Some(RawPath::new("a")), ..entry("d") };
        let other_link = TreeEntry { target: Some(RawPath::new("b")), ..link.clone() };

        assert_eq!(verdict(&old, &new), (vec![], false));
        assert_eq!(verdict(&old, &link), (vec![Aspect::Kind], false));
        assert_eq!(verdict(&link, &other_link), (vec![Aspect::Target], false));
    }

    #[test]
    fn paths_are_made_absolute() {
        for (folder, below, path) in
            [("/", "", "/"), ("/", "a", "/a"), ("/etc", "a/b", "/etc/a/b"), ("/etc/", "a", "/etc/a")]
        {
            assert_eq!(joined(&RawPath::new(folder), &RawPath::new(below)), RawPath::new(path));
        }
    }
}
