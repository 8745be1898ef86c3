use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::symlink,
    sync::atomic::{AtomicBool, Ordering},
};

use super::*;

/// A folder with a secret beside it.
struct Lab {
    temporary: tempfile::TempDir,
    folder: TransferFolder,
}

impl Lab {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        fs::create_dir_all(temporary.path().join("in/sub")).unwrap();
        fs::create_dir(temporary.path().join("out")).unwrap();
        fs::write(temporary.path().join("out/secret"), "secret").unwrap();
        let folder = TransferFolder::open(&temporary.path().join("in")).unwrap();
        Self { temporary, folder }
    }

    fn inside(&self, path: &str) -> PathBuf {
        self.temporary.path().join("in").join(path)
    }

    fn outside(&self, path: &str) -> PathBuf {
        self.temporary.path().join("out").join(path)
    }

    fn write(&self, path: &str, text: &str) -> Result<(), Failure> {
        let mut incoming = self.folder.create_file(path)?;
        incoming.take_file().unwrap().write_all(text.as_bytes()).unwrap();
        incoming.finish(&self.folder)
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn files_inside_are_read_and_written_by_either_kind_of_path() {
    let lab = Lab::new();
    lab.write("sub/a", "text").unwrap();
    let absolute = lab.inside("sub/a");

    for given in ["sub/a", "./sub/a", absolute.to_str().unwrap()] {
        let (mut file, size) = lab.folder.open_file(given).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), size), ("text", 4), "{given}");
    }
    lab.write(absolute.to_str().unwrap(), "other").unwrap();
    assert_eq!(fs::read_to_string(&absolute).unwrap(), "other");
    assert_eq!(names(&lab.inside("sub")), ["a"]);
}

#[test]
fn what_leads_out_is_refused() {
    let lab = Lab::new();
    symlink(lab.outside("secret"), lab.inside("link")).unwrap();
    symlink(lab.outside(""), lab.inside("door")).unwrap();
    symlink("sub", lab.inside("inner")).unwrap();
    let secret = lab.outside("secret");
    for given in [
        "../out/secret",
        "sub/../../out/secret",
        "link",
        "door/secret",
        "inner/x",
        secret.to_str().unwrap(),
        "/etc/passwd",
        "/proc/self/root/etc/passwd",
        "",
        ".",
        "sub/",
        "a\0b",
    ] {
        assert!(lab.folder.open_file(given).is_err(), "read {given:?}");
        if given != "link" {
            assert!(lab.write(given, "x").is_err(), "write {given:?}");
        }
    }
    // A link as the last part is replaced, never followed.
    lab.write("link", "x").unwrap();
    assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
    assert_eq!(names(&lab.outside("")), ["secret"]);
}

#[test]
fn hard_links_pipes_and_folders_are_not_read() {
    let lab = Lab::new();
    fs::hard_link(lab.outside("secret"), lab.inside("hard")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, lab.inside("pipe"), Mode::from_raw_mode(0o600)).unwrap();

    for (given, expected) in
        [("hard", "hard links"), ("pipe", "regular"), ("sub", "regular"), ("none", "No such")]
    {
        let failure = lab.folder.open_file(given).unwrap_err();
        assert!(failure.message().contains(expected), "{given}: {failure:?}");
    }
    // Writing replaces the name and leaves what else the file is called.
    lab.write("hard", "new").unwrap();
    assert_eq!(fs::read_to_string(lab.outside("secret")).unwrap(), "secret");
}

#[test]
fn unfinished_file_leaves_nothing() {
    let lab = Lab::new();
    fs::write(lab.inside("a"), "old").unwrap();

    let mut incoming = lab.folder.create_file("a").unwrap();
    incoming.take_file().unwrap().write_all(b"half").unwrap();
    drop(incoming);
    let onto_folder = lab.write("sub", "x");

    assert!(onto_folder.is_err());
    assert_eq!(fs::read_to_string(lab.inside("a")).unwrap(), "old");
    assert_eq!(names(&lab.inside("")), ["a", "sub"]);
}

#[test]
fn folder_that_is_moved_out_meanwhile_is_noticed() {
    let lab = Lab::new();
    let mut incoming = lab.folder.create_file("sub/a").unwrap();
    incoming.take_file().unwrap().write_all(b"text").unwrap();

    fs::rename(lab.inside("sub"), lab.outside("sub")).unwrap();
    // Another one has its name by now.
    fs::create_dir(lab.inside("sub")).unwrap();

    assert!(incoming.finish(&lab.folder).is_err());
    assert_eq!(names(&lab.outside("sub")), Vec::<String>::new());
    assert_eq!(names(&lab.inside("sub")), Vec::<String>::new());
}

/// Says when dropped that it is over.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn racing_link_never_shows_what_is_outside() {
    let lab = Lab::new();
    fs::write(lab.inside("sub/secret"), "public").unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Also when what follows fails: the scope waits for its threads.
        let _stop = Stop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                fs::rename(lab.inside("sub"), lab.inside("aside")).unwrap();
                symlink(lab.outside(""), lab.inside("sub")).unwrap();
                fs::remove_file(lab.inside("sub")).unwrap();
                fs::rename(lab.inside("aside"), lab.inside("sub")).unwrap();
            }
        });
        for _ in 0..2000 {
            if let Ok((mut file, _)) = lab.folder.open_file("sub/secret") {
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                assert_eq!(text, "public");
            }
            let _ = lab.write("sub/new", "x");
        }
    });
    assert_eq!(names(&lab.outside("")), ["secret"]);
}
