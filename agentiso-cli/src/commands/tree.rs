//! `tree`.

use std::io::{self, IsTerminal};

use agentiso_core::TreeNode;
use clap::Args;

use crate::{
    context::Context,
    error::CliError,
    output::{self, table},
};

/// Show which workspaces were forked from which, with the memory and disk that are each one's own
#[derive(Debug, Args)]
pub(crate) struct TreeArgs {
    /// Only this one and what was forked from it
    #[arg(value_name = "WORKSPACE")]
    workspace: Option<String>,
}

pub(crate) async fn tree(args: TreeArgs, context: &Context) -> Result<u8, CliError> {
    let nodes = context.host().await?.tree(args.workspace.as_deref()).await?;
    let lines = if shows_boxes() { &BOXES } else { &ASCII };
    context.output.print(&nodes, |nodes| drawing(nodes, lines))?;
    Ok(0)
}

/// What a tree is drawn with: in front of a fork, of the last one, and below each.
#[derive(Debug)]
struct Lines {
    fork: &'static str,
    last_fork: &'static str,
    beside: &'static str,
    below_last: &'static str,
}

const BOXES: Lines =
    Lines { fork: "├── ", last_fork: "└── ", beside: "│   ", below_last: "    " };
const ASCII: Lines = Lines { fork: "|-- ", last_fork: "`-- ", beside: "|   ", below_last: "    " };

/// Whether whoever reads our output can be expected to show box characters.
fn shows_boxes() -> bool {
    let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
    io::stdout().is_terminal() || locale.is_some_and(|locale| is_utf8(&locale))
}

fn is_utf8(locale: &str) -> bool {
    let locale = locale.to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

fn drawing(nodes: &[TreeNode], lines: &Lines) -> String {
    let mut rows = Vec::new();
    // Without recursion: forks of forks can be many.
    let mut waiting: Vec<(&TreeNode, String, String)> =
        nodes.iter().rev().map(|node| (node, String::new(), String::new())).collect();
    while let Some((node, in_front, below)) = waiting.pop() {
        rows.push(row(node, &in_front));
        let last = node.forks.len().saturating_sub(1);
        for (number, fork) in node.forks.iter().enumerate().rev() {
            let (line, beside) =
                if number == last { (lines.last_fork, lines.below_last) } else { (lines.fork, lines.beside) };
            waiting.push((fork, format!("{below}{line}"), format!("{below}{beside}")));
        }
    }
    table(&["NAME", "STATE", "AGE", "MEMORY", "DISK"], &rows)
}

fn row(node: &TreeNode, in_front: &str) -> Vec<String> {
    if node.gone {
        return vec![format!("{in_front}{} (gone)", node.name)];
    }
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let state = node.state.map(|state| match node.crashed {
        true => format!("{state} (crashed)"),
        false => state.to_string(),
    });
    vec![
        format!("{in_front}{}", node.name),
        or_none(state),
        or_none(node.created_at.map(output::age)),
        or_none(node.memory_unique_bytes.map(output::bytes)),
        or_none(node.disk_used_bytes.map(output::bytes)),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, forks: Vec<Value>) -> Value {
        json!({
            "workspace_id": "00000000-0000-0000-0000-000000000000", "name": name, "gone": name == "left",
            "state": "running", "crashed": name == "c", "created_at": u64::MAX, "snapshot": null,
            "memory_unique_bytes": if name == "b" { Value::Null } else { json!(26 << 20) },
            "memory_shared_bytes": 1, "disk_used_bytes": 1024, "disk_shared_bytes": 1, "forks": forks,
        })
    }

    fn forest() -> Vec<TreeNode> {
        let forest = vec![
            node("a", vec![node("b", vec![node("c", vec![])]), node("d", vec![node("e", vec![])])]),
            node("left", vec![node("f", vec![])]),
        ];
        serde_json::from_value(Value::Array(forest)).unwrap()
    }

    #[test]
    fn tree_is_drawn_with_a_line_for_each() {
        assert_eq!(
            drawing(&forest(), &BOXES),
            "\
NAME         STATE              AGE  MEMORY    DISK
a            running            0 s  26.0 MiB  1.00 KiB
├── b        running            0 s  -         1.00 KiB
│   └── c    running (crashed)  0 s  26.0 MiB  1.00 KiB
└── d        running            0 s  26.0 MiB  1.00 KiB
    └── e    running            0 s  26.0 MiB  1.00 KiB
left (gone)
└── f        running            0 s  26.0 MiB  1.00 KiB
"
        );
    }

    #[test]
    fn ascii_does_without_box_characters() {
        let text = drawing(&forest(), &ASCII);

        assert!(text.is_ascii(), "{text}");
        assert!(text.contains("|-- b") && text.contains("|   `-- c"), "{text}");
    }

    #[test]
    fn locale_says_what_can_be_shown() {
        for (locale, utf8) in [("C", false), ("C.UTF-8", true), ("de_AT.utf8", true), ("en_US", false)] {
            assert_eq!(is_utf8(locale), utf8, "{locale}");
        }
    }
}
