//! `git status --porcelain=v2 --branch -z`, taken apart exactly as git-status(1) describes it.

use serde::Serialize;

use agentiso_core::channel::client::RawPath;

/// What a repository's working tree is like.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Status {
    /// The branch; none if a commit is checked out.
    pub(super) branch: Option<String>,
    /// Commits that the upstream branch does not have; none without an upstream.
    pub(super) ahead: Option<u64>,
    /// Commits that only the upstream branch has; none without an upstream.
    pub(super) behind: Option<u64>,
    /// Paths whose content in the index is not that of the commit.
    pub(super) staged: Vec<String>,
    /// Paths whose content in the working tree is not that of the index.
    pub(super) modified: Vec<String>,
    /// Paths that git does not know.
    pub(super) untracked: Vec<String>,
    /// Paths that a merge left in conflict.
    pub(super) conflicted: Vec<String>,
    /// What was renamed or copied.
    pub(super) renames: Vec<Rename>,
    /// Whether any of the lists has an entry.
    pub(super) dirty: bool,
}

/// A path that had another name.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Rename {
    pub(super) from: String,
    pub(super) to: String,
}

/// What git printed is not as its manual says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    /// The beginning of the entry.
    pub(super) entry: String,
}

/// Reads what git printed. Of an answer that was cut off, the entry at its end is left out.
pub(super) fn parse(bytes: &[u8], is_whole: bool) -> Result<Status, Malformed> {
    let mut status = Status::default();
    let end = bytes.iter().rposition(|byte| *byte == 0);
    let whole = match end {
        Some(end) => &bytes[..end],
        None if is_whole && !bytes.is_empty() => return Err(malformed(bytes)),
        None => return Ok(status),
    };
    if is_whole && end.is_some_and(|end| end + 1 != bytes.len()) {
        return Err(malformed(&bytes[whole.len() + 1..]));
    }
    let mut entries = whole.split(|byte| *byte == 0);
    while let Some(entry) = entries.next() {
        match entry {
            [b'#', b' ', header @ ..] => status.header(header).ok_or_else(|| malformed(entry))?,
            [b'1', b' ', rest @ ..] => {
                let (xy, path) = fields(rest, 6).ok_or_else(|| malformed(entry))?;
                status.changed(xy, path);
            }
            [b'2', b' ', rest @ ..] => {
                let (xy, path) = fields(rest, 7).ok_or_else(|| malformed(entry))?;
                let Some(old) = entries.next() else {
                    // Its old name was cut off.
                    if is_whole {
                        return Err(malformed(entry));
                    }
                    break;
                };
                status.changed(xy, path);
                status.renames.push(Rename { from: shown(old), to: shown(path) });
            }
            [b'u', b' ', rest @ ..] => {
                let (_, path) = fields(rest, 8).ok_or_else(|| malformed(entry))?;
                status.conflicted.push(shown(path));
            }
            [b'?', b' ', path @ ..] if !path.is_empty() => status.untracked.push(shown(path)),
            // Ignored files are not asked for.
            [b'!', b' ', ..] => {}
            _ => return Err(malformed(entry)),
        }
    }
    status.dirty = [&status.staged, &status.modified, &status.untracked, &status.conflicted]
        .iter()
        .any(|list| !list.is_empty());
    Ok(status)
}

impl Status {
    /// One header; none if it is not as it should be. Those that are not known are left alone, as git asks.
    fn header(&mut self, header: &[u8]) -> Option<()> {
        let header = String::from_utf8_lossy(header);
        let (key, value) = header.split_once(' ')?;
        match key {
            "branch.head" if value != "(detached)" => self.branch = Some(value.to_owned()),
            "branch.ab" => {
                let (ahead, behind) = value.split_once(' ')?;
                self.ahead = Some(ahead.strip_prefix('+')?.parse().ok()?);
                self.behind = Some(behind.strip_prefix('-')?.parse().ok()?);
            }
            _ => {}
        }
        Some(())
    }

    fn changed(&mut self, xy: [u8; 2], path: &[u8]) {
        let [index, tree] = xy;
        if index != b'.' {
            self.staged.push(shown(path));
        }
        if tree != b'.' {
            self.modified.push(shown(path));
        }
    }
}

/// The two letters at the beginning, and the path behind so many further fields.
fn fields(rest: &[u8], between: usize) -> Option<([u8; 2], &[u8])> {
    let mut parts = rest.splitn(between + 2, |byte| *byte == b' ');
    let xy: [u8; 2] = parts.next()?.try_into().ok()?;
    let path = parts.nth(between)?;
    (!path.is_empty()).then_some((xy, path))
}

/// A path as text; one that is no UTF-8 with its bytes escaped, so that nothing is lost.
fn shown(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) => text.to_owned(),
        Err(_) => RawPath::new(path).to_string(),
    }
}

