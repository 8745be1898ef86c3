//! Limits that the kernel keeps for a process from outside of it: cgroup v2.
//!
//! Each process that is limited has a group of its own, `agentiso/STATE-WORKSPACE`, in the topmost group that this
//! process may change: the root of the hierarchy for root, the one that was delegated for an ordinary user. The process
//! enters it before it executes its program, so that nothing it does goes uncounted. An empty group is removed by its
//! name alone: the kernel refuses to remove one that holds a process, and a lock on its folder tells that one is about
//! to be used.

use std::{
    fmt::Display,
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};

use crate::types::WorkspaceId;

/// The group that has the groups of all machines.
const PARENT: &str = "agentiso";

/// What is limited. `io` is not everywhere and not asked for by everyone.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
const IO: &str = "io";

/// How long the kernel may take to see that a group is empty whose process has ended.
const EMPTY_LIMIT: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Length of a period in which CPU time is handed out, in microseconds: the kernel's own choice.
const CPU_PERIOD_US: u64 = 100_000;

/// Where the groups of a state folder's machines are.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    /// Where the hierarchy is mounted.
    mount: PathBuf,
    /// The group for all machines, below the mount.
    parent: PathBuf,
    prefix: String,
    has_io: bool,
}

/// What a process may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) memory_bytes: u64,
    pub(crate) swap_bytes: u64,
    /// In whole CPUs.
    pub(crate) cpus: u32,
    /// Processes and threads.
    pub(crate) tasks: u64,
    /// For `io.max`, as in `8:0 rbps=1000`.
    pub(crate) io: Option<String>,
}

/// What a group uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) memory_bytes: u64,
    pub(crate) cpu_us: u64,
    pub(crate) tasks: u64,
}

