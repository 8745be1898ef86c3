use std::{path::Path, time::Duration};

use async_trait::async_trait;

use super::{
    FakeGuest, FakeHost,
    host::{FakeMachine, HostState},
};
use crate::{
    hypervisor::{
        Accelerator, Hypervisor, HypervisorCapabilities, HypervisorError, LaunchSpec, Machine, MachineLog,
        MachineStatus, MemoryUsage, Start, StreamStatus,
    },
    storage::{DiskLayer, LayerId, ShortenPlan},
    types::{ProcessRef, WorkspaceId},
};

/// What a machine takes up unless it was told otherwise.
const MEMORY_USAGE: MemoryUsage =
    MemoryUsage { unique_bytes: 1 << 20, shared_bytes: 2 << 20, resident_bytes: 3 << 20 };

/// A hypervisor whose machines are [`FakeGuest`]s.
#[derive(Clone)]
pub struct FakeHypervisor {
    host: FakeHost,
}

impl FakeHypervisor {
    pub(super) fn new(host: FakeHost) -> Self {
        Self { host }
    }

    pub(super) fn host(&self) -> &FakeHost {
        &self.host
    }

    /// Moves a machine's disk to a layer that exists.
    pub(super) fn move_disk(&self, machine: &Machine, to: &DiskLayer) -> Result<(), HypervisorError> {
        let mut state = self.host.state();
        move_disk(&mut state, machine, to)
    }
}

fn gone(machine: &Machine) -> HypervisorError {
    HypervisorError::Gone { id: machine.id }
}

fn running<'a>(state: &'a mut HostState, machine: &Machine) -> Result<&'a mut FakeMachine, HypervisorError> {
    state.running(machine).ok_or_else(|| gone(machine))
}

fn move_disk(state: &mut HostState, machine: &Machine, to: &DiskLayer) -> Result<(), HypervisorError> {
    let exists = state.disks.has_layer(&to.id);
    let machine = running(state, machine)?;
    if machine.layers[0].id == to.id {
        return Ok(());
    }
    if !exists {
        return Err(HypervisorError::Io {
            operation: "open",
            object: to.path.display().to_string(),
            source: std::io::ErrorKind::NotFound.into(),
        });
    }
    if machine.streaming.is_some() {
        return Err(refused("pivot", "its layers are being copied", machine.record.id));
    }
    machine.layers.insert(0, to.clone());
    Ok(())
}

/// What the machine is copying up is copied, and it leaves the layers.
fn finish_copying(state: &mut HostState, machine: &Machine) -> Result<(), HypervisorError> {
    let machine = running(state, machine)?;
    if let Some(plan) = machine.streaming.take() {
        machine.layers.retain(|layer| !plan.dropped.contains(&layer.id));
        state.disks.pull_up(&plan);
    }
    Ok(())
}

fn refused(operation: &'static str, reason: &str, id: WorkspaceId) -> HypervisorError {
    HypervisorError::Control { operation, id, source: reason.to_owned().into() }
}

fn not_launched(id: WorkspaceId, reason: String) -> HypervisorError {
    HypervisorError::Launch { id, reason, log: String::new(), source: None }
}

#[async_trait]
impl Hypervisor for FakeHypervisor {
    fn capabilities(&self) -> HypervisorCapabilities {
        HypervisorCapabilities {
            name: "fake".to_owned(),
            accelerator: Accelerator::Fake,
            limited: false,
            confinement: Vec::new(),
            open: vec!["everything: there is no machine".to_owned()],
        }
    }

