//! Machines in QEMU: its `microvm` machine, under KVM or QEMU's own emulator.
//!
//! * `find`: which QEMU, and whether the CPU can run guests itself; `tsc`: what guests must be told about the clock.
//! * `command_line`: a machine as QEMU's arguments. `launch`: from a spec to a running process. `verify`: that the
//!   process is confined as asked.
//! * `qmp`: QEMU's protocol. `monitor`: conversations in it. `stream`: those about shortening a disk's chain.
//! * `memory`: what machines have written, kept and put back. `capture`: how it is taken from a machine that runs.
//! * `limits`: what a machine's process may use. `usage`: how much memory a machine takes up.
//! * `files`: folders, sockets and small files.
//!
//! A machine is one QEMU process and one `agentiso-shim console` process that writes its logs. Neither is tied to the
//! process that started them. Everything a QEMU uses (disk, RAM file, kernel, sockets, network card, /dev/kvm) is
//! passed to it as a descriptor.
//!
//! No entropy device: every CPU model in use has RDRAND, and the agent mixes in fresh entropy from the host. No
//! balloon: what it discards could be punched out of a RAM file that machines share.

mod capture;
mod command_line;
mod cpu;
mod files;
mod find;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod launch;
mod limits;
mod memory;
mod monitor;
mod qmp;
mod stream;
mod sys;
mod tsc;
mod usage;
mod verify;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use rustix::process::Signal;

pub use self::limits::{DiskLimits, MachineLimits};
use self::{
    command_line::SERIAL_PORTS,
    files::Folder,
    launch::{Details, KILL_LIMIT, LAST_WORDS_LIMIT},
    memory::image::{Card, Images, LAYOUT, Shape},
    monitor::{Monitor, MonitorError, RunState},
    stream::Streamed,
};
use super::{
    Accelerator, Capture, CaptureSpec, Hypervisor, HypervisorCapabilities, HypervisorError, LaunchSpec,
    Machine, MachineLog, MachineMemory, MachineStatus, MemoryImage, MemoryUsage, StreamStatus,
};
use crate::{
    channel::ChannelDevice,
    network::NicBackend,
    process,
    storage::{DiskLayer, LayerId, ShortenPlan},
    types::{MemoryMib, ProcessRef, SnapshotId, VcpuCount, WorkspaceId},
};

/// How long a machine stands still at most while it is captured.
pub(crate) const CAPTURE_LIMIT: Duration = Duration::from_secs(5);

/// What lets a machine run, as a line for its control socket: all that a guard knows of QEMU.
#[cfg_attr(not(feature = "shim"), allow(dead_code, reason = "only the guard's process sends it"))]
pub(crate) const RESUME_COMMAND: &[u8] = b"{\"execute\": \"cont\", \"id\": \"guard\"}\n";

/// Longest id of a state folder, in characters.
const MAX_STATE_ID: usize = 32;

/// What a [`Qemu`] is opened with.
#[derive(Clone, Debug)]
pub struct QemuConfig {
    /// The state folder. RAM files and what was found out about the host are kept in it.
    pub state_dir: PathBuf,
    /// What tells processes of this state folder from those of others: 1-32 lower-case letters and digits.
    pub state_id: String,
    /// QEMU's program; found on the PATH if not given.
    pub program: Option<PathBuf>,
    /// The program `agentiso-shim`. Everyone must be allowed to execute the file (the folders above do not matter).
    pub shim: PathBuf,
    /// What shall run guests; the best there is if not given.
    pub accelerator: Option<Accelerator>,
}

/// Machines in QEMU.
#[derive(Clone, Debug)]
pub struct Qemu {
    state_dir: PathBuf,
    state_id: String,
    program: find::Program,
    shim: PathBuf,
    accelerator: Accelerator,
    cpu: String,
    tsc_khz: u64,
    devices: Option<DeviceKinds>,
    limiter: Option<limits::Limiter>,
    /// Why nothing is limited.
    unlimited: String,
}

/// What the machines of a state folder have in common that others decide: a memory image of a machine with other devices
/// is of no use to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceKinds {
    /// How the host reaches the agents.
    pub channel: ChannelKind,
    /// What network cards are connected to.
    pub nic: NicKind,
}

