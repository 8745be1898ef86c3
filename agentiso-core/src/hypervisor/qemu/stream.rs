//! Layers copied up into the topmost one while the machine runs: QEMU's `block-stream`.
//!
//! The job is QEMU's and outlives the conversation that started it. Whether it has succeeded is read from how many
//! layers the disk has left, not from the job: so it does not matter who saw its end, or whether anyone did.
//!
//! While it runs QEMU has a filter node above the topmost layer, named after that so that the layer is still known.

use std::{io, path::PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    command_line::node_name,
    monitor::{Drive, FLUSHING, Monitor, MonitorError, QUICK},
    qmp::{Event, QmpError},
};
use crate::{
    hypervisor::StreamStatus,
    storage::{LayerId, ShortenPlan},
};

/// The job's name: a machine has one disk and so at most one job.
const JOB: &str = "shorten";

/// A job as QEMU reports it.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Job {
    id: String,
    status: String,
    current_progress: u64,
    total_progress: u64,
    error: Option<String>,
}

impl Job {
    fn is_over(&self) -> bool {
        self.status == "concluded"
    }
}

/// How far QEMU is.
pub(super) enum Streamed {
    /// Not at it.
    Not,
    /// So many bytes of so many.
    Partly(u64, u64),
    /// All is copied, though maybe not written to the host's disk, and the layers are still open.
    All,
}

/// The name of the filter above a layer that others are copied into.
fn filter_name(layer: &LayerId) -> String {
    format!("s{layer}")
}

/// The layer beneath such a filter.
pub(super) fn layer_of_filter(name: &str) -> Option<LayerId> {
    LayerId::parse(name.strip_prefix('s')?)
}

impl Monitor {
    /// Starts the copying, or says how far it is. A job that failed is reported once, and started again by the next
    /// call.
    pub(super) async fn stream(&mut self, plan: &ShortenPlan) -> Result<Streamed, MonitorError> {
        let failure = match self.job().await? {
            Some(job) if job.is_over() => {
                self.dismiss().await?;
                job.error
            }
            Some(job) => return Ok(Streamed::Partly(job.current_progress, job.total_progress)),
            None => None,
        };
        // QEMU 10.0.2 crashes when it is told to copy what lies between two layers that are next to each other.
        if self.is_streamed(plan).await? {
            return Ok(Streamed::All);
        }
        if let Some(error) = failure {
            return Err(MonitorError::NotStreamed { reason: clean(&error) });
        }
        let arguments = json!({
            "job-id": JOB,
            "device": node_name(&plan.top.id),
            "base-node": node_name(&plan.base),
            // Otherwise QEMU writes a description of the base into the layer's header.
            "backing-file": "",
            "filter-node-name": filter_name(&plan.top.id),
            "auto-finalize": true,
            "auto-dismiss": false,
        });
        let _: Value = self.qmp.execute("block-stream", arguments, FLUSHING).await?;
        Ok(Streamed::Partly(0, plan.top.bytes))
    }

    /// Ends the copying and waits until QEMU has left it.
    pub(super) async fn cancel_stream(&mut self, plan: &ShortenPlan) -> Result<Streamed, MonitorError> {
        if let Some(job) = self.job().await? {
            if !job.is_over() {
                self.cancel_job().await?;
            }
            self.dismiss().await?;
        }
        match self.drive().await? {
            drive if drive.layer != plan.top.id => Ok(Streamed::Not),
            drive if drive.beneath == plan.beneath => Ok(Streamed::All),
            _ => Ok(Streamed::Not),
        }
    }

    /// Writes the disk to the host's, then closes the layers that the disk has left.
    pub(super) async fn leave_layers(&mut self, plan: &ShortenPlan) -> Result<(), MonitorError> {
        self.flush(&plan.top.id).await?;
        for layer in &plan.dropped {
            self.forget_layer(layer).await?;
        }
        Ok(())
    }

