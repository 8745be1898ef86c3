use async_trait::async_trait;

use super::{FakeGuest, FakeHypervisor, guest::Memory};
use crate::{
    hypervisor::{
        AfterCapture, Capture, CaptureSpec, DiskStep, HypervisorError, Machine, MachineMemory, MemoryImage,
    },
    types::{MemoryMib, SnapshotId, VcpuCount},
};

/// An image of a fake machine.
pub(super) struct FakeImage {
    /// What was in the guest's memory.
    pub(super) memory: Memory,
    pub(super) vcpus: VcpuCount,
    pub(super) memory_mib: MemoryMib,
    /// Why machines cannot be started from it, if a test says so.
    pub(super) obstacle: Option<String>,
}

/// Bytes that every fake image takes up.
const IMAGE_BYTES: u64 = 1 << 20;

#[async_trait]
impl MachineMemory for FakeHypervisor {
    fn image_key(&self) -> String {
        "fake".to_owned()
    }

    async fn capture(&self, machine: &Machine, spec: CaptureSpec<'_>) -> Result<Capture, HypervisorError> {
        let entered = self.host().faults().enter("hypervisor.capture").await?;
        let guest = self.guest_that_runs(machine)?;
        if self.host().state().images.contains_key(&spec.image) {
            return Err(HypervisorError::Io {
                operation: "create",
                object: format!("memory image {}", spec.image),
                source: std::io::ErrorKind::AlreadyExists.into(),
            });
        }
        let mut pause = Pause::of(&guest);
        let moved = match spec.disk {
            DiskStep::Keep => Ok(()),
            DiskStep::Pivot(to) => self.move_disk(machine, &to),
            DiskStep::Instant(snapshot) => snapshot.await.map_err(|error| HypervisorError::Control {
                operation: "snapshot the disk of",
                id: machine.id,
                source: error.into(),
            }),
        };
        moved?;
        let memory = guest.memory();
        pause.stay = spec.after == AfterCapture::StayPaused;
        drop(pause);
        {
            let mut state = self.host().state();
            if state.disks.full {
                return Err(HypervisorError::Io {
                    operation: "write",
                    object: format!("memory image {}", spec.image),
                    source: std::io::ErrorKind::StorageFull.into(),
                });
            }
            let Some(running) = state.running(machine) else {
                return Err(HypervisorError::Gone { id: machine.id });
            };
            let (vcpus, memory_mib) = (running.vcpus, running.memory);
            let image = FakeImage { memory, vcpus, memory_mib, obstacle: None };
            state.images.insert(spec.image, image);
        }
        entered.leave().await;
        Ok(Capture { pause: std::time::Duration::ZERO, written_bytes: 0, steps: Vec::new() })
    }

    async fn image(&self, image: SnapshotId) -> Result<MemoryImage, HypervisorError> {
        self.host()
            .call("hypervisor.image", |state| {
                let found = state.images.get(&image).ok_or(HypervisorError::NoImage { image })?;
                Ok(MemoryImage {
                    vcpus: found.vcpus,
                    memory: found.memory_mib,
                    unique_bytes: IMAGE_BYTES,
                    shared_bytes: 0,
                    obstacle: found.obstacle.clone(),
                })
            })
            .await
    }

    async fn images(&self) -> Result<Vec<SnapshotId>, HypervisorError> {
        self.host().call("hypervisor.images", |state| Ok(state.images.keys().copied().collect())).await
    }

    async fn delete_image(&self, image: SnapshotId) -> Result<(), HypervisorError> {
        self.host()
            .call("hypervisor.delete_image", |state| {
                state.images.remove(&image);
                Ok(())
            })
            .await
    }
}

/// A guest that stands still until this is dropped.
struct Pause {
    guest: FakeGuest,
    stay: bool,
}

impl Pause {
    fn of(guest: &FakeGuest) -> Self {
        guest.set_paused(true);
        Self { guest: guest.clone(), stay: false }
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        self.guest.set_paused(self.stay);
    }
}

impl FakeHypervisor {
    fn guest_that_runs(&self, machine: &Machine) -> Result<FakeGuest, HypervisorError> {
        let mut state = self.host().state();
        let running = state.running(machine).ok_or(HypervisorError::Gone { id: machine.id })?;
        if running.guest.is_paused() {
            return Err(HypervisorError::Control {
                operation: "capture",
                id: machine.id,
                source: "its vCPUs are stopped: let it run first".into(),
            });
        }
        Ok(running.guest.clone())
    }
}