/// What a machine uses of what it is limited to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineUsage {
    /// Memory that is counted for it, its share of the page cache included, in bytes.
    pub memory_bytes: u64,
    /// CPU time since it was started.
    pub cpu_time: Duration,
    /// Its threads.
    pub threads: u64,
}

/// Which of [`ChannelDevice`] a machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelKind {
    /// Virtio-serial ports.
    Serial,
    /// A vhost-vsock device.
    Vsock,
}

/// Which of [`NicBackend`] a machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NicKind {
    /// A stream socket.
    Stream,
    /// A TAP device.
    Tap,
}

/// A channel of virtio-serial ports, as images have it.
fn serial(ports: usize) -> String {
    format!("serial-{ports}")
}

/// A channel over vsock, as images have it.
const VSOCK: &str = "vsock";

impl Qemu {
    /// Finds out what there is. The first time takes about a quarter of a second; what was found is kept in the state
    /// folder.
    ///
    /// # Errors
    /// QEMU is missing or too old, or an accelerator was asked for and cannot be used: each with the remedy. The id is
    /// not valid. The state folder cannot be written.
    pub async fn open(config: QemuConfig) -> Result<Self, HypervisorError> {
        let QemuConfig { state_dir, state_id, program, shim, accelerator } = config;
        let valid = (1..=MAX_STATE_ID).contains(&state_id.len())
            && state_id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if !valid {
            let source = std::io::Error::other("it must be 1-32 lower-case letters and digits");
            let object = format!("the state folder's id {state_id:?}");
            return Err(HypervisorError::Io { operation: "use", object, source });
        }
        let state_dir =
            std::path::absolute(&state_dir).map_err(|e| files::io_error("find", &state_dir, e))?;
        let shim = std::path::absolute(&shim).map_err(|e| files::io_error("find", &shim, e))?;
        let accelerator = find::accelerator(accelerator)?;
        let program = find::find(&state_dir, program.as_deref()).await?;
        let folder = state_dir.clone();
        let tsc_khz = tokio::task::spawn_blocking(move || tsc::khz(&folder))
            .await
            .map_err(|e| files::io_error("measure the clock for", &state_dir, e.into()))??;
        let cpu = cpu::describe(accelerator);
        let unlimited = "no limits were asked for".to_owned();
        let (devices, limiter) = (None, None);
        Ok(Self {
            state_dir,
            state_id,
            program,
            shim,
            accelerator,
            cpu,
            tsc_khz,
            devices,
            limiter,
            unlimited,
        })
    }

    /// Says which devices machines will be given, so that an image of a machine with others says that it cannot be used
    /// ([`MemoryImage::obstacle`]). Without it, that is found out when one is to be started from it.
    #[must_use]
    pub fn with_devices(mut self, devices: DeviceKinds) -> Self {
        self.devices = Some(devices);
        self
    }

    /// Limits what each machine that is launched from now on may use of the host, and removes the groups that are left of
    /// machines that are gone.
    ///
    /// # Errors
    /// [`HypervisorError::Missing`] if limits are required and cannot be had here, with the remedy.
    pub fn with_limits(mut self, limits: MachineLimits) -> Result<Self, HypervisorError> {
        let required = limits.required;
        match limits::Limiter::open(limits, &self.state_id) {
            Ok(limiter) => self.limiter = Some(limiter),
            Err(error) if required => return Err(error),
            Err(error) => self.unlimited = limits::chain(&error),
        }
        Ok(self)
    }

    /// What a machine uses of what it is limited to; `None` if it is not limited, or gone. Asks the kernel only.
    pub fn usage(&self, machine: &Machine) -> Option<MachineUsage> {
        let details: Details = serde_json::from_value(machine.details.clone()).ok()?;
        let used = process::cgroup::used(&details.cgroup?).ok()?;
        Some(MachineUsage {
            memory_bytes: used.memory_bytes,
            cpu_time: Duration::from_micros(used.cpu_us),
            threads: used.tasks,
        })
    }

