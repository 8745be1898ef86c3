//! The way from a launch spec to a machine that runs, with everything undone when it ends early.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::{
        fd::OwnedFd,
        unix::{fs::MetadataExt, net::UnixStream},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    Qemu,
    arrange::{Arranged, Inheritance, arrange, identity},
    files::{Folder, io_error},
    memory::{difference, image::Shape, pages::RamMapping},
    monitor::{self, Monitor},
    verify,
};
use crate::{
    hypervisor::{HypervisorError, LaunchSpec, Machine, MachineLog, log::printable},
    process::cgroup::{Cgroup, CgroupError},
    process::{self, Detached, FileRules, SpawnError, Started, program_folders, start_name},
    types::{MachineUid, ProcessRef, WorkspaceId},
};

/// How long QEMU may take to build a machine. A tenth of a second is usual; a busy host takes longer.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long the console's companion may take to write down the last words of a machine that has ended.
pub(super) const LAST_WORDS_LIMIT: Duration = Duration::from_secs(2);

/// How long a killed process may take to go: the kernel frees its memory first.
pub(super) const KILL_LIMIT: Duration = Duration::from_secs(30);

/// How much of a log an error shows, in bytes.
const ERROR_LOG_BYTES: u64 = 4096;

/// Descriptors that QEMU may have: about 130 for a machine with 31 ports, and four for each pivot of its disk.
const OPEN_FILES: u64 = 1024;

/// Threads that QEMU may have, where they can be counted for it alone: vCPUs, up to 64 disk workers, its own few.
pub(super) const THREADS: u64 = 256;

/// Why most machines that do not start do not start.
const ENDED: &str = "QEMU ended before it had built the machine";

const CONSOLE_LOG: &str = "console.log";
const STDERR_LOG: &str = "stderr.log";

/// What a machine's record needs beyond its process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Details {
    /// The process that writes its logs.
    pub(super) console: ProcessRef,
    /// What a machine that is started from its memory must look like.
    #[serde(default)]
    pub(super) shape: Option<Shape>,
    /// The group that it is in, if it is limited.
    #[serde(default)]
    pub(super) cgroup: Option<PathBuf>,
}

/// The link to the base that a machine's RAM is a private mapping of.
pub(super) const RAM: &str = "base.ram";

/// The name of a log's file.
pub(super) fn log_name(log: MachineLog) -> &'static str {
    match log {
        MachineLog::Console => CONSOLE_LOG,
        MachineLog::Stderr => STDERR_LOG,
    }
}

/// The newest bytes of a log; none if there is no such log.
pub(super) fn log_tail(folder: &Folder, log: MachineLog, max_bytes: u64) -> Result<Vec<u8>, HypervisorError> {
    let name = log_name(log);
    let failed = |source| io_error("read", &folder.path(name), source);
    let Some(mut file) = folder.read(name)? else { return Ok(Vec::new()) };
    let len = file.metadata().map_err(failed)?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(max_bytes))).map_err(failed)?;
    let mut newest = Vec::new();
    file.take(max_bytes).read_to_end(&mut newest).map_err(failed)?;
    Ok(newest)
}

/// A machine on its way. Dropping it ends its processes and removes its files, logs included.
struct Underway {
    id: WorkspaceId,
    machine: Started,
    console: Started,
    /// Removed after its process.
    cgroup: Option<Cgroup>,
    files: Files,
    expected: verify::Expected,
    shape: Shape,
    restore: Option<Restore>,
}

/// What a machine that does not boot begins with.
pub(super) struct Restore {
    pub(super) ram: File,
    pub(super) difference: Option<File>,
    pub(super) devices: String,
}

/// Files of a machine in its run folder.
struct Files {
    folder: Folder,
    keep: bool,
}

