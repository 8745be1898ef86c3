//! From the initramfs to the machine's own root: mounts, modules, disk.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::{chdir, chroot};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::system::finit_module;

use super::uevents::Uevents;
use crate::console::say;

const MODULES: &str = "/modules";
const DISK: &str = "/dev/vda";
/// How long the disk may take to appear once its driver is loaded.
const DISK_LIMIT: Duration = Duration::from_secs(10);
const NEW_ROOT: &str = "/newroot";
/// What is mounted before the disk and moves to it.
const EARLY: [(&str, &str, MountFlags); 3] = [
    ("proc", "/proc", MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC)),
    ("sysfs", "/sys", MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC)),
    ("devtmpfs", "/dev", MountFlags::NOSUID),
];
/// What is mounted once the disk is the root: kind, place, options.
const LATE: [(&str, &str, MountFlags, &str); 4] = [
    ("devpts", "/dev/pts", MountFlags::NOSUID.union(MountFlags::NOEXEC), "mode=620,gid=5,ptmxmode=666"),
    ("tmpfs", "/dev/shm", MountFlags::NOSUID.union(MountFlags::NODEV), "mode=1777"),
    ("tmpfs", "/run", MountFlags::NOSUID.union(MountFlags::NODEV), "mode=755"),
    ("cgroup2", "/sys/fs/cgroup", MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC), ""),
];
/// Options of ext4 that leave nothing to do to a thread in the background.
const QUIET: &std::ffi::CStr = c"noinit_itable,no_prefetch_block_bitmaps";
/// Names that programs expect in /dev and devtmpfs does not make.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Makes the console standard input, output and error. An initramfs need not have one: it is in devtmpfs, which is
/// mounted for it.
pub(super) fn attach_console() {
    for (kind, place, flags) in EARLY {
        // What is not there now is missed, and reported, by what needs it.
        let _ = fs::create_dir_all(place);
        let _ = mount(kind, place, kind, flags, None);
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    for device in ["/dev/console", "/dev/null"] {
        if let Ok(console) = open(device, flags, Mode::empty()) {
            let _ = dup2_stdin(&console).and(dup2_stdout(&console)).and(dup2_stderr(&console));
            return;
        }
    }
}

/// Mounts the disk without ext4's thread that fills inode tables and reads block bitmaps ahead of need: it would go on
/// working, and its disk growing, in every copy of the machine. Kernels before 5.8 have no such option.
fn mount_disk() -> rustix::io::Result<()> {
    let mount = |options| mount(DISK, NEW_ROOT, "ext4", MountFlags::NOATIME, options);
    match mount(Some(QUIET)) {
        Err(Errno::INVAL) => mount(None),
        other => other,
    }
}

/// Loads modules, mounts the disk, makes it the root and mounts the rest.
///
/// # Errors
/// What was being done, and why it failed: the machine cannot go on.
pub(super) fn bring_up() -> Result<(), String> {
    let uevents = Uevents::open().map_err(|error| format!("listening for devices: {error}"))?;
    load_modules()?;
    wait_for_disk(&uevents)?;
    make_folder(NEW_ROOT)?;
    mount_disk().map_err(|error| format!("mounting {DISK} as ext4: {error}"))?;
    switch_root()?;
    for (kind, place, flags, options) in LATE {
        make_folder(place)?;
        let options = std::ffi::CString::new(options).unwrap_or_default();
        mount(kind, place, kind, flags, options.as_c_str())
            .map_err(|error| format!("mounting {place}: {error}"))?;
    }
    for (target, link) in LINKS {
        // A kernel that makes them itself is welcome to.
        let _ = symlink(target, link);
    }
    make_temporary_folder()
}

/// Loads the modules that the initramfs lists, in its order.
fn load_modules() -> Result<(), String> {
    let order = Path::new(MODULES).join("order");
    let list = match fs::read_to_string(&order) {
        Ok(list) => list,
        // A kernel with everything built in.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("reading {}: {error}", order.display())),
    };
    for name in list.lines().map(str::trim).filter(|name| !name.is_empty()) {
        let loaded = open(Path::new(MODULES).join(name), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|file| finit_module(&file, c"", 0));
        match loaded {
            Ok(()) | Err(Errno::EXIST) => {}
            // Not fatal by itself: what the module was for is missed, and reported, later.
            Err(error) => say(&format!("loading the module {name}: {error}")),
        }
    }
    Ok(())
}

fn wait_for_disk(uevents: &Uevents) -> Result<(), String> {
    let deadline = Instant::now() + DISK_LIMIT;
    while !Path::new(DISK).exists() {
        if Instant::now() >= deadline {
            return Err(format!(
                "no disk: {DISK} did not appear within {} s (modules virtio_mmio and virtio_blk)",
                DISK_LIMIT.as_secs()
            ));
        }
        uevents.wait(deadline);
        uevents.take_any("block");
    }
    Ok(())
}

/// Makes the mounted disk the root of the file system and frees the memory of the initramfs.
fn switch_root() -> Result<(), String> {
    for (_, place, _) in EARLY {
        let target = format!("{NEW_ROOT}{place}");
        make_folder(&target)?;
        mount_move(place, target.as_str()).map_err(|error| format!("moving {place}: {error}"))?;
    }
    let device = fs::metadata("/").map_err(|error| format!("looking at the initramfs: {error}"))?.dev();
    remove_all(Path::new("/"), device);
    let step = |what: &str| {
        let what = what.to_owned();
        move |error: Errno| format!("making the disk the root: {what}: {error}")
    };
    chdir(NEW_ROOT).map_err(step("entering it"))?;
    mount_move(".", "/").map_err(step("moving it"))?;
    chroot(".").map_err(step("changing to it"))?;
    chdir("/").map_err(step("entering the new root"))
}

/// Removes what is in a folder and on the same device: not the disk mounted in it. What cannot be removed costs memory,
/// no more.
fn remove_all(folder: &Path, device: u64) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.dev() != device => {}
            Ok(metadata) if metadata.is_dir() => {
                remove_all(&path, device);
                let _ = fs::remove_dir(&path);
            }
            _ => {
                let _ = fs::remove_file(&path);
            }
        }
    }
}

fn make_folder(path: &str) -> Result<(), String> {
    fs::create_dir_all(path).map_err(|error| format!("making {path}: {error}"))
}

/// Everyone's temporary folder, on the disk: memory is scarcer, and part of every snapshot.
fn make_temporary_folder() -> Result<(), String> {
    let place = Path::new("/tmp");
    if place.exists() {
        return Ok(());
    }
    make_folder("/tmp")?;
    fs::set_permissions(place, fs::Permissions::from_mode(0o1777))
        .map_err(|error| format!("opening /tmp: {error}"))
}
