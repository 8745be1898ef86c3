//! Tar streams, honest and hostile.

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use agentiso_guest::message::{Compression, ErrorCode, Request};
use flate2::write::GzEncoder;
use tar::{Archive, EntryType, Header};

use crate::client::{Agent, Answer};

fn write(agent: &Agent, folder: &str, compression: Compression, preserve: bool, archive: &[u8]) -> Answer {
    let mut connection = agent.connect();
    connection.request(&Request::ArchiveWrite { path: agent.text_path(folder), compression, preserve });
    let mut writer = connection.writer();
    std::thread::scope(|scope| {
        scope.spawn(move || writer.data(archive));
        connection.answer()
    })
}

fn plain(agent: &Agent, archive: &[u8]) -> Answer {
    write(agent, "inside", Compression::None, false, archive)
}

/// An archive of entries whose names are written as they are, legal or not.
#[derive(Default)]
struct Forge(Vec<u8>);

impl Forge {
    fn add(self, kind: EntryType, name: &str, link: &str, content: &[u8]) -> Self {
        self.with_mode(kind, name, link, content, 0o644)
    }

    fn with_mode(self, kind: EntryType, name: &str, link: &str, content: &[u8], mode: u32) -> Self {
        self.with_header(kind, name, link, content, |header| header.set_mode(mode))
    }

