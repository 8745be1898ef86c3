//! What an honest guest sends arrives as it was; what a hostile one sends goes nowhere.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::MetadataExt, fs::PermissionsExt, fs::symlink},
    path::{Path, PathBuf},
};

use tar::{Builder, EntryType, Header};

use super::{
    pack::{PackSpec, pack},
    unpack::{UnpackError, UnpackSpec, unpack},
};

/// One entry of a stream: kind, mode, name, link target, content.
struct Entry(EntryType, u32, &'static str, &'static str, &'static [u8]);

fn stream(entries: &[Entry]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for Entry(kind, mode, name, link, data) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        tar.append(&header, *data).unwrap();
    }
    tar.into_inner().unwrap()
}

fn file(name: &'static str, data: &'static [u8]) -> Entry {
    Entry(EntryType::Regular, 0o644, name, "", data)
}

fn folder(name: &'static str) -> Entry {
    Entry(EntryType::Directory, 0o755, name, "", b"")
}

fn link(name: &'static str, target: &'static str) -> Entry {
    Entry(EntryType::Symlink, 0o777, name, target, b"")
}

fn hard_link(name: &'static str, target: &'static str) -> Entry {
    Entry(EntryType::Link, 0o644, name, target, b"")
}

fn unpack_as(folder: &Path, name: Option<&str>, bytes: &[u8]) -> Result<Vec<PathBuf>, UnpackError> {
    let mut skipped = Vec::new();
    let spec = UnpackSpec { folder, name: name.map(OsStr::new), from_root: false, owners: false };
    unpack(&spec, bytes, &mut |path| skipped.push(path.to_owned())).map(|()| skipped)
}

/// Everything below a folder: path, kind letter, permission bits, content or link target.
fn listing(folder: &Path) -> Vec<(String, char, u32, Vec<u8>)> {
    let mut found = Vec::new();
    let mut left = vec![folder.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(folder).unwrap().to_string_lossy().into_owned();
            let (kind, content) = if metadata.is_dir() {
                left.push(path.clone());
                ('d', Vec::new())
            } else if metadata.is_symlink() {
                ('l', fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec())
            } else {
                ('f', fs::read(&path).unwrap())
            };
            found.push((name, kind, metadata.mode() & 0o7777, content));
        }
    }
    found.sort();
    found
}