    /// What a machine has in common with those that can be started from its memory.
    fn shape(&self, spec: &LaunchSpec) -> Shape {
        let channel = match &spec.channel {
            ChannelDevice::Serial(slots) => serial(slots.len()),
            ChannelDevice::Vsock { .. } => VSOCK.to_owned(),
        };
        let card = match spec.nic.as_ref().map(|nic| &nic.backend) {
            None => Card::None,
            Some(NicBackend::Stream(_)) => Card::Stream,
            Some(NicBackend::Tap(_)) => Card::Tap,
        };
        self.shape_here(spec.vcpus, spec.memory, channel, card)
    }

    /// The shape of a machine with these parts, started here and now.
    fn shape_here(&self, vcpus: VcpuCount, memory: MemoryMib, channel: String, nic: Card) -> Shape {
        Shape {
            layout: LAYOUT,
            qemu: self.program.version.clone(),
            accelerator: self.accelerator,
            cpu: self.cpu.clone(),
            tsc_khz: self.tsc_khz,
            vcpus,
            memory,
            channel,
            nic,
        }
    }

    /// Why guests are emulated and not run by the CPU, and what would help; `None` if the CPU runs them, or could.
    pub fn why_not_kvm(&self) -> Option<String> {
        find::why_not_kvm(self.accelerator)
    }

    async fn monitor(&self, operation: &'static str, machine: &Machine) -> Result<Monitor, HypervisorError> {
        if !machine.process.is_alive() {
            return Err(HypervisorError::Gone { id: machine.id });
        }
        Monitor::open(&machine.run_dir).await.map_err(|error| failed(operation, machine, error))
    }

    /// Does what is left to do when all layers are copied.
    async fn leave_layers(
        &self,
        operation: &'static str,
        machine: &Machine,
        plan: &ShortenPlan,
        streamed: Result<Streamed, MonitorError>,
    ) -> Result<StreamStatus, HypervisorError> {
        let streamed = streamed.map_err(|error| failed(operation, machine, error))?;
        if let Streamed::All = streamed {
            let path = &plan.top.path;
            stream::write_back(path.clone()).await.map_err(|e| files::io_error("sync", path, e))?;
            let mut monitor = self.monitor(operation, machine).await?;
            monitor.leave_layers(plan).await.map_err(|error| failed(operation, machine, error))?;
        }
        Ok(streamed.into())
    }
}

/// Removes the group of a process that has ended.
async fn remove_group(group: PathBuf) -> Result<(), HypervisorError> {
    let path = group.clone();
    let failed = |error| files::io_error("remove group", &path, std::io::Error::other(error));
    match tokio::task::spawn_blocking(move || process::cgroup::remove(&group)).await {
        Ok(removed) => removed.map_err(failed),
        Err(error) => Err(files::io_error("remove group", &path, error.into())),
    }
}

/// What went wrong in a conversation with a machine: it may be gone.
fn failed(operation: &'static str, machine: &Machine, error: MonitorError) -> HypervisorError {
    if machine.process.is_alive() {
        HypervisorError::Control { operation, id: machine.id, source: error.into() }
    } else {
        HypervisorError::Gone { id: machine.id }
    }
}

#[async_trait]
impl MachineMemory for Qemu {
    /// Without the clock's rate, which is measured, never twice exactly alike, and compared when an image is opened.
    fn image_key(&self) -> String {
        format!("qemu {} {:?} {} {LAYOUT}", self.program.version, self.accelerator, self.cpu)
    }

    async fn capture(&self, machine: &Machine, spec: CaptureSpec<'_>) -> Result<Capture, HypervisorError> {
        capture::capture(self, machine, spec).await
    }

    async fn image(&self, image: SnapshotId) -> Result<MemoryImage, HypervisorError> {
        let image = Images::of(&self.state_dir).open(image)?;
        // What else a machine has in common with it is up to whoever starts one.
        let shape = image.shape();
        let channel = match self.devices.map(|devices| devices.channel) {
            None => shape.channel.clone(),
            Some(ChannelKind::Serial) => serial(SERIAL_PORTS),
            Some(ChannelKind::Vsock) => VSOCK.to_owned(),
        };
        let card = match self.devices.map(|devices| devices.nic) {
            // Who starts a machine without one knows of it.
            _ if shape.nic == Card::None => Card::None,
            None => shape.nic,
            Some(NicKind::Stream) => Card::Stream,
            Some(NicKind::Tap) => Card::Tap,
        };
        let now = self.shape_here(shape.vcpus, shape.memory, channel, card);
        image.describe(&now)
    }