impl Drop for Files {
    fn drop(&mut self) {
        if !self.keep {
            for name in
                [monitor::SOCKET, monitor::RESERVED_SOCKET, monitor::LOCK, RAM, CONSOLE_LOG, STDERR_LOG]
            {
                if let Err(error) = self.folder.remove(name) {
                    tracing::warn!(%error, "a machine that did not start left a file behind");
                }
            }
        }
    }
}

/// Removes what belongs to a machine in its run folder, but its logs.
pub(super) fn remove_files(folder: &Folder) -> Result<(), HypervisorError> {
    [monitor::SOCKET, monitor::RESERVED_SOCKET, monitor::LOCK, RAM]
        .into_iter()
        .try_for_each(|name| folder.remove(name))
}

/// Starts a machine.
pub(super) async fn launch(qemu: &Qemu, spec: LaunchSpec) -> Result<Machine, HypervisorError> {
    let (id, run_dir) = (spec.id, spec.run_dir.clone());
    let begin = Instant::now();
    let starter = qemu.clone();
    // Fork and exec block for milliseconds. If this future is dropped meanwhile, so is what comes of it.
    let mut underway = tokio::task::spawn_blocking(move || start(&starter, spec))
        .await
        .map_err(|_| launch_error(id, "starting it was interrupted"))??;
    let started = begin.elapsed();
    let mut monitor = match underway.greeted(&run_dir).await {
        Ok(monitor) => monitor,
        Err((reason, source)) => return Err(underway.failed(reason, source).await),
    };
    let greeted = begin.elapsed();
    if let Err(complaint) = verify::check(underway.machine.process().pid, &underway.expected) {
        drop(monitor);
        return Err(underway
            .failed(format!("its process is not confined as asked: {complaint}"), None)
            .await);
    }
    let verified = begin.elapsed();
    if let Some(restore) = underway.restore.take() {
        if let Err((reason, source)) = underway.restore(restore, &mut monitor).await {
            drop(monitor);
            return Err(underway.failed(reason, source).await);
        }
        tracing::debug!(machine = %id, ?started, ?greeted, ?verified, restored = ?begin.elapsed(), "launched");
        // QEMU answers when the vCPUs leave its main loop a turn, tens of milliseconds later. Whoever wants something of
        // the control socket waits for that, and nobody else.
        tokio::spawn(async move {
            if let Err(error) = monitor.run().await {
                tracing::warn!(machine = %id, %error, "a restored machine did not confirm that it runs");
            }
        });
        return underway.finish(run_dir);
    }
    if let Err(error) = monitor.run().await {
        drop(monitor);
        return Err(underway.failed("its vCPUs could not be started".to_owned(), Some(error.into())).await);
    }
    tracing::debug!(machine = %id, ?started, ?greeted, ?verified, running = ?begin.elapsed(), "launched");
    underway.finish(run_dir)
}

impl Underway {
    /// Waits until QEMU has built the machine, or has ended.
    async fn greeted(&self, run_dir: &Path) -> Result<Monitor, (String, Option<Source>)> {
        let process = self.machine.process();
        tokio::select! {
            biased;
            exited = process.wait_exit(START_LIMIT) => Err(match exited {
                Ok(true) => (ENDED.to_owned(), None),
                Ok(false) => (format!("QEMU did not build the machine within {START_LIMIT:?}"), None),
                Err(error) => ("QEMU could not be watched".to_owned(), Some(error.into())),
            }),
            opened = Monitor::open_within(run_dir, START_LIMIT) => match opened {
                Ok(monitor) => Ok(monitor),
                // The socket closes a little before the process has ended, which is what matters to people.
                Err(_) if matches!(process.wait_exit(LAST_WORDS_LIMIT).await, Ok(true)) => Err((ENDED.to_owned(), None)),
                Err(error) => Err(("its control socket did not answer".to_owned(), Some(error.into()))),
            }
        }
    }