    async fn launch(&self, spec: LaunchSpec) -> Result<Machine, HypervisorError> {
        let host = &self.host;
        host.call("hypervisor.launch", |state| {
            let Some(top) = spec.disk.layers.first() else {
                return Err(not_launched(spec.id, "its disk has no layers".to_owned()));
            };
            for layer in &spec.disk.layers {
                if !state.disks.has_layer(&layer.id) {
                    return Err(not_launched(spec.id, format!("layer {} does not exist", layer.id)));
                }
            }
            if let Some(other) =
                state.machines.values().find(|m| !m.guest.is_off() && m.layers.first() == Some(top))
            {
                let reason = format!("layer {} is being written to by machine {}", top.id, other.record.id);
                return Err(not_launched(spec.id, reason));
            }
            let process = state.new_process();
            let guest = match spec.start {
                Start::Boot => {
                    let files = state.disks.read(spec.disk.layers.iter().map(|layer| &layer.id));
                    FakeGuest::new(host, spec.id, process.pid, state.boot_time, files)
                }
                Start::Restore(image) => {
                    let found = state.images.get(&image).ok_or(HypervisorError::NoImage { image })?;
                    if let Some(reason) = found.obstacle.clone() {
                        return Err(HypervisorError::Incompatible { image, reason });
                    }
                    FakeGuest::with_memory(host, spec.id, process.pid, found.memory.clone())
                }
            };
            let record = Machine {
                id: spec.id,
                process,
                run_dir: spec.run_dir.clone(),
                details: serde_json::Value::Null,
            };
            let console = format!("[    0.000000] fake machine {} starts on {}\n", spec.id, top.id);
            state.logs.insert(spec.run_dir.clone(), console);
            let machine = FakeMachine {
                record: record.clone(),
                guest,
                layers: spec.disk.layers.clone(),
                vcpus: spec.vcpus,
                memory: spec.memory,
                streaming: None,
            };
            state.machines.insert(record.process.pid, machine);
            if let Some(lanes) = state.channels.get_mut(&spec.id) {
                lanes.machine_seen = true;
            }
            Ok(record)
        })
        .await
    }

    async fn status(&self, machine: &Machine) -> Result<MachineStatus, HypervisorError> {
        self.host
            .call("hypervisor.status", |state| {
                Ok(match state.running(machine) {
                    None => MachineStatus::Exited,
                    Some(running) if running.guest.is_paused() => MachineStatus::Paused,
                    Some(_) => MachineStatus::Running,
                })
            })
            .await
    }

    fn is_alive(&self, machine: &Machine) -> bool {
        self.host.state().running(machine).is_some()
    }

    async fn pause(&self, machine: &Machine) -> Result<(), HypervisorError> {
        self.host
            .call("hypervisor.pause", |state| {
                running(state, machine)?.guest.set_paused(true);
                Ok(())
            })
            .await
    }

    async fn resume(&self, machine: &Machine) -> Result<(), HypervisorError> {
        self.host
            .call("hypervisor.resume", |state| {
                running(state, machine)?.guest.set_paused(false);
                Ok(())
            })
            .await
    }

    async fn active_layer(&self, machine: &Machine) -> Result<LayerId, HypervisorError> {
        self.host
            .call("hypervisor.active_layer", |state| {
                let machine = running(state, machine)?;
                Ok(machine.layers[0].id.clone())
            })
            .await
    }

    async fn pivot_disk(&self, machine: &Machine, to: &DiskLayer) -> Result<(), HypervisorError> {
        self.host.call("hypervisor.pivot_disk", |state| move_disk(state, machine, to)).await
    }

    async fn stream_disk(
        &self,
        machine: &Machine,
        plan: &ShortenPlan,
    ) -> Result<StreamStatus, HypervisorError> {
        self.host
            .call("hypervisor.stream_disk", |state| {
                let slowly = state.copies_slowly;
                if !slowly {
                    finish_copying(state, machine)?;
                }
                let machine = running(state, machine)?;
                let id = machine.record.id;
                if machine.layers[0].id != plan.top.id {
                    return Err(refused("shorten", "it writes to another layer", id));
                }
                let at = machine.layers.iter().position(|layer| layer.id == plan.base);
                let at = at.ok_or_else(|| refused("shorten", "it has no such layer", id))?;
                if at == 1 {
                    return Ok(StreamStatus::Done);
                }
                machine.streaming = Some(plan.clone());
                Ok(StreamStatus::Running { done_bytes: 0, total_bytes: plan.top.bytes })
            })
            .await
    }

