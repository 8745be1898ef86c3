//! What a [`Qemu`] does with machines, as the engine sees it.

use std::{path::Path, time::Duration};

use async_trait::async_trait;
use rustix::process::Signal;

use super::{
    ChannelKind, NicKind, Qemu, VSOCK, capture,
    command_line::SERIAL_PORTS,
    failed,
    files::{self, Folder},
    launch::{self, Details, KILL_LIMIT, LAST_WORDS_LIMIT},
    memory::image::{Card, Images, LAYOUT},
    monitor::RunState,
    remove_group, serial, usage,
};
use crate::{
    hypervisor::{
        Capture, CaptureSpec, Hypervisor, HypervisorCapabilities, HypervisorError, LaunchSpec, Machine,
        MachineLog, MachineMemory, MachineStatus, MachineUsage, MemoryImage, MemoryUsage, StreamStatus,
    },
    process,
    storage::{DiskLayer, LayerId, ShortenPlan},
    types::{ProcessRef, SnapshotId, WorkspaceId},
};

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
            limited: self.limiter.is_some(),
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
        machine.process.is_running()
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

    /// What a machine uses of what it is limited to; `None` if it is not limited, or gone. Asks the kernel only.
    fn limited_usage(&self, machine: &Machine) -> Option<MachineUsage> {
        let details: Details = serde_json::from_value(machine.details.clone()).ok()?;
        let used = process::cgroup::used(&details.cgroup?).ok()?;
        Some(MachineUsage { memory_bytes: used.memory_bytes, cpu_us: used.cpu_us, threads: used.tasks })
    }

    async fn memory_usage(&self, machine: &Machine) -> Result<MemoryUsage, HypervisorError> {
        let of = machine.clone();
        let look = tokio::task::spawn_blocking(move || usage::memory_usage(&of));
        look.await.map_err(|e| files::io_error("look at", &machine.run_dir, e.into()))?
    }

    /// As printed: text from a guest wants [`printable`](crate::hypervisor::printable) before people see it.
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
