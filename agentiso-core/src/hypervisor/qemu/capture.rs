//! A machine's memory, device state and disk at one moment, taken while it runs.
//!
//! Everything that can be is done before the machine stands still: the new disk layer is open, the written pages were
//! counted once and room for them is there, the file for the device state is in QEMU's hands. Then: stop, save the
//! device state, move the disk, find the written pages, copy them, run on. Files are written afterwards.
//!
//! While it stands still, a *guard* holds the machine's second control socket: a process of its own that lets the
//! machine run again when this one dies or takes too long.

use std::{
    fs::File,
    io::{PipeWriter, Write},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    time::{Duration, Instant},
};

use tokio::net::UnixStream;

use super::{
    CAPTURE_LIMIT, Qemu,
    files::{Folder, io_error},
    launch::{Details, RAM, shim_missing},
    memory::{
        copy::Buffer,
        image::{Content, Draft, Images, Shape},
        pages::RamMapping,
        {Run, total},
    },
    monitor::{self, MonitorError, RunState},
    qmp::Qmp,
};
use crate::{
    hypervisor::{AfterCapture, Capture, CaptureSpec, DiskStep, HypervisorError, Machine},
    process::{Detached, FileRules, Started, program_folders, start_name},
    types::{MachineUid, ProcessRef, SnapshotId},
};

/// How much more than was counted before room is made for, in bytes: the machine goes on writing until it stands
/// still.
const MARGIN: u64 = 8 * 1024 * 1024;

/// How long QEMU may take to greet on its reserved socket.
const GREETING_LIMIT: Duration = Duration::from_secs(5);

/// What was made ready before the machine stands still.
struct Ready {
    draft: Draft,
    shape: Shape,
    ram: RamMapping,
    room: Buffer,
    devices: File,
}

/// Captures a machine.
pub(super) async fn capture(
    qemu: &Qemu,
    machine: &Machine,
    spec: CaptureSpec<'_>,
) -> Result<Capture, HypervisorError> {
    const OPERATION: &str = "capture";
    let failed = |error| super::failed(OPERATION, machine, error);
    let mut watch = Stopwatch::start();
    let ready = {
        let (images, machine, image) = (Images::of(&qemu.state_dir), machine.clone(), spec.image);
        blocking(move || prepare(&images, &machine, image)).await?
    };
    let Ready { draft, shape, ram, mut room, devices } = ready;
    let mut monitor = qemu.monitor(OPERATION, machine).await?;
    if monitor.run_state().await.map_err(failed)? != RunState::Running {
        return Err(not_running(machine));
    }
    let target = monitor.lend_file(&devices, OPERATION).await.map_err(failed)?;
    if let DiskStep::Pivot(to) = &spec.disk {
        monitor.prepare_pivot(to).await.map_err(failed)?;
    }
    let guard = Guard::post(qemu, machine, spec.uid).await?;
    watch.lap("prepare");

    let paused = Instant::now();
    let stopped = async {
        monitor.stop().await.map_err(failed)?;
        watch.lap("stop");
        monitor.save_devices(&target).await.map_err(failed)?;
        watch.lap("save devices");
        let instant = match spec.disk {
            DiskStep::Keep => None,
            DiskStep::Pivot(to) => {
                monitor.pivot(&to).await.map_err(failed)?;
                None
            }
            DiskStep::Instant(snapshot) => Some(snapshot),
        };
        watch.lap("move the disk");
        let snapshot = async {
            let Some(snapshot) = instant else { return Ok(()) };
            snapshot.await.map_err(|error| HypervisorError::Control {
                operation: "snapshot the disk of",
                id: machine.id,
                source: error.into(),
            })
        };
        let copying = blocking(move || {
            let scan = |ram: &RamMapping| ram.written().map_err(memory_error);
            let begun = Instant::now();
            let runs = scan(&ram)?;
            let scanned = begun.elapsed();
            room.fill(&ram, &runs).map_err(memory_error)?;
            Ok((runs, room, scanned))
        });
        // Whoever takes the snapshot waits for a disk most of the time. Both end before the machine runs again.
        let (taken, copied) = tokio::join!(snapshot, copying);
        taken?;
        let copied = copied?;
        watch.split("find written pages", copied.2, "copy them");
        // What a machine that has run meanwhile had in its memory was of more than one moment.
        match monitor.run_state().await.map_err(failed)? {
            RunState::Stopped => Ok((copied.0, copied.1)),
            _ => Err(HypervisorError::TooSlow { id: machine.id, limit: CAPTURE_LIMIT }),
        }
    }
    .await;
    let resumed = match (&stopped, spec.after) {
        (Ok(_), AfterCapture::StayPaused) => Ok(()),
        _ => monitor.run().await.map_err(failed),
    };
    let pause = paused.elapsed();
    watch.lap("run on");
    // Only a machine that runs again is safe without its guard.
    if resumed.is_ok() {
        guard.dismiss();
    }
    // Best effort, and nothing the machine needs: QEMU keeps a file that nobody can reach.
    let _ = monitor.take_back(OPERATION).await;
    drop(monitor);
    let (runs, room) = stopped?;
    resumed?;

    let written_bytes = total(&runs);
    let base = machine.run_dir.join(RAM);
    let (restores, durable) = (spec.restores, spec.durable);
    drop(devices);
    blocking(move || {
        let content = Content { base, runs: &runs, bytes: room.bytes(), restores };
        draft.finish(shape, &content, durable)
    })
    .await?;
    watch.lap("write");
    tracing::debug!(machine = %machine.id, ?pause, written_bytes, steps = ?watch.laps, "captured");
    Ok(Capture { pause, written_bytes, steps: watch.laps })
}

