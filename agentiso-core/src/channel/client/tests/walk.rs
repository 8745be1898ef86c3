use agentiso_guest::{
    limits::{HASH_PROGRESS_BYTES, MAX_ENTRIES_PER_REPLY},
    message::{Reply, Request},
};

use super::fake::serving;
use crate::channel::client::*;

fn entry(path: &str) -> TreeEntry {
    TreeEntry {
        path: RawPath::new(path),
        kind: TreeKind::File,
        size: 1,
        mode: 0o644,
        uid: 0,
        gid: 0,
        modified: FileTime(1, 2),
        changed: FileTime(1, 2),
        fresh: false,
        target: None,
        device: None,
    }
}

fn tree(paths: &[&str]) -> Reply {
    Reply::Tree { entries: paths.iter().map(|path| entry(path)).collect() }
}

/// All entries of an agent that sends these replies.
async fn walked(replies: Vec<Reply>) -> Result<Vec<TreeEntry>, GuestError> {
    let client = serving(move |_, mut agent| {
        let replies = replies.clone();
        async move {
            for reply in replies {
                agent.reply(reply).await;
            }
        }
    });
    let mut stream = client.walk(RawPath::new("/")).await?;
    let mut entries = Vec::new();
    while let Some(entry) = stream.next().await? {
        entries.push(entry);
    }
    Ok(entries)
}

async fn hashed(due: usize, replies: Vec<Reply>) -> Result<Vec<Option<FileHash>>, GuestError> {
    let client = serving(move |_, mut agent| {
        let replies = replies.clone();
        async move {
            for reply in replies {
                agent.reply(reply).await;
            }
        }
    });
    client.hash_files(RawPath::new("/"), vec![RawPath::new("f"); due]).await
}

fn is_protocol<T>(result: &Result<T, GuestError>) -> bool {
    matches!(result, Err(GuestError::Protocol { .. }))
}

#[tokio::test]
async fn walk_asks_for_the_root_file_system_and_gives_entries_in_order() {
    let client = serving(|request, mut agent| async move {
        let path = RawPath::new(&b"/a\xff"[..]);
        assert_eq!(request, Request::Walk { path, root_file_system: true });
        agent.reply(tree(&["", "a", "a/b"])).await;
        agent.reply(tree(&["a-b"])).await;
        agent.reply(Reply::Done).await;
    });

    let mut stream = client.walk(RawPath::new(&b"/a\xff"[..])).await.unwrap();
    let mut paths = Vec::new();
    while let Some(entry) = stream.next().await.unwrap() {
        paths.push(entry.path.to_string());
    }

    assert_eq!(paths, ["", "a", "a/b", "a-b"]);
    assert!(stream.next().await.unwrap().is_none());
}

#[tokio::test]
async fn paths_out_of_order_are_refused() {
    for paths in [vec!["a"], vec!["", ""], vec!["", "b", "a"], vec!["", "a", "a"], vec!["", "a-b", "a/b"]] {
        let result = walked(vec![tree(&paths), Reply::Done]).await;

        let out_of_order =
            matches!(&result, Err(GuestError::Protocol { source: ProtocolError::OutOfOrder { .. }, .. }));
        assert!(out_of_order, "{paths:?}: {result:?}");
    }
    let parts = vec![tree(&["", "b"]), tree(&["a"]), Reply::Done];
    assert!(is_protocol(&walked(parts).await));
}

#[tokio::test]
async fn paths_that_lead_out_are_refused() {
    let long = "x/".repeat(2048) + "x";
    let name = "y".repeat(256);
    for path in ["../a", "/a", "a/../b", "a//b", ".", "a\0b", &long, &name] {
        let result = walked(vec![tree(&["", path]), Reply::Done]).await;

        assert!(is_protocol(&result), "{path}: {result:?}");
    }
}

#[tokio::test]
async fn impossible_entries_are_refused() {
    let possible = entry("a");
    for impossible in [
        TreeEntry { mode: 0o10000, ..possible.clone() },
        TreeEntry { modified: FileTime(0, 1_000_000_000), ..possible.clone() },
        TreeEntry { changed: FileTime(0, u32::MAX), ..possible.clone() },
        TreeEntry { kind: TreeKind::Symlink, ..possible.clone() },
        TreeEntry { target: Some(RawPath::new("b")), ..possible.clone() },
        TreeEntry { kind: TreeKind::Block, ..possible.clone() },
        TreeEntry { device: Some((1, 2)), ..possible.clone() },
        TreeEntry {
            kind: TreeKind::Symlink,
            target: Some(RawPath::new("x".repeat(4096))),
            ..possible.clone()
        },
    ] {
        let result =
            walked(vec![Reply::Tree { entries: vec![entry(""), impossible.clone()] }, Reply::Done]).await;

        assert!(is_protocol(&result), "{impossible:?}: {result:?}");
    }
}

#[tokio::test]
async fn empty_parts_large_parts_and_no_part_are_refused() {
    let names: Vec<String> = (0..=MAX_ENTRIES_PER_REPLY).map(|n| format!("{n:06}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for replies in [
        vec![tree(&[]), Reply::Done],
        vec![tree(&[""]), tree(&names), Reply::Done],
        vec![Reply::Done],
        vec![Reply::Entries { entries: Vec::new() }],
    ] {
        let result = walked(replies.clone()).await;

        assert!(is_protocol(&result), "{result:?}");
    }
}

#[tokio::test]
async fn cut_walk_is_an_error_and_not_an_end() {
    let result = walked(vec![tree(&["", "a"])]).await;

    assert!(matches!(result, Err(GuestError::Disconnected { .. })), "{result:?}");
}

#[tokio::test]
async fn hashes_are_read_in_order() {
    let text = "00ff".repeat(16);
    let replies = vec![
        Reply::Hashing { bytes: HASH_PROGRESS_BYTES },
        Reply::Hashed { sha256: Some(text) },
        Reply::Hashed { sha256: None },
        Reply::Done,
    ];

    let hashes = hashed(2, replies).await.unwrap();

    let mut expected = [0; 32];
    expected.iter_mut().skip(1).step_by(2).for_each(|byte| *byte = 0xff);
    assert_eq!(hashes, [Some(expected), None]);
}

#[tokio::test]
async fn wrong_numbers_of_hashes_and_wrong_hashes_are_refused() {
    let some = || Reply::Hashed { sha256: Some("00".repeat(32)) };
    for replies in [
        vec![Reply::Done],
        vec![some(), some(), some()],
        vec![Reply::Hashed { sha256: Some("00".repeat(31)) }],
        vec![Reply::Hashed { sha256: Some("zz".repeat(32)) }],
        vec![Reply::Hashed { sha256: Some("ä".repeat(32)) }],
        vec![Reply::Hashing { bytes: HASH_PROGRESS_BYTES - 1 }],
        vec![Reply::Hashing { bytes: MAX_HASHED_BYTES + 1 }],
        vec![Reply::Hashing { bytes: u64::MAX }, Reply::Hashing { bytes: u64::MAX }],
    ] {
        let result = hashed(2, replies.clone()).await;

        assert!(is_protocol(&result), "{replies:?}: {result:?}");
    }
}
