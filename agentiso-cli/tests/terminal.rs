//! What is different when people look at the output; no machine needed.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod common;

use common::{Cli, window::Window};

#[test]
fn commands_work_on_a_terminal() {
    let cli = Cli::new();

    let (listed, list) = Window::open(&cli, &["ls"]).end();
    let (failed, failure) = Window::open(&cli, &["info", "nobody"]).end();

    assert_eq!((listed, failed), (0, 1), "{list} {failure}");
    assert!(list.starts_with("NAME"), "{list}");
    assert_eq!(failure, "agentiso: there is no workspace nobody\r\n`agentiso ls` lists the workspaces\r\n");
}

#[test]
fn archive_is_not_sent_to_a_terminal() {
    let cli = Cli::new();

    let (status, shown) = Window::open(&cli, &["cp", "nobody:/etc", "-"]).end();

    assert_eq!(status, 1);
    assert!(shown.contains("nothing for a terminal"), "{shown}");
}

#[test]
fn prune_without_anything_to_remove_asks_nothing() {
    let cli = Cli::new();

    let (status, shown) = Window::open(&cli, &["prune"]).end();

    assert_eq!((status, shown.as_str()), (0, "to remove: 0 B\r\n"));
}