#[test]
fn what_is_packed_is_unpacked_the_same() {
    let from = tempfile::tempdir().unwrap();
    let tree = from.path().join("tree");
    let long = "n".repeat(120);
    fs::create_dir_all(tree.join("sub").join(&long)).unwrap();
    fs::write(tree.join("sub").join(&long).join("deep"), vec![7; 700_000]).unwrap();
    fs::write(tree.join("program"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(tree.join("program"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::hard_link(tree.join("program"), tree.join("twin")).unwrap();
    fs::write(tree.join(OsStr::from_bytes(b"odd \xff\n name")), "").unwrap();
    symlink("./../nowhere//x", tree.join("link")).unwrap();
    symlink("t".repeat(150), tree.join("long-link")).unwrap();
    fs::create_dir(tree.join("closed")).unwrap();
    fs::write(tree.join("closed/file"), "x").unwrap();
    fs::set_permissions(tree.join("closed"), fs::Permissions::from_mode(0o555)).unwrap();
    for path in ["program", "link", "sub"] {
        let long_ago = rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: long_ago, last_modification: long_ago };
        let links = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, tree.join(path), &times, links).unwrap();
    }
    let to = tempfile::tempdir().unwrap();
    let spec = PackSpec { source: &tree, follow: false, name: Some(OsStr::new("tree")) };
    let bytes = pack(&spec, Vec::new(), &mut |_| ()).unwrap();

    unpack_as(to.path(), Some("copy"), &bytes).unwrap();

    let copy = to.path().join("copy");
    assert_eq!(listing(&copy), listing(&tree));
    assert_eq!(
        fs::metadata(copy.join("program")).unwrap().ino(),
        fs::metadata(copy.join("twin")).unwrap().ino()
    );
    for path in ["program", "closed", "sub", "link"] {
        assert_eq!(
            fs::symlink_metadata(copy.join(path)).unwrap().mtime(),
            fs::symlink_metadata(tree.join(path)).unwrap().mtime(),
            "{path}"
        );
    }
}

#[test]
fn contents_go_into_an_existing_folder_whose_mode_stays() {
    let to = tempfile::tempdir().unwrap();
    fs::set_permissions(to.path(), fs::Permissions::from_mode(0o750)).unwrap();
    fs::write(to.path().join("kept"), "kept").unwrap();

    unpack_as(to.path(), None, &stream(&[folder("src"), file("src/a", b"1")])).unwrap();

    assert_eq!(
        listing(to.path()),
        [("a".into(), 'f', 0o644, b"1".to_vec()), ("kept".into(), 'f', 0o644, b"kept".to_vec())]
    );
    assert_eq!(fs::metadata(to.path()).unwrap().mode() & 0o7777, 0o750);
}

#[test]
fn root_of_a_guest_has_no_first_component_to_drop() {
    let to = tempfile::tempdir().unwrap();
    let spec = UnpackSpec { folder: to.path(), name: None, from_root: true, owners: false };

    unpack(&spec, &stream(&[folder("./"), folder("etc"), file("etc/a", b"1")])[..], &mut |_| ()).unwrap();

    assert_eq!(fs::read(to.path().join("etc/a")).unwrap(), b"1");
}

#[test]
fn file_replaces_a_file_and_a_link_but_never_what_a_link_points_to() {
    let to = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("precious"), "precious").unwrap();
    symlink(outside.path().join("precious"), to.path().join("new")).unwrap();

    unpack_as(to.path(), Some("new"), &stream(&[file("a", b"1")])).unwrap();

    assert_eq!(listing(to.path()), [("new".into(), 'f', 0o644, b"1".to_vec())]);
    assert_eq!(fs::read(outside.path().join("precious")).unwrap(), b"precious");
}

#[test]
fn special_permission_bits_are_dropped() {
    let to = tempfile::tempdir().unwrap();
    let entries = [Entry(EntryType::Regular, 0o6755, "a", "", b"1")];

    unpack_as(to.path(), Some("a"), &stream(&entries)).unwrap();

    assert_eq!(listing(to.path()), [("a".into(), 'f', 0o755, b"1".to_vec())]);
}

#[test]
fn devices_are_left_out_and_named() {
    let to = tempfile::tempdir().unwrap();
    let entries = [folder("a"), Entry(EntryType::Char, 0o666, "a/null", "", b""), file("a/b", b"1")];

    let skipped = unpack_as(to.path(), Some("a"), &stream(&entries)).unwrap();

    assert_eq!(skipped, [to.path().join("a/null")]);
    assert_eq!(fs::read(to.path().join("a/b")).unwrap(), b"1");
}

#[test]
fn nothing_hostile_leaves_the_destination() {
    for (what, entries) in [
        ("parent", vec![file("../escaped", b"1")]),
        ("parent inside", vec![folder("a"), file("a/../../escaped", b"1")]),
        ("absolute", vec![file("/escaped", b"1")]),
        ("sibling", vec![folder("a"), file("escaped", b"1")]),
        ("through a link", vec![folder("a"), link("a/l", ".."), file("a/l/escaped", b"1")]),
        ("through an absolute link", vec![folder("a"), link("a/l", "/"), folder("a/l/escaped")]),
        ("through the first name", vec![link("a", ".."), file("a/escaped", b"1")]),
        ("hard link outside", vec![folder("a"), hard_link("a/escaped", "../outside")]),
        ("hard link to a sibling", vec![folder("a"), hard_link("a/escaped", "outside")]),
        (
            "hard link through a link",
            vec![folder("a"), link("a/l", ".."), hard_link("a/escaped", "a/l/outside")],
        ),
        ("contiguous name of nothing", vec![file("", b"1")]),
        ("sparse", vec![Entry(EntryType::GNUSparse, 0o644, "a", "", b"")]),
    ] {
        let place = tempfile::tempdir().unwrap();
        fs::write(place.path().join("outside"), "secret").unwrap();
        let to = place.path().join("to");
        fs::create_dir(&to).unwrap();

        let error = unpack_as(&to, Some("a"), &stream(&entries)).unwrap_err();

        assert!(matches!(error, UnpackError::Refused { .. } | UnpackError::Host { .. }), "{what}: {error}");
        let outside: Vec<_> =
            listing(place.path()).into_iter().filter(|(name, ..)| !name.starts_with("to")).collect();
        assert_eq!(outside, [("outside".into(), 'f', 0o644, b"secret".to_vec())], "{what}");
        assert!(!listing(&to).iter().any(|(name, ..)| name.contains("escaped")), "{what}");
        assert!(!listing(&to).iter().any(|(name, ..)| name.contains(".agentiso-")), "{what}");
    }
}

#[test]
fn name_without_an_end_is_refused_without_keeping_it() {
    let to = tempfile::tempdir().unwrap();
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(u64::MAX / 4);
    header.set_cksum();
    let endless = std::io::Read::chain(&header.as_bytes()[..], std::io::repeat(b'a'));
    let spec = UnpackSpec { folder: to.path(), name: Some(OsStr::new("a")), from_root: false, owners: false };

    let error = unpack(&spec, endless, &mut |_| ()).unwrap_err();

    assert!(matches!(error, UnpackError::Refused { .. }), "{error}");
}

#[test]
fn file_cut_off_in_the_middle_leaves_nothing() {
    let to = tempfile::tempdir().unwrap();
    let bytes = stream(&[file("a", &[1; 2000])]);

    let error = unpack_as(to.path(), Some("a"), &bytes[..1024]).unwrap_err();

    assert!(matches!(error, UnpackError::Stream(_)), "{error}");
    assert_eq!(listing(to.path()), []);
}

#[test]
fn empty_stream_is_an_error() {
    let to = tempfile::tempdir().unwrap();

    let error = unpack_as(to.path(), Some("a"), &stream(&[])).unwrap_err();

    assert!(matches!(error, UnpackError::Empty), "{error}");
}

#[test]
fn too_many_folders_inside_each_other_are_refused() {
    let to = tempfile::tempdir().unwrap();
    let mut tar = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Directory);
    header.set_mode(0o755);
    header.set_size(0);
    tar.append_data(&mut header, "a/".repeat(600), std::io::empty()).unwrap();

    let error = unpack_as(to.path(), Some("a"), &tar.into_inner().unwrap()).unwrap_err();

    assert!(matches!(error, UnpackError::Refused { .. }), "{error}");
}
