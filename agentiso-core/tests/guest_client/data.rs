use std::{os::unix::fs::PermissionsExt, time::Duration};

use agentiso_core::channel::client::*;

use crate::agent::Agent;

fn code<T>(result: Result<T, GuestError>) -> Option<ErrorCode> {
    match result {
        Err(GuestError::Refused { code, .. }) => Some(code),
        _ => None,
    }
}

/// Bytes without a pattern that a mistake could hide in.
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend(state.to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}

#[tokio::test]
async fn fifty_megabytes_go_both_ways_unchanged() {
    let agent = Agent::start();
    let content = noise(50 << 20);
    let path = agent.path("folder/file");
    let options = WriteOptions { mode: Some(0o640), parents: true };

    let written = agent.client.write_file(&path, options, &mut &content[..]).await.unwrap();
    let mut back = Vec::new();
    let read = agent.client.read_file_to(&path, FileRange::default(), &mut back).await.unwrap();

    assert_eq!((written, read), (50 << 20, 50 << 20));
    assert!(back == content && std::fs::read(&path).unwrap() == content);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
}

#[tokio::test]
async fn part_of_a_file_is_read() {
    let agent = Agent::start();
    let path = agent.path("file");
    std::fs::write(&path, "0123456789").unwrap();

    assert_eq!(agent.client.read_file(&path, 3, 4).await.unwrap(), b"3456");
    assert_eq!(agent.client.read_file(&path, 8, 100).await.unwrap(), b"89");
    assert_eq!(agent.client.read_file(&path, 100, 1).await.unwrap(), b"");
}

#[tokio::test]
async fn what_is_no_regular_file_is_refused_without_hanging() {
    let agent = Agent::start();
    let fifo = agent.path("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let read = async |path: &str| {
        let reading = agent.client.read_file(path, 0, 10);
        code(tokio::time::timeout(Duration::from_secs(20), reading).await.unwrap())
    };

    assert!(read(&fifo).await.is_some());
    assert!(read("/usr").await.is_some());
    assert_eq!(read("/no/such/file").await, Some(ErrorCode::NotFound));
    assert!(read("relative").await.is_some());
}

#[tokio::test]
async fn upload_that_is_given_up_changes_nothing() {
    let agent = Agent::start();
    let path = agent.path("file");
    std::fs::write(&path, "old").unwrap();
    let before = std::fs::read_dir(agent.folder.path()).unwrap().count();

    let mut sink = agent.client.create_file(&path, WriteOptions::default()).await.unwrap();
    sink.write(&noise(1 << 20)).await.unwrap();
    drop(sink);

    agent.client.ping().await.unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
    crate::agent::wait_for("the temporary file is gone", || {
        std::fs::read_dir(agent.folder.path()).unwrap().count() == before
    });
}

#[tokio::test]
async fn file_in_a_missing_folder_is_refused_while_data_is_sent() {
    let agent = Agent::start();
    let path = agent.path("missing/file");

    let result = agent.client.write_file(&path, WriteOptions::default(), &mut &noise(20 << 20)[..]).await;

    assert_eq!(code(result), Some(ErrorCode::NotFound));
}

#[tokio::test]
async fn first_occurrence_is_edited() {
    let agent = Agent::start();
    let path = agent.path("file");
    std::fs::write(&path, "one two one").unwrap();

    agent.client.edit_file(&path, "one", "three").await.unwrap();

    assert_eq!(std::fs::read_to_string(&path).unwrap(), "three two one");
    assert!(code(agent.client.edit_file(&path, "four", "five").await).is_some());
}

#[tokio::test]
async fn folder_of_a_thousand_files_is_listed() {
    let agent = Agent::start();
    let folder = agent.path("folder");
    std::fs::create_dir(&folder).unwrap();
    for number in 0..1000 {
        std::fs::write(format!("{folder}/{number}"), "x").unwrap();
    }
    std::os::unix::fs::symlink("999", format!("{folder}/link")).unwrap();

    let entries = agent.client.list_files(&folder).await.unwrap();
    let link = agent.client.stat_file(format!("{folder}/link")).await.unwrap();

    assert_eq!(entries.len(), 1001);
    assert_eq!((link.kind, link.target.as_deref()), (EntryKind::Symlink, Some("999")));
    assert_eq!(code(agent.client.list_files("/no/such/folder").await), Some(ErrorCode::NotFound));
    assert_eq!(agent.client.stat_file("/").await.unwrap().kind, EntryKind::Directory);
}

#[tokio::test]
async fn archive_of_a_folder_is_unpacked_the_same_elsewhere() {
    let agent = Agent::start();
    let folder = agent.path("from");
    std::fs::create_dir_all(format!("{folder}/deep/er")).unwrap();
    let content = noise(3 << 20);
    std::fs::write(format!("{folder}/deep/er/file"), &content).unwrap();
    std::os::unix::fs::symlink("deep", format!("{folder}/link")).unwrap();

    let mut archive = agent.client.read_archive(&folder, false).await.unwrap();
    let mut unpacked =
        agent.client.write_archive(agent.path("to"), Compression::Detect, false).await.unwrap();
    while let Some(chunk) = archive.chunk().await.unwrap() {
        unpacked.write(&chunk).await.unwrap();
    }
    unpacked.finish().await.unwrap();

    assert!(std::fs::read(agent.path("to/from/deep/er/file")).unwrap() == content);
    assert_eq!(std::fs::read_link(agent.path("to/from/link")).unwrap().to_str(), Some("deep"));
}

#[tokio::test]
async fn damaged_archive_is_refused() {
    let agent = Agent::start();
    let mut sink = agent.client.write_archive(agent.path("to"), Compression::None, false).await.unwrap();

    let sent = sink.write(&noise(5 << 20)).await;
    let result = match sent {
        Ok(()) => sink.finish().await,
        refused => refused,
    };

    assert!(code(result).is_some());
}