    /// Puts memory and devices in place, the memory first: loading the devices reads what they have in there.
    async fn restore(&self, restore: Restore, monitor: &mut Monitor) -> Result<(), (String, Option<Source>)> {
        let Restore { ram, difference, devices } = restore;
        if let Some(mut difference) = difference {
            let (pid, bytes) = (self.machine.process().pid, self.shape.memory.bytes());
            tokio::task::spawn_blocking(move || {
                let mapping = RamMapping::find(pid, ram.metadata()?.ino(), bytes)?;
                difference::apply(&mut difference, &mapping, bytes)
            })
            .await
            .unwrap_or_else(|error| Err(error.into()))
            .map_err(|error| ("its memory could not be put in place".to_owned(), Some(error.into())))?;
        }
        monitor
            .load_devices(&devices)
            .await
            .map_err(|error| ("the state of its devices could not be loaded".to_owned(), Some(error.into())))
    }

    /// Ends it, and says what went wrong together with what it printed.
    async fn failed(self, reason: String, source: Option<Source>) -> HypervisorError {
        let (machine, console) = (self.machine.process(), self.console.process());
        // Errors of what is only tidying up would hide the one that matters; dropping kills again.
        let _ = machine.signal(rustix::process::Signal::KILL);
        let _ = machine.wait_exit(KILL_LIMIT).await;
        let _ = console.wait_exit(LAST_WORDS_LIMIT).await;
        let mut log = String::new();
        for kind in [MachineLog::Stderr, MachineLog::Console] {
            log.push_str(&printable(
                &log_tail(&self.files.folder, kind, ERROR_LOG_BYTES).unwrap_or_default(),
            ));
        }
        HypervisorError::Launch { id: self.id, reason, log: log.trim_end().to_owned(), source }
    }

    fn finish(mut self, run_dir: PathBuf) -> Result<Machine, HypervisorError> {
        let details = serde_json::to_value(Details {
            console: self.console.process().clone(),
            shape: Some(self.shape),
            cgroup: self.cgroup.as_ref().map(|group| group.path().to_owned()),
        })
        .map_err(|error| io_error("record", &run_dir, error.into()))?;
        self.files.keep = true;
        self.cgroup.take().map(Cgroup::keep);
        self.console.keep();
        Ok(Machine { id: self.id, process: self.machine.keep(), run_dir, details })
    }
}

type Source = Box<dyn std::error::Error + Send + Sync>;

pub(super) fn launch_error(id: WorkspaceId, reason: impl Into<String>) -> HypervisorError {
    HypervisorError::Launch { id, reason: reason.into(), log: String::new(), source: None }
}