/// Why there are no groups, or something of one could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    /// Groups cannot be made here.
    #[error("{reason}: {remedy}")]
    Unavailable {
        /// Why.
        reason: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A file of a group.
    #[error("could not {operation} {path}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// To what.
        path: String,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

fn io_error(operation: &'static str, path: &Path, source: io::Error) -> CgroupError {
    CgroupError::Io { operation, path: path.display().to_string(), source }
}

const USE_V2: &str = "boot the host with cgroup v2 alone (systemd.unified_cgroup_hierarchy=1)";
const DELEGATE: &str =
    "start agentiso as root, or in a delegated group (`systemd-run --user --scope -p Delegate=yes ...`)";

/// What keeps groups from being made here, as far as that can be told without making one.
pub(crate) fn obstacle() -> Result<(), CgroupError> {
    let read = |path: &str| fs::read_to_string(path).map_err(|e| io_error("read", Path::new(path), e));
    let mount = mount_point(&read("/proc/self/mountinfo")?)?;
    let own = own_group(&read("/proc/self/cgroup")?).ok_or_else(no_group)?;
    let base = topmost_writable(&mount, &own).ok_or_else(|| belongs_to_others(&own))?;
    let offered = controllers(&base.join("cgroup.controllers"))?;
    match CONTROLLERS.into_iter().find(|wanted| !offered.iter().any(|name| name == wanted)) {
        Some(controller) => Err(no_controller(&base, controller)),
        None => Ok(()),
    }
}

fn no_group() -> CgroupError {
    CgroupError::Unavailable { reason: "this process is in no group of cgroup v2".to_owned(), remedy: USE_V2 }
}

fn belongs_to_others(own: &str) -> CgroupError {
    let reason = format!("group {own} of cgroup v2 and those above it belong to others");
    CgroupError::Unavailable { reason, remedy: DELEGATE }
}

fn no_controller(group: &Path, controller: &str) -> CgroupError {
    CgroupError::Unavailable {
        reason: format!("group {} has no controller {controller}", group.display()),
        remedy: "boot the host with cgroup v2 alone, or have the controller delegated",
    }
}

impl Cgroups {
    /// The groups of this host, with the controllers that are needed.
    pub(crate) fn find(state_id: &str) -> Result<Self, CgroupError> {
        let read = |path: &str| fs::read_to_string(path).map_err(|e| io_error("read", Path::new(path), e));
        let mount = mount_point(&read("/proc/self/mountinfo")?)?;
        let own = own_group(&read("/proc/self/cgroup")?).ok_or_else(no_group)?;
        Self::below(mount, &own, state_id)
    }

    /// The groups in a hierarchy that is mounted at `mount`, for a process in the group `own`.
    fn below(mount: PathBuf, own: &str, state_id: &str) -> Result<Self, CgroupError> {
        let base = topmost_writable(&mount, own).ok_or_else(|| belongs_to_others(own))?;
        enable(&base)?;
        let parent = base.join(PARENT);
        match fs::create_dir(&parent) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io_error("make group", &parent, error));
            }
            _ => {}
        }
        enable(&parent)?;
        let has_io = controllers(&parent.join("cgroup.subtree_control"))?.iter().any(|name| name == IO);
        Ok(Self { mount, parent, prefix: format!("{state_id}-"), has_io })
    }

    /// Makes a group with these limits. It is removed when what is returned is dropped without having been kept.
    pub(crate) fn make(&self, id: WorkspaceId, limits: &Limits) -> Result<Cgroup, CgroupError> {
        let path = self.parent.join(format!("{}{id}", self.prefix));
        // What an earlier machine of this workspace has left.
        remove(&path)?;
        fs::create_dir(&path).map_err(|error| io_error("make group", &path, error))?;
        let mut group = Cgroup { path, locked: None, kept: false };
        let folder = File::open(&group.path).map_err(|error| io_error("open group", &group.path, error))?;
        flock(&folder, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| io_error("lock group", &group.path, error.into()))?;
        group.locked = Some(folder);
        group.set("memory.max", limits.memory_bytes)?;
        if group.path.join("memory.swap.max").exists() {
            group.set("memory.swap.max", limits.swap_bytes)?;
        }
        group.set("memory.oom.group", 1)?;
        group.set("cpu.max", format!("{} {CPU_PERIOD_US}", u64::from(limits.cpus) * CPU_PERIOD_US))?;
        group.set("pids.max", limits.tasks)?;
        if let Some(io) = limits.io.as_ref().filter(|_| self.has_io)
            && let Err(error) = group.set("io.max", io)
        {
            // Not every device can be limited: those of several disks, or in memory, cannot.
            tracing::debug!(%error, "disk throughput is not limited");
        }
        Ok(group)
    }

    /// What /proc/PID/cgroup says of a process in a group.
    pub(crate) fn name_of(&self, group: &Path) -> String {
        format!("0::/{}", group.strip_prefix(&self.mount).unwrap_or(group).display())
    }

    /// The group of this state folder that a process is in, if any.
    pub(crate) fn group_of(&self, pid: u32) -> Option<PathBuf> {
        let own = own_group(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?)?;
        let path = self.mount.join(own.trim_start_matches('/'));
        self.is_ours(&path).then_some(path)
    }

    fn is_ours(&self, path: &Path) -> bool {
        let named = path.file_name().and_then(|name| name.to_str()?.strip_prefix(&self.prefix));
        path.parent() == Some(&self.parent) && named.is_some_and(|id| id.parse::<WorkspaceId>().is_ok())
    }

    /// Removes the groups of this state folder that hold no process and that nobody is about to use. Returns how many.
    pub(crate) fn sweep(&self) -> Result<usize, CgroupError> {
        let entries = fs::read_dir(&self.parent).map_err(|error| io_error("list", &self.parent, error))?;
        let mut removed = 0;
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| self.is_ours(path)) {
            let Ok(folder) = File::open(&path) else { continue };
            if flock(&folder, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            match fs::remove_dir(&path) {
                Ok(()) => removed += 1,
                // It holds a process.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(io_error("remove group", &path, error)),
            }
        }
        Ok(removed)
    }
}

/// A group that was made.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    locked: Option<File>,
    kept: bool,
}

