//! Walks and hashes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use agentiso_guest::limits::MAX_HASHED_FILES;
use agentiso_guest::message::{ErrorCode, Reply, Request};
use agentiso_guest::tree::{FileTime, RawPath, TreeEntry, TreeKind};
use sha2::{Digest, Sha256};

use crate::client::{Agent, Answer};

fn raw(path: &Path) -> RawPath {
    RawPath::new(path.as_os_str().as_bytes())
}

/// All entries, and the terminal reply.
fn walk(agent: &Agent, path: RawPath) -> (Vec<TreeEntry>, Reply) {
    let mut connection = agent.connect();
    connection.request(&Request::Walk { path, root_file_system: false });
    let mut all = Vec::new();
    let terminal = connection.stream(|frame| {
        if let Reply::Tree { entries } = &frame.message {
            assert!((1..=512).contains(&entries.len()));
            all.extend_from_slice(entries);
        }
    });
    (all, terminal)
}

fn paths(entries: &[TreeEntry]) -> Vec<String> {
    entries.iter().map(|entry| entry.path.to_string()).collect()
}

/// All hashes, bytes said to have been read before them, and the terminal reply.
fn hash(agent: &Agent, root: RawPath, files: &[&str]) -> (Vec<Option<String>>, u64, Reply) {
    let mut connection = agent.connect();
    connection
        .request(&Request::Hash { root, files: files.iter().map(|file| RawPath::new(*file)).collect() });
    let (mut hashes, mut read) = (Vec::new(), 0);
    let terminal = connection.stream(|frame| match &frame.message {
        Reply::Hashed { sha256 } => hashes.push(sha256.clone()),
        Reply::Hashing { bytes } => read += bytes,
        _ => {}
    });
    (hashes, read, terminal)
}

fn sha256(content: &[u8]) -> Option<String> {
    Some(Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect())
}

#[test]
fn walk_describes_everything_in_order() {
    let agent = Agent::start();
    let root = agent.path("tree");
    std::fs::create_dir_all(root.join("a/b")).unwrap();
    for (name, content) in [("a.txt", "1"), ("a/b/c", "22"), ("a/z", "333"), ("a-b", "")] {
        std::fs::write(root.join(name), content).unwrap();
    }
    symlink("../else\nwhere", root.join("a/link")).unwrap();
    std::fs::set_permissions(root.join("a/z"), PermissionsExt::from_mode(0o4750)).unwrap();
    let odd = OsStr::from_bytes(b"\xff\n\\");
    std::fs::write(root.join(odd), "odd").unwrap();

    let (entries, terminal) = walk(&agent, raw(&root));

    assert_eq!(terminal, Reply::Done);
    assert_eq!(paths(&entries), ["", "a", "a/b", "a/b/c", "a/link", "a/z", "a-b", "a.txt", "\\xff\\x0a\\\\"]);
    let by_name = |name: &str| entries.iter().find(|entry| entry.path.as_bytes() == name.as_bytes()).unwrap();
    let metadata = std::fs::metadata(root.join("a/z")).unwrap();
    assert_eq!(
        *by_name("a/z"),
        TreeEntry {
            path: RawPath::new("a/z"),
            kind: TreeKind::File,
            size: 3,
            mode: 0o4750,
            uid: metadata.uid(),
            gid: metadata.gid(),
            modified: FileTime(metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap()),
            changed: FileTime(metadata.ctime(), u32::try_from(metadata.ctime_nsec()).unwrap()),
            fresh: true,
            target: None,
            device: None,
        }
    );
    assert_eq!(by_name("a/link").target, Some(RawPath::new("../else\nwhere")));
    assert_eq!((by_name("a/link").kind, by_name("a").kind), (TreeKind::Symlink, TreeKind::Directory));
}

#[test]
fn what_was_not_touched_lately_is_not_fresh() {
    let agent = Agent::start();
    let file = std::fs::File::create(agent.path("old")).unwrap();
    let hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    file.set_modified(hour_ago).unwrap();

    let (entries, _) = walk(&agent, raw(&agent.path("old")));

    assert_eq!(paths(&entries), [""]);
    assert!(!entries[0].fresh);
    assert!(entries[0].changed > entries[0].modified);
}

#[test]
fn tree_deeper_than_open_folders_is_walked_to_its_end_and_back() {
    let agent = Agent::start();
    let mut folder = agent.path("deep");
    let mut expected = 1;
    for level in 0..100 {
        folder.push("d");
        std::fs::create_dir_all(&folder).unwrap();
        // One comes after the folder below: the walk must come back for it.
        std::fs::write(folder.join("z"), level.to_string()).unwrap();
        expected += 2;
    }

    let (entries, terminal) = walk(&agent, raw(&agent.path("deep")));

    assert_eq!(terminal, Reply::Done);
    assert_eq!(entries.len(), expected);
    assert!(entries.is_sorted_by(|one, next| one.path < next.path));
    assert!(agent.open_files() < 40, "{}", agent.open_files());
}

#[test]
fn large_folder_comes_in_order_in_several_parts() {
    let agent = Agent::start();
    let folder = agent.path("many");
    std::fs::create_dir(&folder).unwrap();
    for number in 0..3000 {
        std::fs::write(folder.join(format!("{}-{number}", "x".repeat(60))), "").unwrap();
    }

    let (entries, terminal) = walk(&agent, raw(&folder));

    assert_eq!((entries.len(), terminal), (3001, Reply::Done));
    assert!(entries.is_sorted_by(|one, next| one.path < next.path));
}

