//! `diff`.

use std::{ffi::OsString, os::unix::ffi::OsStrExt};

use agentiso_core::{
    Aspect, Change, DiffSide, DiffSpec, Difference, FileState,
    channel::client::{RawPath, TreeKind},
};
use clap::Args;
use serde_json::{Value, json};

use crate::{context::Context, error::CliError, output, stdio};

/// The status of a comparison that found differences.
const DIFFERENT: u8 = 1;

const AFTER_HELP: &str = "\
Each line is A (added), M (modified) or D (deleted), the path, and the size, before and after; `?` where something is mounted
on one side, so that what the disk has there cannot be told. Files of equal size are the same where all their times are;
otherwise their contents are hashed inside the machines. Mode and owner count, times alone do not, extended attributes are
not looked at. Only the root file system is compared.

In paths a backslash is shown as \\\\ and a byte that is not UTF-8 or not printable as \\xNN, with --json too, so that no
two paths look alike.

A running machine is asked itself and should not change the files meanwhile. What is stopped, and every snapshot, is read by
a throwaway machine named diff-..., which is removed afterwards. A paused machine must be resumed first.

Exit status: 0 without differences, 1 with, 125 if the comparison failed.";

/// List files that were added, modified or deleted from A to B
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct DiffArgs {
    /// A workspace, or a snapshot of one
    #[arg(value_name = "A[@SNAPSHOT]", value_parser = side)]
    a: DiffSide,

    /// The one to compare with it
    #[arg(value_name = "B[@SNAPSHOT]", value_parser = side)]
    b: DiffSide,

    /// Only this file or folder
    #[arg(value_name = "PATH", default_value = "/")]
    path: OsString,
}

fn side(text: &str) -> Result<DiffSide, String> {
    match text.parse::<DiffSide>() {
        Ok(side) if side.workspace.is_empty() => Err("it names no workspace".to_owned()),
        Ok(side) => Ok(side),
        Err(error) => Err(error.to_string()),
    }
}

/// How many there are of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    added: u64,
    modified: u64,
    deleted: u64,
    not_compared: u64,
}

impl Counts {
    fn count(&mut self, change: Change) {
        *match change {
            Change::Added => &mut self.added,
            Change::Modified => &mut self.modified,
            Change::Deleted => &mut self.deleted,
            Change::NotCompared => &mut self.not_compared,
        } += 1;
    }

    fn status(self) -> u8 {
        if (self.added, self.modified, self.deleted) == (0, 0, 0) { 0 } else { DIFFERENT }
    }
}

pub(crate) async fn diff(args: DiffArgs, context: &Context) -> Result<u8, CliError> {
    let json = context.output.json;
    let head = json!({"a": args.a.to_string(), "b": args.b.to_string()});
    let mut progress = Some(context.progress(format!("comparing {} with {}", args.a, args.b)));
    let spec = DiffSpec { from: args.a, to: args.b, path: RawPath::new(args.path.as_bytes()) };
    let mut differences = context.host().await?.diff(spec).await?;
    let mut counts = Counts::default();
    let mut first = true;
    // There may be more than memory holds: each is printed when it is found, the pieces being one JSON value in the end.
    while let Some(difference) = differences.next().await? {
        drop(progress.take());
        counts.count(difference.change);
        let text = if json {
            let text = serde_json::to_string(&difference)
                .map_err(|source| CliError::local("could not write a difference as JSON", source.into()))?;
            format!("{}{text}", if first { beginning(&head) } else { ",".to_owned() })
        } else {
            line(&difference)
        };
        first = false;
        stdio::write_out(text.as_bytes()).map_err(CliError::stdout)?;
    }
    drop(progress);
    if json {
        let beginning = if first { beginning(&head) } else { String::new() };
        let end = format!("{beginning}{}\n", end(counts));
        stdio::write_out(end.as_bytes()).map_err(CliError::stdout)?;
    }
    Ok(counts.status())
}

/// The result up to the first difference.
fn beginning(head: &Value) -> String {
    format!("{{\"a\":{},\"b\":{},\"differences\":[", head["a"], head["b"])
}

/// The result from the last difference on.
fn end(counts: Counts) -> String {
    let Counts { added, modified, deleted, not_compared } = counts;
    format!(
        "],\"added\":{added},\"modified\":{modified},\"deleted\":{deleted},\"not_compared\":{not_compared}}}"
    )
}

fn line(difference: &Difference) -> String {
    let Difference { change, path, what, old, new } = difference;
    match (change, old, new) {
        (Change::Added, _, Some(new)) => format!("A {path}{}\n", size(new)),
        (Change::Deleted, Some(old), _) => format!("D {path}{}\n", size(old)),
        (Change::Modified, Some(old), Some(new)) => {
            let details: Vec<String> = what.iter().map(|aspect| detail(*aspect, old, new)).collect();
            format!("M {path} ({})\n", details.join(", "))
        }
        (Change::NotCompared, ..) => format!("? {path} (something is mounted there on one side)\n"),
        _ => String::new(),
    }
}