    /// Whether the base is right beneath the topmost layer.
    async fn is_streamed(&mut self, plan: &ShortenPlan) -> Result<bool, MonitorError> {
        let Drive { layer, beneath, .. } = self.drive().await?;
        if layer != plan.top.id || beneath < plan.beneath {
            let reason = "its disk has other layers than the records say; stop and start the machine";
            return Err(MonitorError::NotStreamed { reason: reason.to_owned() });
        }
        Ok(beneath == plan.beneath)
    }

    async fn job(&mut self) -> Result<Option<Job>, MonitorError> {
        let jobs: Vec<Job> = self.qmp.execute("query-jobs", json!({}), QUICK).await?;
        Ok(jobs.into_iter().find(|job| job.id == JOB))
    }

    async fn cancel_job(&mut self) -> Result<(), MonitorError> {
        const COMMAND: &str = "job-cancel";
        let canceled: Result<Value, QmpError> =
            self.qmp.execute(COMMAND, json!({ "id": JOB }), FLUSHING).await;
        match canceled {
            Ok(_) => {}
            // It may have come to its end meanwhile.
            Err(error @ QmpError::Refused { .. }) => {
                return match self.job().await? {
                    Some(job) if job.is_over() => Ok(()),
                    _ => Err(error.into()),
                };
            }
            Err(error) => return Err(error.into()),
        }
        let over = |event: &Event| {
            event.event == "JOB_STATUS_CHANGE"
                && event.data["id"] == JOB
                && event.data["status"] == "concluded"
        };
        self.qmp.wait_event(COMMAND, over, FLUSHING).await?;
        Ok(())
    }

    async fn dismiss(&mut self) -> Result<(), MonitorError> {
        let _: Value = self.qmp.execute("job-dismiss", json!({ "id": JOB }), QUICK).await?;
        Ok(())
    }

    /// QEMU keeps tables of a layer in memory; only a flush makes what was copied reachable after a power failure.
    ///
    /// No command of QMP flushes a disk of a running machine. One of the human monitor does, but does not tell when it
    /// fails. A snapshot flushes the disk too before it looks for the new layer, and tells: so one is asked for with a
    /// layer that there is not, and what QEMU complains about is what went wrong first.
    async fn flush(&mut self, top: &LayerId) -> Result<(), MonitorError> {
        const NOWHERE: &str = "no-such-layer";
        let arguments = json!({ "command-line": "qemu-io -d disk flush" });
        let said: String = self.qmp.execute("human-monitor-command", arguments, FLUSHING).await?;
        if !said.trim().is_empty() {
            return Err(MonitorError::NotFlushed { reason: clean(&said) });
        }
        let arguments = json!({ "node": node_name(top), "overlay": NOWHERE });
        let refused: Result<Value, QmpError> =
            self.qmp.execute("blockdev-snapshot", arguments, FLUSHING).await;
        match refused {
            Err(QmpError::Refused { description, .. }) if description.contains(NOWHERE) => Ok(()),
            Err(QmpError::Refused { description, .. }) => {
                Err(MonitorError::NotFlushed { reason: description })
            }
            Err(error) => Err(error.into()),
            Ok(_) => Err(MonitorError::UnknownDisk),
        }
    }
}

/// QEMU's texts go to people and logs.
fn clean(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect()
}

/// Writes to the host's disk what was copied so far, on a thread that may wait, so that QEMU's own flush, during which
/// the guest can stand still, has little left to do.
pub(super) async fn write_back(path: PathBuf) -> io::Result<()> {
    tokio::task::spawn_blocking(move || std::fs::File::open(path)?.sync_data()).await?
}

impl From<Streamed> for StreamStatus {
    fn from(streamed: Streamed) -> Self {
        match streamed {
            Streamed::Not => Self::Idle,
            Streamed::Partly(done_bytes, total_bytes) => Self::Running { done_bytes, total_bytes },
            Streamed::All => Self::Done,
        }
    }
}