/// Starts both processes. Blocks.
fn start(qemu: &Qemu, spec: LaunchSpec) -> Result<Underway, HypervisorError> {
    let name = start_name(&qemu.state_id, spec.id);
    let files = Files { folder: Folder::open(&spec.run_dir)?, keep: false };
    let folder = &files.folder;
    let pipe_error = |source| io_error("make pipes for", &qemu.program.path, source);
    let (console_near, console_far) = UnixStream::pair().map_err(pipe_error)?;
    let (stderr_read, stderr_write) = std::io::pipe().map_err(pipe_error)?;
    let logs = [folder.create(CONSOLE_LOG)?, folder.create(STDERR_LOG)?];

    let uid = spec.uid;
    let id = spec.id;
    let mut machine = Inheritance::new(&qemu.program.path);
    let stdio = [OwnedFd::from(stderr_write.try_clone().map_err(pipe_error)?), stderr_write.into()];
    let expected_stdio = stdio.iter().map(identity).collect::<io::Result<Vec<_>>>().map_err(pipe_error)?;
    let file_bytes = most_file_bytes(&spec);
    let shape = qemu.shape(&spec);
    let limited = |error| launch_failed(id, "its limits could not be set", error);
    let cgroup = qemu.limiter.as_ref().map(|limiter| limiter.cgroups.make(id, &limiter.of(&spec)));
    let cgroup = cgroup.transpose().map_err(limited)?;
    let group_name = qemu.limiter.as_ref().zip(cgroup.as_ref());
    let group_name = group_name.map(|(limiter, group)| limiter.cgroups.name_of(group.path()));
    let Arranged { words, rules, restore } =
        arrange(qemu, &name, spec, &shape, folder, console_far.into(), &mut machine)?;
    let Inheritance { mut detached, mut identities } = machine;
    identities.extend(expected_stdio);
    identities.insert(identity(&File::open("/dev/null").map_err(pipe_error)?).map_err(pipe_error)?);
    let [stdout, stderr] = stdio;
    detached.args(words).stdout(stdout).stderr(stderr).env("LC_ALL", "C").uid(uid).files(rules);
    detached.open_files(OPEN_FILES).file_bytes(file_bytes);
    detached.cgroup(cgroup.as_ref().map(Cgroup::entrance).transpose().map_err(limited)?);
    if uid.is_some() {
        detached.threads(THREADS);
    } else {
        // Whoever forks the machine live reads its memory, and need not be who started it.
        detached.any_reader(process::asks_for_a_reader());
    }

    let console = start_console(qemu, &name, uid, console_near.into(), stderr_read.into(), logs)?;
    let machine = detached.start().map_err(|error| spawn_error(id, "QEMU could not be started", error))?;
    let expected = verify::Expected {
        uid: uid.map_or_else(|| rustix::process::geteuid().as_raw(), |uid| uid.0),
        by_root: uid.is_some(),
        passed: identities,
        open_files: OPEN_FILES,
        group: group_name,
    };
    Ok(Underway { id, machine, console, cgroup, files, expected, shape, restore })
}

fn spawn_error(id: WorkspaceId, reason: &str, error: SpawnError) -> HypervisorError {
    HypervisorError::Launch { id, reason: reason.to_owned(), log: String::new(), source: Some(error.into()) }
}

fn launch_failed(id: WorkspaceId, reason: &str, error: CgroupError) -> HypervisorError {
    HypervisorError::Launch { id, reason: reason.to_owned(), log: String::new(), source: Some(error.into()) }
}

/// How far QEMU may write in a file: a qcow2 layer holds the whole disk and its tables, which are below one
/// thousandth of it; more is a guest that broke in and fills the host's disk.
fn most_file_bytes(spec: &LaunchSpec) -> u64 {
    let disk = spec.disk.layers.first().map_or(0, |layer| layer.bytes);
    disk.saturating_add(disk / 64).saturating_add(256 * 1024 * 1024)
}

/// Starts the process that writes a machine's logs, for as long as it prints.
fn start_console(
    qemu: &Qemu,
    name: &str,
    uid: Option<MachineUid>,
    console: OwnedFd,
    stderr: OwnedFd,
    logs: [File; 2],
) -> Result<Started, HypervisorError> {
    let rules = program_folders(&qemu.shim).into_iter().fold(FileRules::nothing(), FileRules::read_execute);
    let mut detached = Detached::new(&qemu.shim);
    detached.args(["console", name]).uid(uid).files(rules.read("/etc/ld.so.cache")).open_files(64);
    detached.pass(console);
    detached.pass(stderr);
    for log in logs {
        detached.pass(log.into());
    }
    detached.start().map_err(|error| shim_missing(qemu, error))
}

/// Why the companion program could not be started.
pub(super) fn shim_missing(qemu: &Qemu, error: SpawnError) -> HypervisorError {
    match error {
        SpawnError::Prepare { source, .. } if source.kind() == io::ErrorKind::NotFound => {
            HypervisorError::Missing {
                what: format!("agentiso-shim ({})", qemu.shim.display()),
                remedy: "run `agentiso init`, which puts it there".to_owned(),
            }
        }
        error => HypervisorError::Io {
            operation: "start",
            object: format!("{}", qemu.shim.display()),
            source: io::Error::other(error),
        },
    }
}