/// The size of what has one that says something, else what it is.
fn size(state: &FileState) -> String {
    match state.kind {
        TreeKind::File => format!(" ({})", output::bytes(state.size)),
        TreeKind::Directory => "/".to_owned(),
        _ => format!(" ({})", kind(state.kind)),
    }
}

fn detail(aspect: Aspect, old: &FileState, new: &FileState) -> String {
    match aspect {
        Aspect::Kind => format!("{} -> {}", kind(old.kind), kind(new.kind)),
        Aspect::Content => format!("{} -> {}", output::bytes(old.size), output::bytes(new.size)),
        Aspect::Mode => format!("mode {} -> {}", old.mode, new.mode),
        Aspect::Owner => format!("owner {}:{} -> {}:{}", old.uid, old.gid, new.uid, new.gid),
        Aspect::Target => {
            let shown =
                |target: &Option<RawPath>| target.as_ref().map(RawPath::to_string).unwrap_or_default();
            format!("to {} -> {}", shown(&old.target), shown(&new.target))
        }
        Aspect::Device => "another device".to_owned(),
    }
}

fn kind(kind: TreeKind) -> &'static str {
    match kind {
        TreeKind::File => "file",
        TreeKind::Directory => "folder",
        TreeKind::Symlink => "link",
        TreeKind::Block => "block device",
        TreeKind::Character => "character device",
        TreeKind::Fifo => "pipe",
        TreeKind::Socket => "socket",
        TreeKind::Mount => "mount point",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(kind: TreeKind, size: u64) -> FileState {
        FileState { kind, size, mode: "0644".to_owned(), uid: 0, gid: 0, modified: 0, target: None }
    }

    fn difference(
        change: Change,
        what: Vec<Aspect>,
        old: Option<FileState>,
        new: Option<FileState>,
    ) -> Difference {
        Difference { change, path: RawPath::new(&b"/a\n\xff"[..]), what, old, new }
    }

    #[test]
    fn lines_say_what_happened_and_show_no_control_character() {
        let file = || Some(state(TreeKind::File, 1024));
        let folder = || Some(state(TreeKind::Directory, 4096));
        let longer = Some(FileState { mode: "0600".to_owned(), gid: 7, ..state(TreeKind::File, 2048) });
        for (given, expected) in [
            (difference(Change::Added, vec![], None, file()), "A /a\\x0a\\xff (1.00 KiB)\n"),
            (difference(Change::Deleted, vec![], folder(), None), "D /a\\x0a\\xff/\n"),
            (
                difference(Change::Modified, vec![Aspect::Content], file(), longer.clone()),
                "M /a\\x0a\\xff (1.00 KiB -> 2.00 KiB)\n",
            ),
            (
                difference(Change::Modified, vec![Aspect::Mode, Aspect::Owner], file(), longer),
                "M /a\\x0a\\xff (mode 0644 -> 0600, owner 0:0 -> 0:7)\n",
            ),
            (
                difference(Change::Modified, vec![Aspect::Kind], folder(), file()),
                "M /a\\x0a\\xff (folder -> file)\n",
            ),
            (
                difference(Change::NotCompared, vec![], folder(), folder()),
                "? /a\\x0a\\xff (something is mounted there on one side)\n",
            ),
        ] {
            assert_eq!(line(&given), expected);
        }
    }

    #[test]
    fn pieces_are_one_json_value() {
        let mut counts = Counts::default();
        counts.count(Change::Added);
        let one = difference(Change::Added, vec![], None, Some(state(TreeKind::File, 1)));
        let one = serde_json::to_string(&one).unwrap();

        let head = json!({"a": "x@\"", "b": "y"});
        let none: Value =
            serde_json::from_str(&format!("{}{}", beginning(&head), end(Counts::default()))).unwrap();
        let two: Value =
            serde_json::from_str(&format!("{}{one},{one}{}", beginning(&head), end(counts))).unwrap();

        assert_eq!((&none["a"], &none["differences"]), (&json!("x@\""), &json!([])));
        assert_eq!((two["differences"].as_array().unwrap().len(), &two["added"]), (2, &json!(1)));
        assert_eq!(two["differences"][0]["path"], "/a\\x0a\\xff");
    }

    #[test]
    fn status_tells_differences_and_mounts_are_none() {
        let mut counts = Counts::default();
        counts.count(Change::NotCompared);
        assert_eq!(counts.status(), 0);
        for change in [Change::Added, Change::Modified, Change::Deleted] {
            let mut counts = Counts::default();
            counts.count(change);
            assert_eq!(counts.status(), 1);
        }
    }

    #[test]
    fn sides_are_workspaces_or_snapshots() {
        assert_eq!(side("w").unwrap().snapshot, None);
        assert_eq!(side("w@s").unwrap().snapshot.unwrap().as_str(), "s");
        for wrong in ["w@", "@s", "", "w@a/b"] {
            assert!(side(wrong).is_err(), "{wrong}");
        }
    }
}