/// Counts what has been written so far and makes room for it.
fn prepare(images: &Images, machine: &Machine, image: SnapshotId) -> Result<Ready, HypervisorError> {
    let details: Details = serde_json::from_value(machine.details.clone())
        .map_err(|error| io_error("read the record of", &machine.run_dir, error.into()))?;
    let shape = details.shape.ok_or_else(|| {
        let source = std::io::Error::other("it was started by an older agentiso: stop and start it first");
        io_error("capture the memory of", &machine.run_dir, source)
    })?;
    let path = machine.run_dir.join(RAM);
    let inode = std::fs::metadata(&path).map_err(|error| io_error("inspect", &path, error))?.ino();
    let ram = RamMapping::find(machine.process.pid, inode, shape.memory.bytes()).map_err(memory_error)?;
    let counted: Vec<Run> = ram.written().map_err(memory_error)?;
    let room = Buffer::touched(total(&counted) + MARGIN).map_err(memory_error)?;
    let draft = images.begin(image)?;
    let devices = draft.devices()?;
    Ok(Ready { draft, shape, ram, room, devices })
}

fn memory_error(source: std::io::Error) -> HypervisorError {
    let remedy = "if you are not root and the kernel restricts ptrace (kernel.yama.ptrace_scope), allow it";
    let source = match source.kind() {
        std::io::ErrorKind::PermissionDenied => std::io::Error::other(format!("{source}: {remedy}")),
        _ => source,
    };
    HypervisorError::Io { operation: "copy", object: "a machine's memory".to_owned(), source }
}

fn not_running(machine: &Machine) -> HypervisorError {
    HypervisorError::Control {
        operation: "capture",
        id: machine.id,
        source: "its vCPUs are stopped: let it run first".into(),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HypervisorError> + Send + 'static,
) -> Result<T, HypervisorError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| HypervisorError::Io {
        operation: "finish",
        object: "copying a machine's memory".to_owned(),
        source: error.into(),
    })?
}

/// The process that lets a machine run again. Dropped, it does so at once.
struct Guard {
    pipe: PipeWriter,
    process: ProcessRef,
}

impl Guard {
    async fn post(qemu: &Qemu, machine: &Machine, uid: Option<MachineUid>) -> Result<Self, HypervisorError> {
        const OPERATION: &str = "set a guard on";
        let failed = |error: MonitorError| super::failed(OPERATION, machine, error);
        let folder = Folder::open(&machine.run_dir)?;
        let stream = UnixStream::connect(folder.short_path(monitor::RESERVED_SOCKET))
            .await
            .map_err(|source| failed(MonitorError::Io { operation: "connect to", source }))?;
        let control = Qmp::greet(stream, GREETING_LIMIT).await.map_err(|error| failed(error.into()))?;
        let control = control
            .into_socket()
            .map_err(|source| failed(MonitorError::Io { operation: "hand on", source }))?;
        let (qemu, id) = (qemu.clone(), machine.id);
        blocking(move || {
            let name = start_name(&qemu.state_id, id);
            let (read, pipe) = std::io::pipe().map_err(|e| io_error("make a pipe for", &qemu.shim, e))?;
            let guard = start(&qemu, &name, uid, control, read.into())?;
            Ok(Self { pipe, process: guard.keep() })
        })
        .await
    }

    /// Tells it that all is well.
    fn dismiss(mut self) {
        if let Err(error) = self.pipe.write_all(&[1]) {
            // It has gone: then it has done what it is for, which does no harm to a machine that runs.
            tracing::debug!(pid = self.process.pid, %error, "the guard of a capture was gone");
        }
    }
}

fn start(
    qemu: &Qemu,
    name: &str,
    uid: Option<MachineUid>,
    control: OwnedFd,
    pipe: OwnedFd,
) -> Result<Started, HypervisorError> {
    let rules = program_folders(&qemu.shim).into_iter().fold(FileRules::nothing(), FileRules::read_execute);
    let mut detached = Detached::new(&qemu.shim);
    detached.args(["guard", name]).uid(uid).files(rules.read("/etc/ld.so.cache")).open_files(64);
    detached.pass(control);
    detached.pass(pipe);
    detached.start().map_err(|error| shim_missing(qemu, error))
}

/// What took how long.
struct Stopwatch {
    last: Instant,
    laps: Vec<(String, Duration)>,
}

impl Stopwatch {
    fn start() -> Self {
        Self { last: Instant::now(), laps: Vec::new() }
    }

    fn lap(&mut self, step: &str) {
        let now = Instant::now();
        self.laps.push((step.to_owned(), now - self.last));
        self.last = now;
    }

    /// One lap of two steps, the first of which took that long.
    fn split(&mut self, first: &str, took: Duration, second: &str) {
        let now = Instant::now();
        self.laps.push((first.to_owned(), took));
        self.laps.push((second.to_owned(), (now - self.last).saturating_sub(took)));
        self.last = now;
    }
}
