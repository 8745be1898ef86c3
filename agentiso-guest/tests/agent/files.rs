//! Files of the guest.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, Instant};

use agentiso_guest::message::{Entry, EntryKind, ErrorCode, Input, Reply, Request};

use crate::client::{Agent, Answer, wait_for};

fn read(agent: &Agent, path: &str, offset: u64, limit: Option<u64>) -> Answer {
    agent.ask(&Request::FileRead { path: path.to_owned(), offset, limit })
}

fn write(agent: &Agent, path: &str, mode: Option<u32>, parents: bool, content: &[u8]) -> Answer {
    let mut connection = agent.connect();
    connection.request(&Request::FileWrite { path: path.to_owned(), mode, parents });
    connection.data(content);
    connection.answer()
}

fn edit(agent: &Agent, path: &str, old: &str, new: &str) -> Answer {
    agent.ask(&Request::FileEdit { path: path.to_owned(), old: old.to_owned(), new: new.to_owned() })
}

fn stat(agent: &Agent, path: &str) -> Entry {
    match agent.ask(&Request::FileStat { path: path.to_owned() }).terminal {
        Some(Reply::Entry { entry }) => entry,
        other => panic!("no entry: {other:?}"),
    }
}

fn mode_of(path: &std::path::Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn large_file_comes_back_as_it_was_written() {
    let agent = Agent::start();
    let content: Vec<u8> = (0..5_000_000_u32).map(|number| (number * 7 % 251).to_le_bytes()[0]).collect();
    let path = agent.text_path("a/b/file");

    assert!(write(&agent, &path, Some(0o600), true, &content).is_done());

    assert!(read(&agent, &path, 0, None).data == content);
    assert_eq!(mode_of(&agent.path("a/b/file")), 0o600);
    assert_eq!(mode_of(&agent.path("a/b")), 0o755);
}

#[test]
fn offset_and_limit_choose_a_part() {
    let agent = Agent::start();
    std::fs::write(agent.path("file"), "0123456789").unwrap();
    let path = agent.text_path("file");

    assert_eq!(read(&agent, &path, 3, Some(4)).data, b"3456");
    assert_eq!(read(&agent, &path, 8, Some(100)).data, b"89");
    assert_eq!(read(&agent, &path, 100, None).data, b"");
    assert_eq!(read(&agent, &path, 0, Some(0)).data, b"");
}

#[test]
fn file_of_the_kernel_without_a_size_is_read() {
    let agent = Agent::start();

    assert!(read(&agent, "/proc/version", 0, None).data.starts_with(b"Linux"));
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting() {
    let agent = Agent::start();
    agent.shell(&format!("mkfifo {}", agent.text_path("fifo")));
    let begin = Instant::now();

    for path in [agent.text_path("fifo"), "/dev/zero".to_owned(), "/etc".to_owned()] {
        assert_eq!(read(&agent, &path, 0, None).error().0, ErrorCode::Invalid, "{path}");
        assert_eq!(edit(&agent, &path, "a", "b").error().0, ErrorCode::Invalid, "{path}");
        assert_eq!(write(&agent, &path, None, false, b"").error().0, ErrorCode::Invalid, "{path}");
    }

    assert!(begin.elapsed() < Duration::from_secs(20));
}

#[test]
fn overwritten_file_keeps_its_mode_and_owner() {
    let agent = Agent::start();
    let file = agent.path("file");
    std::fs::write(&file, "old").unwrap();
    // Only root can give a file away; for others this changes nothing.
    let _ = std::os::unix::fs::chown(&file, Some(1234), Some(1234));
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o4710)).unwrap();
    let owner = std::fs::metadata(&file).unwrap().uid();

    assert!(write(&agent, &agent.text_path("file"), None, false, b"new").is_done());

    assert_eq!(std::fs::read(&file).unwrap(), b"new");
    assert_eq!(mode_of(&file), 0o4710);
    assert_eq!(std::fs::metadata(&file).unwrap().uid(), owner);
}

#[test]
fn new_file_has_the_usual_mode() {
    let agent = Agent::start();

    assert!(write(&agent, &agent.text_path("file"), None, false, b"").is_done());

    assert_eq!(mode_of(&agent.path("file")), 0o644);
}

#[test]
fn symbolic_link_is_followed_even_to_a_new_file() {
    let agent = Agent::start();
    symlink("middle", agent.path("link")).unwrap();
    symlink("target", agent.path("middle")).unwrap();

    assert!(write(&agent, &agent.text_path("link"), None, false, b"content").is_done());

    assert!(std::fs::symlink_metadata(agent.path("link")).unwrap().is_symlink());
    assert_eq!(std::fs::read(agent.path("target")).unwrap(), b"content");
}

