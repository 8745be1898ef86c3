//! Machines in QEMU: its `microvm` machine, under KVM or QEMU's own emulator.
//!
//! * `find`: which QEMU, and whether the CPU can run guests itself; `tsc`: what guests must be told about the clock.
//! * `machines`: what the engine asks for.
//! * `command_line`: a machine as QEMU's arguments. `arrange`: what it uses, opened and passed to it. `launch`: from a spec
//!   to a running process. `verify`: that the process is confined as asked.
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

mod arrange;
mod capture;
mod command_line;
mod cpu;
mod files;
mod find;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod launch;
mod limits;
mod machines;
mod memory;
mod monitor;
mod qmp;
mod stream;
mod sys;
mod tsc;
mod usage;
mod verify;

use std::{path::PathBuf, time::Duration};

pub(crate) use self::limits::obstacle as limits_obstacle;
pub use self::limits::{DiskLimits, MachineLimits};
use self::{
    memory::image::{Card, LAYOUT, Shape},
    monitor::{Monitor, MonitorError},
    stream::Streamed,
};
use super::{Accelerator, HypervisorError, LaunchSpec, Machine, StreamStatus};
use crate::{
    channel::ChannelDevice,
    network::NicBackend,
    process,
    storage::ShortenPlan,
    types::{MemoryMib, VcpuCount},
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
    /// ([`MemoryImage::obstacle`](crate::hypervisor::MemoryImage::obstacle)). Without it, that is found out when one is to be started from it.
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

    /// Why machines are not limited, and what would help, if they are not.
    pub fn why_not_limited(&self) -> &str {
        &self.unlimited
    }

    async fn monitor(&self, operation: &'static str, machine: &Machine) -> Result<Monitor, HypervisorError> {
        if !machine.process.is_running() {
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
    if machine.process.is_running() {
        HypervisorError::Control { operation, id: machine.id, source: error.into() }
    } else {
        HypervisorError::Gone { id: machine.id }
    }
}