#[test]
fn mounts_are_named_and_not_entered() {
    let agent = Agent::start();
    let mut connection = agent.connect();
    connection.request(&Request::Walk { path: RawPath::new("/"), root_file_system: true });

    let mut proc_kind = None;
    let mut below = false;
    // The rest of this system is of no interest: the connection is dropped when /proc has passed.
    while proc_kind.is_none() || !below {
        let frame = connection.next::<Reply>().expect("the walk goes on");
        let Reply::Tree { entries } = &frame.message else { panic!("{:?}", frame.message) };
        for entry in entries {
            match entry.path.as_bytes() {
                b"proc" => proc_kind = Some(entry.kind),
                path => {
                    assert!(!path.starts_with(b"proc/"), "{:?}", entry.path);
                    below |= path > b"proc".as_slice();
                }
            }
        }
    }

    assert_eq!(proc_kind, Some(TreeKind::Mount));
    let refused = agent.ask(&Request::Walk { path: RawPath::new("/proc"), root_file_system: true });
    assert_eq!(refused.error().0, ErrorCode::Invalid);
    assert!(refused.error().1.contains("not on the root file system"), "{:?}", refused.error());
}

#[test]
fn walk_of_nothing_and_of_wrong_paths_is_refused() {
    let agent = Agent::start();
    for (path, code) in [
        (agent.text_path("missing"), ErrorCode::NotFound),
        ("relative".to_owned(), ErrorCode::Invalid),
        (format!("/{}", "x".repeat(4095)), ErrorCode::Invalid),
        ("/nul\0".to_owned(), ErrorCode::Invalid),
    ] {
        let (entries, terminal) = walk(&agent, RawPath::new(path.clone()));

        assert!(
            matches!(terminal, Reply::Error { code: found, .. } if found == code),
            "{path}: {terminal:?}"
        );
        assert!(entries.is_empty());
    }
}

#[test]
fn hashes_come_in_the_order_asked_for() {
    let agent = Agent::start();
    let long: Vec<u8> = (0..10_000_000_u32).map(|number| (number % 251).to_le_bytes()[0]).collect();
    std::fs::create_dir(agent.path("t")).unwrap();
    std::fs::write(agent.path("t/long"), &long).unwrap();
    std::fs::write(agent.path("t/empty"), "").unwrap();
    symlink("long", agent.path("t/link")).unwrap();

    let files = ["long", "missing", "empty", "link", "../socket", "long"];
    let (none, _, refused) = hash(&agent, raw(&agent.path("t")), &files);
    let files = ["long", "missing", "empty", "link", "long"];
    let (hashes, read, terminal) = hash(&agent, raw(&agent.path("t")), &files);
    let (single, ..) = hash(&agent, raw(&agent.path("t/long")), &[""]);

    assert!(none.is_empty() && matches!(refused, Reply::Error { code: ErrorCode::Invalid, .. }));
    assert_eq!(hashes, [sha256(&long), None, sha256(b""), None, sha256(&long)]);
    assert!((8_000_000..=20_000_000).contains(&read), "{read}");
    assert_eq!((single, terminal), (vec![sha256(&long)], Reply::Done));
}

#[test]
fn no_link_leads_a_hash_out_of_the_tree() {
    let agent = Agent::start();
    std::fs::create_dir_all(agent.path("t")).unwrap();
    std::fs::create_dir_all(agent.path("out")).unwrap();
    std::fs::write(agent.path("out/secret"), "s").unwrap();
    symlink(agent.path("out"), agent.path("t/way")).unwrap();

    let (hashes, _, terminal) = hash(&agent, raw(&agent.path("t")), &["way/secret"]);

    assert_eq!((hashes, terminal), (vec![None], Reply::Done));
}

/// Puts a link in the place of a folder and back again, all the time.
#[test]
fn no_walk_leaves_the_tree_while_folders_become_links() {
    let agent = Agent::start();
    let (tree, out) = (agent.path("t"), agent.path("out"));
    std::fs::create_dir_all(tree.join("a/b/c")).unwrap();
    std::fs::create_dir_all(out.join("b/c")).unwrap();
    std::fs::write(out.join("b/c/secret"), "s").unwrap();
    let (folder, aside, link) = (tree.join("a"), agent.path("aside"), agent.path("link"));
    symlink(&out, &link).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);

    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                std::fs::rename(&folder, &aside).unwrap();
                std::fs::rename(&link, &folder).unwrap();
                std::fs::rename(&folder, &link).unwrap();
                std::fs::rename(&aside, &folder).unwrap();
            }
        });
        for _ in 0..300 {
            let (entries, terminal) = walk(&agent, raw(&tree));
            let (hashes, _, hashed) = hash(&agent, raw(&tree), &["a/b/c/secret"]);

            let outside = entries.iter().any(|entry| entry.path.as_bytes().ends_with(b"secret"));
            if outside || terminal != Reply::Done || hashes != [None] || hashed != Reply::Done {
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
                panic!("{entries:?} {terminal:?} {hashes:?} {hashed:?}");
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn too_many_files_at_once_are_refused() {
    let agent = Agent::start();
    let root = raw(&agent.path(""));

    let (_, _, most) = hash(&agent, root.clone(), &["x"; MAX_HASHED_FILES]);
    let (_, _, more) = hash(&agent, root, &["x"; MAX_HASHED_FILES + 1]);

    assert_eq!(most, Reply::Done);
    assert!(matches!(more, Reply::Error { code: ErrorCode::Invalid, .. }));
    let _: Answer = agent.ask(&Request::Ping);
}
