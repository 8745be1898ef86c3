//! Chains of layers that stay short.
//!
//! Each snapshot and fork of a running machine puts a layer on its disk. Once there are too many, the machine copies
//! some of them up into the topmost one (see [`ShortenPlan`]) while its guest runs on.
//! Nobody waits for that: whoever has the workspace's lock next looks how far it is, and notes the end in the
//! storage's records. A machine cannot copy and move to a new layer at once, so whoever wants it to move gives the
//! copying up first; it begins again afterwards. Snapshots that follow
//! each other faster than their data is copied therefore make a longer chain, until there is a pause.

use super::engine::Engine;
use crate::error::EngineError;
use crate::hypervisor::StreamStatus;
use crate::storage::{FORKED_CHAIN_DEPTH, MAX_CHAIN_DEPTH, ShortenPlan, StorageError};
use crate::store::WorkspaceRecord;

impl Engine {
    /// Must be called, with the workspace's lock held, before a machine's disk moves to a new layer: ends whatever
    /// copying is under way. Costs nothing while the disk has few layers.
    ///
    /// On failure the machine may still be copying, and its disk does not move.
    pub(super) async fn shorten_before_pivot(&self, record: &WorkspaceRecord) -> Result<(), EngineError> {
        let Some(runtime) = self.living(record) else { return Ok(()) };
        let plan = match self.backends.storage.shorten_plan(record.disk(), MAX_CHAIN_DEPTH).await {
            Ok(Some(plan)) => plan,
            // Nobody copies without a plan.
            Ok(None) | Err(StorageError::Full { .. } | StorageError::Exists { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let status = self.backends.hypervisor.cancel_stream(&runtime.machine, &plan).await?;
        self.note_shortened(record, status, &plan).await
    }

    /// To be called, with the workspace's lock held, when a machine's disk may have got too many layers, or its
    /// machine may have got rid of them: starts copying, or notes its end. What goes wrong is said in a warning and
    /// tried again the next time: a long chain is slower, not wrong.
    pub(super) async fn shorten_afterwards(&self, record: &WorkspaceRecord) {
        self.shorten_beyond(record, MAX_CHAIN_DEPTH).await;
    }

    /// The same for a workspace that was forked: earlier, so that its next forks need not.
    pub(super) async fn shorten_parent(&self, record: &WorkspaceRecord) {
        self.shorten_beyond(record, FORKED_CHAIN_DEPTH).await;
    }

    async fn shorten_beyond(&self, record: &WorkspaceRecord, most: usize) {
        if let Err(error) = self.try_shorten(record, most).await {
            tracing::warn!(workspace = %record.name, error = %error.report(), "could not shorten the disk's chain");
        }
    }

    async fn try_shorten(&self, record: &WorkspaceRecord, most: usize) -> Result<(), EngineError> {
        let Some(runtime) = self.living(record) else { return Ok(()) };
        let Some(plan) = self.backends.storage.shorten_plan(record.disk(), most).await? else {
            return Ok(());
        };
        let status = self.backends.hypervisor.stream_disk(&runtime.machine, &plan).await?;
        self.note_shortened(record, status, &plan).await
    }

    async fn note_shortened(
        &self,
        record: &WorkspaceRecord,
        status: StreamStatus,
        plan: &ShortenPlan,
    ) -> Result<(), EngineError> {
        if status == StreamStatus::Done {
            self.backends.storage.finish_shorten(record.disk(), plan).await?;
        }
        Ok(())
    }
}