    async fn images(&self) -> Result<Vec<SnapshotId>, HypervisorError> {
        Images::of(&self.state_dir).list()
    }

    async fn delete_image(&self, image: SnapshotId) -> Result<(), HypervisorError> {
        Images::of(&self.state_dir).remove(image)
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn capabilities(&self) -> HypervisorCapabilities {
        let (mut confinement, mut open) = process::confinement_report();
        confinement.push(
            "QEMU's own system call filter, on every thread: no new processes, no change of privileges or resources"
                .to_owned(),
        );
        confinement.push("checked from outside before each guest runs".to_owned());
        if rustix::process::geteuid().is_root() {
            if process::has_private_files(&self.state_dir) {
                confinement
                    .push("memory files that only root and the machine's own user id can open".to_owned());
            } else {
                open.push(
                    "memory files are readable by all users, who are kept out by their folder alone: the kernel or the \
                     file system of the state folder has no idmapped mounts"
                        .to_owned(),
                );
            }
        }
        if self.limiter.is_some() {
            confinement.push(
                "a group of its own per machine that limits memory, CPU time and threads (cgroup v2)"
                    .to_owned(),
            );
        } else {
            open.push(format!(
                "the host memory that QEMU uses beyond the guest's, and its CPU time, are not limited: {}",
                self.unlimited
            ));
        }
        HypervisorCapabilities {
            name: format!("QEMU {}", self.program.version),
            accelerator: self.accelerator,
            confinement,
            open,
        }
    }

    async fn launch(&self, spec: LaunchSpec) -> Result<Machine, HypervisorError> {
        launch::launch(self, spec).await
    }

    /// A machine that has crashed in a way it cannot go on from is ended, and has exited then.
    async fn status(&self, machine: &Machine) -> Result<MachineStatus, HypervisorError> {
        let mut monitor = match self.monitor("ask the state of", machine).await {
            Err(HypervisorError::Gone { .. }) => return Ok(MachineStatus::Exited),
            monitor => monitor?,
        };
        match monitor.run_state().await {
            Ok(RunState::Running) => Ok(MachineStatus::Running),
            Ok(RunState::Stopped) => Ok(MachineStatus::Paused),
            Ok(RunState::Crashed) => {
                tracing::warn!(machine = %machine.id, "the machine has crashed and is ended");
                self.kill_process(&machine.process).await?;
                Ok(MachineStatus::Exited)
            }
            Err(error) => match failed("ask the state of", machine, error) {
                HypervisorError::Gone { .. } => Ok(MachineStatus::Exited),
                error => Err(error),
            },
        }
    }

    fn is_alive(&self, machine: &Machine) -> bool {
        machine.process.is_alive()
    }

    async fn pause(&self, machine: &Machine) -> Result<(), HypervisorError> {
        let mut monitor = self.monitor("pause", machine).await?;
        monitor.stop().await.map_err(|error| failed("pause", machine, error))
    }

    async fn resume(&self, machine: &Machine) -> Result<(), HypervisorError> {
        let mut monitor = self.monitor("resume", machine).await?;
        monitor.run().await.map_err(|error| failed("resume", machine, error))
    }

    async fn active_layer(&self, machine: &Machine) -> Result<LayerId, HypervisorError> {
        const OPERATION: &str = "ask the disk layer of";
        let mut monitor = self.monitor(OPERATION, machine).await?;
        monitor.active_layer().await.map_err(|error| failed(OPERATION, machine, error))
    }

    async fn pivot_disk(&self, machine: &Machine, to: &DiskLayer) -> Result<(), HypervisorError> {
        const OPERATION: &str = "move the disk of";
        let mut monitor = self.monitor(OPERATION, machine).await?;
        let Err(error) = monitor.pivot(to).await else { return Ok(()) };
        drop(monitor);
        // If the conversation broke off, only the machine knows how far it got.
        match self.active_layer(machine).await {
            Ok(active) if active == to.id => {
                tracing::warn!(machine = %machine.id, %error, "the disk has moved, but not all was tidied up");
                Ok(())
            }
            _ => Err(failed(OPERATION, machine, error)),
        }
    }

    async fn stream_disk(
        &self,
        machine: &Machine,
        plan: &ShortenPlan,
    ) -> Result<StreamStatus, HypervisorError> {
        const OPERATION: &str = "shorten the disk's chain of";
        let streamed = self.monitor(OPERATION, machine).await?.stream(plan).await;
        self.leave_layers(OPERATION, machine, plan, streamed).await
    }

    async fn cancel_stream(
        &self,
        machine: &Machine,
        plan: &ShortenPlan,
    ) -> Result<StreamStatus, HypervisorError> {
        const OPERATION: &str = "stop shortening the disk's chain of";
        let streamed = self.monitor(OPERATION, machine).await?.cancel_stream(plan).await;
        self.leave_layers(OPERATION, machine, plan, streamed).await
    }

    async fn power_button(&self, machine: &Machine) -> Result<(), HypervisorError> {
        const OPERATION: &str = "press the power button of";
        let mut monitor = self.monitor(OPERATION, machine).await?;
        monitor.power_button().await.map_err(|error| failed(OPERATION, machine, error))
    }

    async fn wait_exit(&self, machine: &Machine, limit: Duration) -> Result<bool, HypervisorError> {
        machine.process.wait_exit(limit).await.map_err(|source| HypervisorError::Io {
            operation: "wait for",
            object: format!("machine {}", machine.id),
            source,
        })
    }

    async fn kill(&self, machine: &Machine) -> Result<(), HypervisorError> {
        self.kill_process(&machine.process).await?;
        // A record without it can only be damaged: the scan for strays finds the process then.
        if let Ok(Details { console, cgroup, .. }) = serde_json::from_value(machine.details.clone()) {
            if let Some(group) = cgroup {
                remove_group(group).await?;
            }
            // It ends by itself when it has written down what the machine printed last.
            if !matches!(console.wait_exit(LAST_WORDS_LIMIT).await, Ok(true)) {
                self.kill_process(&console).await?;
            }
        }
        match Folder::open(&machine.run_dir) {
            Ok(folder) => launch::remove_files(&folder),
            Err(HypervisorError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn memory_usage(&self, machine: &Machine) -> Result<MemoryUsage, HypervisorError> {
        let of = machine.clone();
        let look = tokio::task::spawn_blocking(move || usage::memory_usage(&of));
        look.await.map_err(|e| files::io_error("look at", &machine.run_dir, e.into()))?
    }

    /// As printed: text from a guest wants [`printable`](super::printable) before people see it.
    async fn log_tail(
        &self,
        run_dir: &Path,
        log: MachineLog,
        max_bytes: u64,
    ) -> Result<Vec<u8>, HypervisorError> {
        match Folder::open(run_dir) {
            Ok(folder) => launch::log_tail(&folder, log, max_bytes),
            Err(HypervisorError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    async fn processes(&self) -> Result<Vec<(WorkspaceId, ProcessRef)>, HypervisorError> {
        let found =
            process::named(&self.state_id).map_err(|e| files::io_error("read", Path::new("/proc"), e))?;
        // QEMU's first argument is -name; the network's companions are the network's.
        let ours = found.into_iter().filter(|found| {
            matches!(found.words.get(1).map(String::as_str), Some("-name" | "console" | "guard"))
        });
        Ok(ours.map(|found| (found.workspace, found.process)).collect())
    }

    async fn kill_process(&self, process: &ProcessRef) -> Result<(), HypervisorError> {
        let failed = |source| HypervisorError::Io {
            operation: "end",
            object: format!("process {}", process.pid),
            source,
        };
        // A stray one's group goes with it, and is known only as long as it lives.
        let group = self.limiter.as_ref().filter(|_| process.is_alive());
        let group = group.and_then(|limiter| limiter.cgroups.group_of(process.pid));
        process.signal(Signal::KILL).map_err(failed)?;
        match process.wait_exit(KILL_LIMIT).await {
            Ok(true) => match group {
                Some(group) => remove_group(group).await,
                None => Ok(()),
            },
            Ok(false) => Err(failed(std::io::Error::from(std::io::ErrorKind::TimedOut))),
            Err(error) => Err(failed(error)),
        }
    }
}
