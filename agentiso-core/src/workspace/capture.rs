//! Disk, memory and processes of a running workspace at one moment.
//!
//! User processes are frozen by the agent before the machine stands still, and thawed when it runs again: in a machine
//! that is started from the memory they stay frozen until it has an identity of its own. Whoever opens the state folder
//! next thaws them if this process is killed in between; the machine itself has a guard that lets it run.

use std::time::{Duration, Instant};

use super::engine::Engine;
use super::info::Standstill;
use super::machine::Begin;
use super::snapshot::KeptMemory;
use crate::channel::client::Configure;
use crate::error::EngineError;
use crate::hypervisor::{AfterCapture, CaptureSpec, DiskStep, HypervisorError};
use crate::storage::{Outcome, PendingSnapshot};
use crate::store::{Runtime, SnapshotRecord, WorkspaceRecord};
use crate::types::SnapshotId;

/// How long user processes may take to stand still. Past it nothing is captured and they run on.
const FREEZE_LIMIT: Duration = Duration::from_secs(2);

impl Engine {
    /// Captures a machine that runs, its disk included. The caller holds the lock, has written the snapshot's row, and
    /// undoes the snapshot on failure; processes and machine run on either way.
    pub(super) async fn capture(
        &self,
        record: &WorkspaceRecord,
        runtime: &Runtime,
        snapshot: &SnapshotRecord,
        memory: KeptMemory,
    ) -> Result<Standstill, EngineError> {
        let (storage, disk) = (&self.backends.storage, record.disk());
        // Not to be met by a machine that stands still, nor by the move to a new layer.
        self.shorten_before_pivot(record).await?;
        let pending = storage.begin_snapshot(disk, snapshot.id).await?;
        let pivots = matches!(pending, PendingSnapshot::Pivot { .. });
        let step = match pending {
            PendingSnapshot::Pivot { to } => DiskStep::Pivot(to),
            PendingSnapshot::Instant => {
                DiskStep::Instant(storage.finish_snapshot(disk, snapshot.id, Outcome::Commit))
            }
        };
        let stalled = Instant::now();
        let frozen = self.client_of(runtime).freeze(*snapshot.id.as_uuid(), FREEZE_LIMIT).await;
        let captured = match frozen {
            Ok(()) => {
                let spec = CaptureSpec {
                    image: snapshot.id,
                    uid: record.uid,
                    disk: step,
                    restores: memory.restores,
                    durable: memory.durable,
                    after: AfterCapture::Resume,
                };
                self.backends.hypervisor.capture(&runtime.machine, spec).await.map_err(EngineError::from)
            }
            Err(source) => {
                Err(EngineError::NotFrozen { workspace: record.name.to_string(), source: Box::new(source) })
            }
        };
        // Whatever happened: its processes run on, with the clock that stood still put right.
        let awake = self.wake(record, runtime, snapshot.id).await;
        let stalled = stalled.elapsed();
        let captured = captured?;
        awake?;
        if pivots {
            storage.finish_snapshot(disk, snapshot.id, Outcome::Commit).await?;
        }
        tracing::debug!(workspace = %record.name, ?stalled, "its processes run again");
        Ok(Standstill {
            paused_us: micros(captured.pause),
            stalled_us: micros(stalled),
            written_bytes: captured.written_bytes,
        })
    }

    /// Lets the processes of a machine run that was captured as that snapshot. They run already: no effect but on the
    /// clock, and on a request to freeze them for it that has not come yet.
    pub(super) async fn wake(
        &self,
        record: &WorkspaceRecord,
        runtime: &Runtime,
        snapshot: SnapshotId,
    ) -> Result<(), EngineError> {
        let client = self.patient_client_of(runtime);
        let clock = client.configure(Configure { set_clock: true, ..Configure::default() }).await;
        let mut thawed = client.thaw(*snapshot.as_uuid()).await;
        if thawed.is_err() {
            // Nothing is worse for whoever works in there than to stand still for good.
            thawed = client.thaw(*snapshot.as_uuid()).await;
        }
        thawed.map_err(|source| EngineError::operation("thaw", record.name.as_str(), source))?;
        clock
            .map(drop)
            .map_err(|source| EngineError::operation("set the clock of", record.name.as_str(), source))
    }

    /// How a machine begins with the memory of a snapshot.
    ///
    /// # Errors
    /// [`EngineError::MemoryUnusable`] says why that cannot be, here and now.
    pub(super) async fn begin_of(
        &self,
        record: &WorkspaceRecord,
        snapshot: &SnapshotRecord,
    ) -> Result<Begin, EngineError> {
        let reason = match self.backends.hypervisor.image(snapshot.id).await {
            Ok(image) => image.obstacle,
            Err(HypervisorError::NoImage { .. }) => Some("it is not there any more".to_owned()),
            Err(error) => return Err(error.into()),
        };
        match reason {
            None => Ok(Begin::Clone(snapshot.id)),
            Some(reason) => Err(EngineError::MemoryUnusable {
                workspace: record.name.to_string(),
                snapshot: snapshot.name.clone(),
                reason,
            }),
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