fn malformed(entry: &[u8]) -> Malformed {
    Malformed { entry: RawPath::new(&entry[..entry.len().min(80)]).to_string() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "0123456789012345678901234567890123456789";

    fn text(lines: &[&str]) -> Vec<u8> {
        lines.iter().flat_map(|line| [line.as_bytes(), b"\0"].concat()).collect()
    }

    fn ordinary(xy: &str, path: &str) -> String {
        format!("1 {xy} N... 100644 100644 100644 {HASH} {HASH} {path}")
    }

    #[test]
    fn every_kind_of_entry_is_read() {
        let renamed = format!("2 R. N... 100644 100644 100644 {HASH} {HASH} R100 new name");
        let unmerged = format!("u UU N... 100644 100644 100644 100644 {HASH} {HASH} {HASH} both.txt");
        let bytes = text(&[
            &format!("# branch.oid {HASH}"),
            "# branch.head main",
            "# branch.upstream origin/main",
            "# branch.ab +2 -13",
            "# stash 1",
            &ordinary("M.", "staged.txt"),
            &ordinary(".M", "a file with  spaces\nand a line"),
            &ordinary("MM", "both sides"),
            &ordinary(".D", "gone"),
            &renamed,
            "old name",
            &unmerged,
            "? new file",
            "! ignored",
        ]);

        let status = parse(&bytes, true).unwrap();

        assert_eq!(
            status,
            Status {
                branch: Some("main".to_owned()),
                ahead: Some(2),
                behind: Some(13),
                staged: vec!["staged.txt".into(), "both sides".into(), "new name".into()],
                modified: vec!["a file with  spaces\nand a line".into(), "both sides".into(), "gone".into()],
                untracked: vec!["new file".into()],
                conflicted: vec!["both.txt".into()],
                renames: vec![Rename { from: "old name".into(), to: "new name".into() }],
                dirty: true,
            }
        );
    }

    #[test]
    fn clean_detached_and_fresh_repositories_have_no_upstream() {
        let clean = parse(&text(&["# branch.oid (initial)", "# branch.head main"]), true).unwrap();
        let detached = parse(&text(&["# branch.head (detached)"]), true).unwrap();

        assert_eq!(
            (clean.branch.as_deref(), clean.ahead, clean.behind, clean.dirty),
            (Some("main"), None, None, false)
        );
        assert_eq!(detached.branch, None);
        assert_eq!(parse(b"", true).unwrap(), Status::default());
    }

    #[test]
    fn what_the_manual_does_not_know_is_refused() {
        for bad in [
            "x y\0",
            "1 M. short\0",
            "1 M N... 100644 100644 100644 a b path\0",
            "? \0",
            "# branch.ab 2 3\0",
            "# branch.ab +x -3\0",
            "\0",
            "? no end",
            "? a\0? no end",
        ] {
            assert!(parse(bad.as_bytes(), true).is_err(), "{bad:?}");
        }
        let renamed = format!("2 R. N... 100644 100644 100644 {HASH} {HASH} R100 new\0");
        assert!(parse(renamed.as_bytes(), true).is_err());
        assert_eq!(parse(renamed.as_bytes(), false).unwrap(), Status::default());
    }

    #[test]
    fn bytes_that_are_no_text_are_escaped() {
        assert_eq!(parse(b"? a\xffb\0", true).unwrap().untracked, ["a\\xffb"]);
    }

    #[test]
    fn answer_that_was_cut_loses_its_last_entry_only() {
        assert_eq!(parse(b"? a\0? b\0? c", false).unwrap().untracked, ["a", "b"]);
        assert_eq!(parse(b"? a", false).unwrap(), Status::default());
    }

    proptest! {
        #[test]
        fn anything_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), whole: bool) {
            let _ = parse(&bytes, whole);
        }

        #[test]
        fn paths_come_back_as_they_were(
            staged in proptest::collection::vec("[^\0]{1,20}", 0..5),
            untracked in proptest::collection::vec("[^\0]{1,20}", 0..5),
            pairs in proptest::collection::vec(("[^\0]{1,20}", "[^\0]{1,20}"), 0..4),
            ahead: u64, behind: u64,
        ) {
            let mut lines = vec![format!("# branch.ab +{ahead} -{behind}")];
            lines.extend(staged.iter().map(|path| ordinary("A.", path)));
            for (from, to) in &pairs {
                lines.push(format!("2 .R N... 100644 100644 100644 {HASH} {HASH} R087 {to}"));
                lines.push(from.clone());
            }
            lines.extend(untracked.iter().map(|path| format!("? {path}")));
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();

            let status = parse(&text(&lines), true).unwrap();

            prop_assert_eq!(status.staged, staged);
            prop_assert_eq!(status.untracked, untracked);
            prop_assert_eq!((status.ahead, status.behind), (Some(ahead), Some(behind)));
            let read: Vec<(String, String)> = status.renames.into_iter().map(|it| (it.from, it.to)).collect();
            prop_assert_eq!(read, pairs);
        }

        #[test]
        fn cut_anywhere_is_never_refused(
            untracked in proptest::collection::vec("[^\0]{1,8}", 1..6), cut in 0_usize..60,
        ) {
            let lines: Vec<String> = untracked.iter().map(|path| format!("? {path}")).collect();
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let bytes = text(&lines);
            let status = parse(&bytes[..cut.min(bytes.len())], false).unwrap();
            prop_assert!(untracked.starts_with(&status.untracked));
        }
    }
}