    fn with_header(
        mut self,
        kind: EntryType,
        name: &str,
        link: &str,
        content: &[u8],
        change: impl FnOnce(&mut Header),
    ) -> Self {
        let mut header = Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header.set_size(content.len() as u64);
        change(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, content: &[u8]) -> Self {
        self.add(EntryType::Regular, name, "", content)
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.add(EntryType::Symlink, name, target, b"")
    }

    fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn simple() -> Vec<u8> {
    Forge::default().file("a/b/file", b"content").finish()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// A Zstandard frame of one raw block.
fn zstd_frame(content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap();
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xa0];
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&(1 | length << 3).to_le_bytes()[..3]);
    frame.extend_from_slice(content);
    frame
}

/// A skippable frame and two real ones.
fn zstd(content: &[u8]) -> Vec<u8> {
    let (first, second) = content.split_at(700);
    let skippable = [0x51, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, b'a', b'b', b'c'];
    [&skippable[..], &zstd_frame(first), &zstd_frame(second)].concat()
}

#[test]
fn archive_is_unpacked_however_it_is_packed() {
    let agent = Agent::start();
    let cases = [
        ("plain", Compression::None, simple()),
        ("gzip", Compression::Gzip, gzip(&simple())),
        ("zstd", Compression::Zstd, zstd(&simple())),
        ("detect-plain", Compression::Detect, simple()),
        ("detect-gzip", Compression::Detect, gzip(&simple())),
        ("detect-zstd", Compression::Detect, zstd(&simple())),
    ];
    for (folder, compression, archive) in cases {
        let answer = write(&agent, folder, compression, false, &archive);
        assert!(answer.is_done(), "{folder}: {answer:?}");
        assert_eq!(std::fs::read(agent.path(folder).join("a/b/file")).unwrap(), b"content", "{folder}");
    }
}

#[test]
fn names_that_lead_outside_are_refused() {
    let agent = Agent::start();
    for name in ["../evil", "a/../../evil", "a/..", "..", "/../evil"] {
        let answer = plain(&agent, &Forge::default().file(name, b"x").finish());
        assert_eq!(answer.error().0, ErrorCode::Invalid, "{name}");
        assert!(!agent.path("evil").exists(), "{name}");
    }
}

#[test]
fn absolute_names_land_inside() {
    let agent = Agent::start();

    assert!(plain(&agent, &Forge::default().file("//etc/agentiso-evil", b"x").finish()).is_done());

    assert!(agent.path("inside/etc/agentiso-evil").exists());
    assert!(!std::path::Path::new("/etc/agentiso-evil").exists());
}

#[test]
fn links_planted_by_the_archive_lead_nowhere_outside() {
    let agent = Agent::start();
    std::fs::create_dir(agent.path("outside")).unwrap();
    let climb = format!("{}{}", "../".repeat(20), agent.text_path("outside"));
    for target in [agent.text_path("outside").as_str(), "../outside", &climb] {
        let archive = Forge::default()
            .symlink("out", target)
            .file("out/evil", b"x")
            .add(EntryType::Directory, "out/folder", "", b"")
            .symlink("out/link", "x")
            .finish();
        // Whether it is an error or lands inside, nothing may appear outside.
        plain(&agent, &archive);
        assert_eq!(std::fs::read_dir(agent.path("outside")).unwrap().count(), 0, "{target}");
        std::fs::remove_dir_all(agent.path("inside")).unwrap();
    }
}

#[test]
fn file_never_goes_through_a_link_in_its_place() {
    let agent = Agent::start();
    std::fs::write(agent.path("outside"), "old").unwrap();
    let archive = Forge::default().symlink("file", &agent.text_path("outside")).file("file", b"new").finish();

    assert!(plain(&agent, &archive).is_done());

    assert_eq!(std::fs::read(agent.path("outside")).unwrap(), b"old");
    assert_eq!(std::fs::read(agent.path("inside/file")).unwrap(), b"new");
}

#[test]
fn hard_link_to_a_file_outside_is_refused() {
    let agent = Agent::start();
    std::fs::write(agent.path("outside"), "old").unwrap();
    for target in ["../outside", "way/outside"] {
        let archive =
            Forge::default().symlink("way", "..").add(EntryType::Link, "file", target, b"").finish();
        assert!(!plain(&agent, &archive).is_done(), "{target}");
        assert!(!agent.path("inside/file").exists());
    }
}

#[test]
fn devices_and_special_bits_come_with_images_only() {
    let agent = Agent::start();
    let special = Forge::default().with_mode(EntryType::Regular, "program", "", b"x", 0o6755).finish();
    let device = Forge::default().add(EntryType::Char, "null", "", b"").finish();

    assert!(plain(&agent, &special).is_done());

    let mode = std::fs::metadata(agent.path("inside/program")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
    assert_eq!(plain(&agent, &device).error().0, ErrorCode::Invalid);
}

#[test]
fn image_keeps_special_bits_and_attributes_of_any_bytes() {
    if rustix::process::geteuid().as_raw() != 0 {
        eprintln!("skipped: owners can be preserved by root only");
        return;
    }
    let agent = Agent::start();
    let value = b"line\nnul\0=\xff";
    let record = [b" SCHILY.xattr.user.test=".as_slice(), value, b"\n"].concat();
    let record = [(record.len() + 2).to_string().into_bytes(), record].concat();
    let archive = Forge::default()
        .add(EntryType::XHeader, "pax", "", &record)
        .with_mode(EntryType::Regular, "file", "", b"x", 0o4755)
        .finish();

    let answer = write(&agent, "inside", Compression::None, true, &archive);

    if answer.terminal.as_ref().is_some_and(|reply| format!("{reply:?}").contains("not supported")) {
        eprintln!("skipped: the file system of the temporary folder has no extended attributes");
        return;
    }
    assert!(answer.is_done(), "{answer:?}");
    let mut found = [0; 64];
    let count = rustix::fs::getxattr(agent.path("inside/file"), "user.test", &mut found[..]).unwrap();
    assert_eq!(&found[..count], value);
    assert_eq!(std::fs::metadata(agent.path("inside/file")).unwrap().mode() & 0o7777, 0o4755);
}

#[test]
fn owner_that_nobody_can_be_is_refused_where_owners_are_kept() {
    let agent = Agent::start();
    let owned_by = |change: fn(&mut Header)| {
        Forge::default().with_header(EntryType::Regular, "file", "", b"x", change).finish()
    };
    let record = b"18 gid=4294967295\n";
    let by_extension =
        Forge::default().add(EntryType::XHeader, "pax", "", record).file("file", b"x").finish();
    for archive in [
        owned_by(|header| header.set_uid(u32::MAX.into())),
        owned_by(|header| header.set_gid(1 << 32)),
        by_extension,
    ] {
        let kept = write(&agent, "inside", Compression::None, true, &archive);
        let (code, text) = kept.error();
        assert!(code == ErrorCode::Invalid && text.contains("owner"), "{kept:?}");
        let plain = write(&agent, "inside", Compression::None, false, &archive);
        assert!(plain.is_done(), "{plain:?}");
    }
}

#[test]
fn damaged_archives_are_errors() {
    let agent = Agent::start();
    let whole = simple();
    let mut wrong_sum = simple();
    wrong_sum[0] ^= 1;
    let endless_name = Forge::default().add(EntryType::GNULongName, "x", "", &[b'a'; 10_000]).finish();
    let cases: [(&str, Compression, &[u8]); 6] = [
        ("text", Compression::Detect, b"this is no archive, and longer than nothing"),
        ("cut in the header", Compression::Detect, &whole[..300]),
        ("cut in the data", Compression::Detect, &whole[..515]),
        ("wrong checksum", Compression::Detect, &wrong_sum),
        ("name without end", Compression::Detect, &endless_name),
        ("not packed as told", Compression::Gzip, &whole),
    ];
    for (what, compression, archive) in cases {
        let answer = write(&agent, "inside", compression, false, archive);
        assert_eq!(answer.error().0, ErrorCode::Invalid, "{what}");
    }
}

/// Found by fuzzing: rounding such a size up to whole blocks went past the largest number.
#[test]
fn sizes_that_no_archive_can_have_are_refused() {
    let agent = Agent::start();
    for size in [u64::MAX, u64::MAX - 510] {
        let mut header = Header::new_gnu();
        header.set_size(size);
        header.as_mut_bytes()[0] = b'x';
        header.set_cksum();
        let record = format!("29 size={size}\n");
        let extended =
            Forge::default().add(EntryType::XHeader, "x", "", record.as_bytes()).file("x", b"x").finish();
        for archive in [header.as_bytes().as_slice(), &extended] {
            let answer = plain(&agent, archive);

            let (code, message) = answer.error();
            assert!(code == ErrorCode::Invalid && message.contains(&size.to_string()), "{size}: {message}");
        }
    }
}

#[test]
fn zstandard_window_that_would_fill_memory_is_refused() {
    let agent = Agent::start();
    // A window of 2 GiB is announced.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x02, 0xff, 0xff, 0x00];

    let answer = write(&agent, "inside", Compression::Zstd, false, &frame);

    assert_eq!(answer.error().0, ErrorCode::Invalid);
    assert!(agent.resident_kib() < 32 * 1024, "{} KiB", agent.resident_kib());
}

#[test]
fn folder_comes_back_as_it_was() {
    let agent = Agent::start();
    let long = "n".repeat(120);
    std::fs::create_dir_all(agent.path("from/deep")).unwrap();
    std::fs::write(agent.path("from/deep").join(&long), "long").unwrap();
    std::fs::write(agent.path("from/script"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(agent.path("from/script"), std::fs::Permissions::from_mode(0o750)).unwrap();
    std::fs::hard_link(agent.path("from/script"), agent.path("from/other")).unwrap();
    symlink("/absolute/target", agent.path("from/link")).unwrap();
    agent.shell(&format!(
        "touch -d @1000000 {} {}",
        agent.text_path("from/script"),
        agent.text_path("from/deep")
    ));

    let packed = agent.ask(&Request::ArchiveRead { path: agent.text_path("from"), follow: false });
    assert!(packed.is_done());
    assert!(write(&agent, "to", Compression::None, false, &packed.data).is_done());

    let to = agent.path("to/from");
    let script = std::fs::metadata(to.join("script")).unwrap();
    assert_eq!(std::fs::read(to.join("deep").join(&long)).unwrap(), b"long");
    assert_eq!((script.mode() & 0o7777, script.mtime(), script.nlink()), (0o750, 1_000_000, 2));
    assert_eq!(std::fs::metadata(to.join("deep")).unwrap().mtime(), 1_000_000);
    assert_eq!(std::fs::read_link(to.join("link")).unwrap().to_str(), Some("/absolute/target"));
}

#[test]
fn link_is_packed_as_itself_or_followed_as_asked() {
    let agent = Agent::start();
    std::fs::write(agent.path("file"), "content").unwrap();
    symlink("file", agent.path("link")).unwrap();
    let packed = |follow| {
        let answer = agent.ask(&Request::ArchiveRead { path: agent.text_path("link"), follow });
        let mut archive = Archive::new(&answer.data[..]);
        let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
        let mut content = String::new();
        entry.read_to_string(&mut content).unwrap();
        (entry.path().unwrap().into_owned(), entry.header().entry_type(), content)
    };

    assert_eq!(packed(false), ("link".into(), EntryType::Symlink, String::new()));
    assert_eq!(packed(true), ("link".into(), EntryType::Regular, "content".to_owned()));
}

#[test]
fn missing_path_is_not_found() {
    let agent = Agent::start();

    let answer = agent.ask(&Request::ArchiveRead { path: agent.text_path("missing"), follow: false });

    assert_eq!(answer.error().0, ErrorCode::NotFound);
}