    async fn cancel_stream(
        &self,
        machine: &Machine,
        plan: &ShortenPlan,
    ) -> Result<StreamStatus, HypervisorError> {
        self.host
            .call("hypervisor.cancel_stream", |state| {
                let slowly = state.copies_slowly;
                if !slowly {
                    finish_copying(state, machine)?;
                }
                let machine = running(state, machine)?;
                machine.streaming = None;
                let is_done = machine.layers[0].id == plan.top.id
                    && machine.layers.get(1).is_some_and(|layer| layer.id == plan.base);
                Ok(if is_done { StreamStatus::Done } else { StreamStatus::Idle })
            })
            .await
    }

    async fn power_button(&self, machine: &Machine) -> Result<(), HypervisorError> {
        let guest = self
            .host
            .call("hypervisor.power_button", |state| {
                Ok::<_, HypervisorError>(running(state, machine)?.guest.clone())
            })
            .await?;
        // What the guest makes of it takes its time: a paused one does nothing until it is resumed.
        tokio::spawn(async move { guest.press_power_button().await });
        Ok(())
    }

    async fn wait_exit(&self, machine: &Machine, limit: Duration) -> Result<bool, HypervisorError> {
        let guest = self
            .host
            .call("hypervisor.wait_exit", |state| {
                Ok::<_, HypervisorError>(state.running(machine).map(|running| running.guest.clone()))
            })
            .await?;
        match guest {
            None => Ok(true),
            Some(guest) => Ok(tokio::time::timeout(limit, guest.off()).await.is_ok()),
        }
    }

    async fn kill(&self, machine: &Machine) -> Result<(), HypervisorError> {
        self.host
            .call("hypervisor.kill", |state| {
                if let Some(running) = state.running(machine) {
                    running.guest.power_off();
                }
                state.machines.retain(|_, other| other.record.process != machine.process);
                Ok(())
            })
            .await
    }

    async fn memory_usage(&self, machine: &Machine) -> Result<MemoryUsage, HypervisorError> {
        self.host
            .call("hypervisor.memory_usage", |state| {
                running(state, machine)?;
                Ok(state.memory.get(&machine.id).copied().unwrap_or(MEMORY_USAGE))
            })
            .await
    }

    async fn log_tail(
        &self,
        run_dir: &Path,
        log: MachineLog,
        max_bytes: u64,
    ) -> Result<Vec<u8>, HypervisorError> {
        self.host
            .call("hypervisor.log_tail", |state| {
                let text = match log {
                    MachineLog::Console => state.logs.get(run_dir).map_or("", String::as_str),
                    MachineLog::Stderr => "",
                };
                let skipped = text.len().saturating_sub(usize::try_from(max_bytes).unwrap_or(usize::MAX));
                Ok(text.as_bytes()[skipped..].to_vec())
            })
            .await
    }

    async fn kill_process(&self, process: &ProcessRef) -> Result<(), HypervisorError> {
        self.host
            .call("hypervisor.kill_process", |state| {
                if state.machines.get(&process.pid).is_some_and(|machine| machine.record.process == *process)
                {
                    state.end_machine(process.pid);
                }
                Ok(())
            })
            .await
    }

    async fn processes(&self) -> Result<Vec<(WorkspaceId, ProcessRef)>, HypervisorError> {
        self.host
            .call("hypervisor.processes", |state| {
                Ok(state
                    .machines
                    .values()
                    .filter(|machine| !machine.guest.is_off())
                    .map(|machine| (machine.record.id, machine.record.process.clone()))
                    .collect())
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use crate::testkit::{FakeHost, contract::fake::FakeHypervisorFixture};

    crate::hypervisor_contract!(Ok(FakeHypervisorFixture::new(FakeHost::new()).await));
}