#[test]
fn circle_of_links_is_an_error() {
    let agent = Agent::start();
    symlink("b", agent.path("a")).unwrap();
    symlink("a", agent.path("b")).unwrap();

    assert_eq!(write(&agent, &agent.text_path("a"), None, false, b"").error().0, ErrorCode::Invalid);
}

#[test]
fn lost_connection_leaves_the_old_content_and_nothing_else() {
    let agent = Agent::start();
    std::fs::create_dir(agent.path("folder")).unwrap();
    std::fs::write(agent.path("folder/file"), "old").unwrap();
    let count = || std::fs::read_dir(agent.path("folder")).unwrap().count();
    let mut connection = agent.connect();
    connection.request(&Request::FileWrite {
        path: agent.text_path("folder/file"),
        mode: None,
        parents: false,
    });
    connection.input(&Input::Data { payload: 3 }, b"new");
    wait_for("the temporary file", || count() == 2);

    drop(connection);

    wait_for("its removal", || count() == 1);
    assert_eq!(std::fs::read(agent.path("folder/file")).unwrap(), b"old");
}

#[test]
fn missing_folder_is_an_error_unless_parents_are_asked_for() {
    let agent = Agent::start();

    assert_eq!(write(&agent, &agent.text_path("no/file"), None, false, b"").error().0, ErrorCode::NotFound);
}

#[test]
fn edit_replaces_the_first_exact_occurrence() {
    let agent = Agent::start();
    std::fs::write(agent.path("file"), "aab aab\n").unwrap();
    let path = agent.text_path("file");

    assert!(edit(&agent, &path, "ab", "XYZ").is_done());

    assert_eq!(std::fs::read(agent.path("file")).unwrap(), b"aXYZ aab\n");
    assert_eq!(edit(&agent, &path, "nowhere", "x").error().0, ErrorCode::NotFound);
    assert_eq!(edit(&agent, &path, "", "x").error().0, ErrorCode::Invalid);
    assert_eq!(std::fs::read(agent.path("file")).unwrap(), b"aXYZ aab\n");
}

#[test]
fn listing_of_many_entries_is_complete() {
    let agent = Agent::start();
    std::fs::create_dir(agent.path("folder")).unwrap();
    for number in 0..1300 {
        std::fs::write(agent.path(&format!("folder/{number}")), "x").unwrap();
    }

    let answer = agent.ask(&Request::FileList { path: agent.text_path("folder") });

    let mut names: Vec<u32> = answer.entries.iter().map(|entry| entry.name.parse().unwrap()).collect();
    names.sort_unstable();
    assert!(answer.is_done());
    assert_eq!(names, (0..1300).collect::<Vec<_>>());
}

#[test]
fn entries_are_described_without_following_links() {
    let agent = Agent::start();
    std::fs::write(agent.path("file"), "12345").unwrap();
    symlink("/no/such", agent.path("link")).unwrap();

    let file = stat(&agent, &agent.text_path("file"));
    let link = stat(&agent, &agent.text_path("link"));
    let root = stat(&agent, "/");

    assert_eq!((file.name.as_str(), file.kind, file.size), ("file", EntryKind::File, 5));
    assert_eq!((link.kind, link.target.as_deref()), (EntryKind::Symlink, Some("/no/such")));
    assert_eq!((root.name.as_str(), root.kind), ("/", EntryKind::Directory));
}

#[test]
fn wrong_paths_and_modes_are_invalid() {
    let agent = Agent::start();
    for path in ["relative", "", "/a\0b", &format!("/{}", "x/".repeat(2100))] {
        let path = path.to_owned();
        assert_eq!(read(&agent, &path, 0, None).error().0, ErrorCode::Invalid, "{path:?}");
        assert_eq!(write(&agent, &path, None, true, b"").error().0, ErrorCode::Invalid, "{path:?}");
        assert_eq!(
            agent.ask(&Request::FileStat { path: path.clone() }).error().0,
            ErrorCode::Invalid,
            "{path:?}"
        );
        assert_eq!(
            agent.ask(&Request::FileList { path: path.clone() }).error().0,
            ErrorCode::Invalid,
            "{path:?}"
        );
    }
    assert_eq!(
        write(&agent, &agent.text_path("file"), Some(0o10000), false, b"").error().0,
        ErrorCode::Invalid
    );
}
