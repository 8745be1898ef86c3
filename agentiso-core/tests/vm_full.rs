//! The file system of the state folder runs full, with real machines: what needs room says so and leaves nothing, what
//! runs goes on, and with room everything can be done. Needs root, for a small file system of the test's own, and the state
//! folder that `cargo xtask test` prepares; without them the test says so.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod homes;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use agentiso_core::types::Resources;
use agentiso_core::{Config, EngineError, ForkSpec, Host, SnapshotSpec, WorkspaceSpec, WorkspaceState};
use rustix::fs::{FallocateFlags, fallocate};

/// Machines are as small as they can be.
const RESOURCES: &str = r#"{"vcpus":1,"memory_mb":256,"disk_gb":5}"#;

/// Size of the file system: the image, what boots it, a machine with its memory, and room for a snapshot.
const FILE_SYSTEM_MIB: u32 = 2048;

/// What is said of it, by the system and by the storage.
const SAYS_FULL: [&str; 4] =
    ["No space left", "no storage space", "not enough free space", "database or disk is full"];

/// A small file system in a file, with a state folder. Dropped, it is gone. It is of a kind that disks have: one in memory
/// that runs full ends whatever process reads a page of a file in it for the first time, machines included.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    fn beside(home: &Path) -> Option<Self> {
        let folder = homes::folder_beside(home, "full-");
        let disk = Self { folder };
        fs::create_dir(disk.path()).unwrap();
        let image = disk.folder.path().join("image");
        let mut make = Command::new("mke2fs");
        // Root, too, gets nothing when it is full.
        make.args(["-q", "-t", "ext4", "-m", "0"]).arg(&image).arg(format!("{FILE_SYSTEM_MIB}M"));
        assert!(make.status().unwrap().success(), "could not make a file system");
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(&image).arg(disk.path());
        if !mount.status().is_ok_and(|status| status.success()) {
            return None;
        }
        fs::set_permissions(disk.path(), PermissionsExt::from_mode(0o700)).unwrap();
        homes::bring(home, &disk.path(), &["-a", "--sparse=always"]);
        // It is for a later `init` alone, and large.
        fs::remove_file(disk.path().join("lib/modules.tar")).unwrap();
        Some(disk)
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Fills it up but for so many KiB.
    fn fill(&self, free_kib: u64) {
        let stat = rustix::fs::statvfs(self.path()).unwrap();
        let mut left = (stat.f_bavail * stat.f_frsize).saturating_sub(free_kib << 10);
        let file = fs::File::create(self.filler()).unwrap();
        let mut filled = 0;
        // The last pieces are small: the file system keeps lists of its own of what is used.
        for piece in [1 << 20, 4 << 10] {
            while left >= piece && fallocate(&file, FallocateFlags::empty(), filled, piece).is_ok() {
                filled += piece;
                left -= piece;
            }
        }
    }

    fn make_room(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.filler());
        homes::destroy_all(Config::at(self.path()));
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

fn says_full(what: &str, error: &EngineError) {
    let told = error.report();
    println!("{what}: {told}");
    assert!(SAYS_FULL.iter().any(|words| told.contains(words)), "{what}: {told}");
}

/// Names of files below folders of the state folder.
fn files(home: &Path, folders: &[&str]) -> Vec<PathBuf> {
    let mut left: Vec<PathBuf> = folders.iter().map(|folder| home.join(folder)).collect();
    let mut found = Vec::new();
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => left.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_disk_is_told_and_leaves_everything_as_it_was() {
    let Some(home) = homes::prepared() else { return };
    let Some(disk) = SmallDisk::beside(&home) else {
        return println!("skipped: a file system of its own needs root");
    };
    let mut config = Config::at(disk.path());
    config.templates = false;
    let host = Host::open(config).await.unwrap();
    let resources: Resources = serde_json::from_str(RESOURCES).unwrap();
    let spec = |name: &str| WorkspaceSpec {
        throwaway: true,
        ..WorkspaceSpec::new("debian").name(name).unwrap().resources(resources)
    };
    let workspace = host.create(spec("a")).await.unwrap();
    workspace.exec("echo kept > /root/note; sync").await.unwrap();
    // A machine that has moved to a new layer stays there: the layers are merged when there are many.
    let all_but_layers = ["memory", "disks/disks", "disks/bases", "run", "locks"];
    let before = files(&disk.path(), &all_but_layers);

    // Room for records and manifests, and for nothing larger; then for nothing at all.
    for free_kib in [1024, 0] {
        disk.fill(free_kib);
        says_full("create", &host.create(spec("b")).await.unwrap_err());
        says_full("snapshot", &workspace.snapshot("s").await.unwrap_err());
        says_full("fork", &workspace.fork(ForkSpec::default()).await.unwrap_err());

        assert_eq!(workspace.info().await.unwrap().summary.state, WorkspaceState::Running);
        assert_eq!(workspace.exec("cat /root/note").await.unwrap().stdout_text(), "kept\n");
        assert!(workspace.snapshots().await.unwrap().is_empty());
        assert_eq!(host.list().await.unwrap().len(), 1);
        disk.make_room();
        assert_eq!(files(&disk.path(), &all_but_layers), before, "{free_kib} KiB were free");
    }

    let only_disk = SnapshotSpec { memory: Some(false), ..SnapshotSpec::new("d".parse().unwrap()) };
    workspace.snapshot_with(only_disk).await.unwrap();
    workspace.snapshot("s").await.unwrap();
    let forked = workspace.fork(ForkSpec::default()).await.unwrap();
    assert!(forked.failures.is_empty(), "{:?}", forked.failures);
    for summary in host.list().await.unwrap() {
        let workspace = host.workspace(&summary.name).await.unwrap();
        assert_eq!(workspace.exec("cat /root/note").await.unwrap().stdout_text(), "kept\n");
    }
    for summary in host.list().await.unwrap().into_iter().rev() {
        host.workspace(&summary.name).await.unwrap().destroy().await.unwrap();
    }
    host.close().await;
    assert_eq!(files(&disk.path(), &["disks/layers", "disks/disks", "memory/images"]), Vec::<PathBuf>::new());
}