impl Cgroup {
    fn set(&self, file: &str, value: impl Display) -> Result<(), CgroupError> {
        let path = self.path.join(file);
        fs::write(&path, value.to_string()).map_err(|error| io_error("write", &path, error))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What a process writes `0` to, to enter.
    pub(crate) fn entrance(&self) -> Result<OwnedFd, CgroupError> {
        let path = self.path.join("cgroup.procs");
        let file = File::options().write(true).open(&path).map_err(|error| io_error("open", &path, error))?;
        Ok(file.into())
    }

    /// Leaves it to the process that is in it.
    pub(crate) fn keep(mut self) -> PathBuf {
        self.kept = true;
        self.path.clone()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(error) = remove(&self.path) {
            tracing::warn!(%error, "a group was left behind");
        }
    }
}

/// Removes a group whose process has ended. Already gone: no effect. Blocks for moments.
pub(crate) fn remove(path: &Path) -> Result<(), CgroupError> {
    let deadline = Instant::now() + EMPTY_LIMIT;
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(LOOK_AGAIN);
            }
            Err(error) => return Err(io_error("remove group", path, error)),
        }
    }
}

/// What a group uses now.
pub(crate) fn used(path: &Path) -> Result<Used, CgroupError> {
    let read = |file: &str| {
        let path = path.join(file);
        fs::read_to_string(&path).map_err(|error| io_error("read", &path, error))
    };
    let number = |text: &str| text.trim().parse().unwrap_or_default();
    let cpu = read("cpu.stat")?;
    Ok(Used {
        memory_bytes: number(&read("memory.current")?),
        cpu_us: cpu.lines().find_map(|line| line.strip_prefix("usage_usec ")).map_or(0, number),
        tasks: number(&read("pids.current")?),
    })
}

/// The device that `io.max` limits for a file, as `MAJOR:MINOR`: its whole disk; `None` if it is on none.
pub(crate) fn disk_of(device: u64) -> Option<String> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let block = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    let disk = if block.join("partition").exists() { block.parent()? } else { &block };
    Some(fs::read_to_string(disk.join("dev")).ok()?.trim().to_owned())
}

/// Where cgroup v2 is mounted, by /proc/self/mountinfo.
fn mount_point(mountinfo: &str) -> Result<PathBuf, CgroupError> {
    let found = mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut words = left.split(' ').skip(3);
        let (root, point) = (words.next()?, words.next()?);
        (right.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(point))
    });
    found.ok_or_else(|| CgroupError::Unavailable {
        reason: "cgroup v2 is not mounted, or not as a whole".to_owned(),
        remedy: USE_V2,
    })
}

/// A process's group of cgroup v2, by its /proc/PID/cgroup.
fn own_group(text: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// The topmost group at or above `own` that this process may make groups in and move processes into.
fn topmost_writable(mount: &Path, own: &str) -> Option<PathBuf> {
    let own = mount.join(own.trim_start_matches('/'));
    let writable = |group: &&Path| {
        let may = |path: &Path| rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok();
        may(group) && may(&group.join("cgroup.procs")) && may(&group.join("cgroup.subtree_control"))
    };
    own.ancestors().take_while(|group| group.starts_with(mount)).filter(writable).last().map(Path::to_owned)
}

fn controllers(file: &Path) -> Result<Vec<String>, CgroupError> {
    let text = fs::read_to_string(file).map_err(|error| io_error("read", file, error))?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// Lets the groups in this one have limits.
fn enable(group: &Path) -> Result<(), CgroupError> {
    let offered = controllers(&group.join("cgroup.controllers"))?;
    let file = group.join("cgroup.subtree_control");
    let enabled = controllers(&file)?;
    for controller in CONTROLLERS.into_iter().chain([IO]) {
        let has = |list: &[String]| list.iter().any(|name| name == controller);
        if has(&enabled) || (controller == IO && !has(&offered)) {
            continue;
        }
        if !has(&offered) {
            return Err(no_controller(group, controller));
        }
        match fs::write(&file, format!("+{controller}")) {
            Ok(()) => {}
            Err(_) if controller == IO => {}
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                return Err(CgroupError::Unavailable {
                    reason: format!("group {} holds processes itself", group.display()),
                    remedy: "move them into a group below it, or start agentiso in a delegated group",
                });
            }
            Err(error) => return Err(io_error("enable controllers in", &file, error)),
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;
