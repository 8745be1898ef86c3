//! `cp` in both directions, by the rules of `docker cp`.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod common;

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    process::Stdio,
};

use common::vm::{self, Machine};
use sha2::{Digest, Sha256};

fn sum(path: &Path) -> String {
    let mut digest = Sha256::new();
    std::io::copy(&mut File::open(path).unwrap(), &mut digest).unwrap();
    format!("{:x}", digest.finalize())
}

#[test]
fn fifty_random_megabytes_arrive_intact_both_ways() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "cp", &[]);
    let folder = tempfile::tempdir().unwrap();
    let (there, back) = (folder.path().join("there"), folder.path().join("back"));
    let mut random = File::open("/dev/urandom").unwrap().take(50 * 1024 * 1024);
    std::io::copy(&mut random, &mut File::create(&there).unwrap()).unwrap();
    fs::set_permissions(&there, fs::Permissions::from_mode(0o640)).unwrap();

    cli.ok(&["cp", there.to_str().unwrap(), &machine.path("/root/data")]);
    let inside = machine.sh("sha256sum /root/data | cut -d' ' -f1; stat -c '%a %U' /root/data");
    cli.ok(&["cp", &machine.path("/root/data"), back.to_str().unwrap()]);

    assert_eq!(inside, format!("{}\n640 root\n", sum(&there)));
    assert_eq!(sum(&back), sum(&there));
    assert_eq!(fs::metadata(&back).unwrap().mode() & 0o7777, 0o640);
}

#[test]
fn folder_keeps_modes_links_and_times_both_ways() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "cp", &[]);
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    fs::create_dir_all(tree.join("sub/empty")).unwrap();
    fs::write(tree.join("program"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(tree.join("program"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::hard_link(tree.join("program"), tree.join("sub/twin")).unwrap();
    fs::write(tree.join("sub/secret"), "s").unwrap();
    fs::set_permissions(tree.join("sub/secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(tree.join("sub/empty"), fs::Permissions::from_mode(0o711)).unwrap();
    fs::write(tree.join("n".repeat(150)), "long").unwrap();
    symlink("sub/secret", tree.join("link")).unwrap();
    symlink("/no/where", tree.join("dangling")).unwrap();
    let describe = "find . -type f -printf '%P %m %s %Ts\\n' | sort; \
                    find . -type l -printf '%P %l\\n' | sort; find . -type d -printf '%P %m\\n' | sort";

    cli.ok(&["cp", tree.to_str().unwrap(), &machine.path("/root/tree")]);
    let ran = machine.sh("/root/tree/sub/twin");
    let same_inode = machine.sh("cd /root/tree; [ program -ef sub/twin ] && echo same");
    let inside = machine.sh(&format!("cd /root/tree; {describe}"));
    cli.ok(&["cp", &machine.path("/root/tree"), folder.path().join("back").to_str().unwrap()]);

    let outside = |path: &Path| {
        let output =
            std::process::Command::new("sh").args(["-c", describe]).current_dir(path).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!((ran.as_str(), same_inode.as_str()), ("ran\n", "same\n"));
    assert_eq!(inside, outside(&tree));
    assert_eq!(outside(&folder.path().join("back")), outside(&tree));
}

#[test]
fn destinations_are_those_of_docker() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "cp", &[]);
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir(at("d")).unwrap();
    fs::write(at("d/f"), "f").unwrap();
    machine.sh("mkdir -p /t/exists; echo old > /t/file; ln -s exists /t/link; ln -s file /t/filelink");

    for (source, destination) in [
        (at("d/f"), "/t/new"),
        (at("d/f"), "/t/exists"),
        (at("d/f"), "/t/exists/named"),
        (at("d"), "/t/exists"),
        (at("d"), "/t/copied"),
        (at("d/."), "/t/link"),
        (at("d/f"), "/t/filelink"),
        (at("d/f"), "t/relative"),
    ] {
        cli.ok(&["cp", &source, &machine.path(destination)]);
    }
    let found = machine
        .sh("cd /t; find . -type f -o -type l | sort | xargs -n1 sh -c 'echo $0 $(cat $0 2>/dev/null)'");
    for (source, destination, reason) in [
        (at("d/f"), "/t/missing/", "does not exist"),
        (at("d/f"), "/no/where", "does not exist"),
        (at("d"), "/t/file", "cannot take the place"),
        (at("missing"), "/t", "could not read"),
        (at("d/f/"), "/t", "not a folder"),
        (at("d/f"), "/dev/null", "neither a file nor a folder"),
    ] {
        let ended = cli.run(&["cp", &source, &machine.path(destination)]);

        assert_eq!(ended.status, 1, "{source} {destination}: {ended:?}");
        assert!(ended.stderr.contains(reason), "{source} {destination}: {ended:?}");
    }

    let expected = "./copied/f f\n./exists/d/f f\n./exists/f f\n./exists/named f\n./file f\n./filelink f\n./link\n./new f\n./relative f\n";
    assert_eq!(found, expected);
}

#[test]
fn tar_streams_go_in_and_out() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "cp", &[]);
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, "in/hello", &b"hello"[..]).unwrap();
    let stream = tar.into_inner().unwrap();
    let mut child = cli.command(&["cp", "-", &machine.path("/root")]).stdin(Stdio::piped()).spawn().unwrap();

    child.stdin.take().unwrap().write_all(&stream).unwrap();
    let sent = child.wait_with_output().unwrap();
    let out = cli.command(&["cp", &machine.path("/root/in"), "-"]).output().unwrap();

    assert!(sent.status.success(), "{sent:?}");
    let mut archive = tar::Archive::new(&out.stdout[..]);
    let files: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            (entry.path().unwrap().display().to_string().trim_end_matches('/').to_owned(), text)
        })
        .collect();
    assert_eq!(files, [("in".to_owned(), String::new()), ("in/hello".to_owned(), "hello".to_owned())]);
}

#[test]
fn file_of_a_guest_never_replaces_a_folder_and_a_device_is_left_out() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "cp", &[]);
    let folder = tempfile::tempdir().unwrap();
    machine.sh("mkdir -p /t/d; echo x > /t/d/x; mknod /t/d/null c 1 3; chmod u+s /t/d/x");

    let copied = cli.run(&["cp", &machine.path("/t/d"), folder.path().to_str().unwrap()]);
    let missing = cli.run(&["cp", &machine.path("/t/none"), folder.path().to_str().unwrap()]);

    assert_eq!((copied.status, missing.status), (0, 1), "{copied:?} {missing:?}");
    assert_eq!(fs::metadata(folder.path().join("d/x")).unwrap().mode() & 0o7000, 0);
    assert!(!folder.path().join("d/null").exists());
    assert!(missing.stderr.contains("/t/none"), "{missing:?}");
}
