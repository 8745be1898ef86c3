use std::{
    io::{Read, Write},
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::Instant,
};

use super::{sys::mapped::Mapped, *};

const UID: u32 = MachineUid::FIRST + 4_711;
const MIB: usize = 1 << 20;

/// A file of root's that only root can read, in a folder that only root can enter.
struct Scene {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Scene {
    fn new(content: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ram");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o400)).unwrap();
        Self { _folder: folder, path }
    }
}

/// Evaluates to what `open_as` gives for the path, or says why the test is skipped and ends it.
macro_rules! opened {
    ($path:expr) => {
        if !rustix::process::geteuid().is_root() {
            return println!("skipped: not root");
        } else {
            match open_as($path, MachineUid(UID)).unwrap() {
                Some(opened) => opened,
                None => return println!("skipped: no idmapped mounts here"),
            }
        }
    };
}

/// Runs a shell's words as another user, with the descriptor as its standard input.
fn run_as(uid: u32, opened: &OwnedFd, words: &str) -> Output {
    let stdin = Stdio::from(opened.try_clone().unwrap());
    Command::new("/bin/sh").args(["-c", words]).stdin(stdin).uid(uid).gid(uid).output().unwrap()
}

#[test]
fn machine_reads_the_file_again_by_its_descriptor_and_nobody_else_does() {
    let scene = Scene::new(b"memory");
    let opened = opened!(&scene.path);

    let own = run_as(UID, &opened, "cat /proc/self/fd/0; grep CapEff /proc/self/status");
    let other = run_as(UID + 1, &opened, "cat /proc/self/fd/0");
    let plain = File::open(&scene.path).unwrap().into();
    let unmapped = run_as(UID, &plain, "cat /proc/self/fd/0");

    assert_eq!(String::from_utf8_lossy(&own.stdout), "memoryCapEff:\t0000000000000000\n");
    for refused in [other, unmapped] {
        assert!(!refused.status.success());
        assert!(String::from_utf8_lossy(&refused.stderr).contains("Permission denied"), "{refused:?}");
    }
}

#[test]
fn nobody_writes_through_the_descriptor() {
    let scene = Scene::new(b"memory");
    let opened = opened!(&scene.path);

    for uid in [UID, 0] {
        for words in ["echo x > /proc/self/fd/0", "echo x >&0", "chmod 666 /proc/self/fd/0"] {
            let refused = run_as(uid, &opened, words);
            assert!(!refused.status.success(), "{uid}: {words}");
        }
    }
    let by_root = File::options().write(true).open(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    assert_eq!(by_root.unwrap_err().raw_os_error(), Some(Errno::ROFS.raw_os_error()));
    assert!(File::from(opened).write_all(b"x").is_err());
    assert_eq!(std::fs::read(&scene.path).unwrap(), b"memory");
    let metadata = std::fs::metadata(&scene.path).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o400, 0, 0));
}

#[test]
fn pages_are_those_of_the_file_itself() {
    let scene = Scene::new(&vec![7; 4 * MIB]);
    let opened = File::from(opened!(&scene.path));
    let original = File::open(&scene.path).unwrap();
    // Pages that are still to be written count as dirty.
    original.sync_all().unwrap();

    let _first = Mapped::new(&original, 4 * MIB).unwrap();
    let second = Mapped::new(&opened, 4 * MIB).unwrap();

    let (there, same) = (original.metadata().unwrap(), opened.metadata().unwrap());
    assert_eq!((there.dev(), there.ino()), (same.dev(), same.ino()));
    assert_eq!((same.uid(), same.gid()), (UID, UID));
    // A page that both mappings have is shared, one that only the second has would be private.
    assert_eq!(smaps_kib(second.address, "Shared_Clean"), 4096);
    assert_eq!(smaps_kib(second.address, "Private_Clean"), 0);
}

/// A figure of the mapping that contains an address.
fn smaps_kib(address: usize, name: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let bounds = |line: &str| -> Option<(usize, usize)> {
        let (begin, end) = line.split(' ').next()?.split_once('-')?;
        Some((usize::from_str_radix(begin, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
    };
    let mut lines = text.lines();
    lines.find(|line| bounds(line).is_some_and(|(begin, end)| (begin..end).contains(&address))).unwrap();
    let figure = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    figure.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn no_mount_and_no_process_is_left() {
    let scene = Scene::new(b"memory");
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    let opened = opened!(&scene.path);
    assert_eq!(mounts(), before);

    let children = std::fs::read_to_string("/proc/thread-self/children").unwrap();
    let mut content = String::new();
    File::from(opened).read_to_string(&mut content).unwrap();

    assert_eq!((children.as_str(), content.as_str()), ("", "memory"));
    assert_eq!(mounts(), before);
    // Not even the folder's file system is kept in use: the file can go.
    std::fs::remove_file(&scene.path).unwrap();
}

#[test]
fn many_at_once_are_opened_each_for_its_machine() {
    let scene = Scene::new(b"memory");
    drop(opened!(&scene.path));

    std::thread::scope(|threads| {
        for number in 0..16 {
            let path = &scene.path;
            threads.spawn(move || {
                let uid = UID + 10 + number;
                let opened = open_as(path, MachineUid(uid)).unwrap().unwrap();
                assert_eq!(run_as(uid, &opened, "cat /proc/self/fd/0").stdout, b"memory");
            });
        }
    });
}

#[test]
fn file_that_cannot_be_mapped_is_opened_all_the_same() {
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: not root");
    }
    // procfs has no idmapped mounts; its files cannot be changed either.
    assert!(!is_supported(Path::new("/proc")));
    assert!(open_as(Path::new("/proc/version"), MachineUid(UID)).unwrap().is_none());
    let opened = OwnedFd::from(open_for(Path::new("/proc/version"), Some(MachineUid(UID))).unwrap());

    assert!(run_as(UID, &opened, "cat /proc/self/fd/0").stdout.starts_with(b"Linux"));
}

#[test]
fn what_is_no_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();

    for path in [folder.path(), &link, Path::new("/dev/null"), Path::new("/no/such/file")] {
        assert!(open_for(path, Some(MachineUid(UID))).is_err(), "{}", path.display());
        assert!(open_for(path, None).is_err(), "{}", path.display());
    }
}

#[test]
fn cost_is_printed() {
    let scene = Scene::new(b"memory");
    drop(opened!(&scene.path));
    let mut times: Vec<_> = (0..50)
        .map(|_| {
            let begin = Instant::now();
            open_as(&scene.path, MachineUid(UID)).unwrap();
            begin.elapsed()
        })
        .collect();
    times.sort();
    println!("open_as: median {:?}, longest {:?}", times[25], times[49]);
}
