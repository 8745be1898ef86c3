use std::{collections::BTreeMap, time::Duration};

use agentiso_guest::hello::Nonce;
use agentiso_guest::message::{ErrorCode, Request};

use uuid::Uuid;

use super::{CHUNK_DEADLINE, EXEC_GRACE, GuestClient, GuestError, SYNC_DEADLINE, millis};

/// How long a shutdown may take beyond the grace given to user processes, until the agent confirms it.
const SHUTDOWN_MARGIN: Duration = Duration::from_secs(15);

impl GuestClient {
    /// Sets environment variables for every later command, in guest memory only; `None` removes one. All or nothing.
    ///
    /// # Errors
    /// See [`GuestError`]; which variables are refused is up to the agent.
    pub async fn env_set(&self, vars: BTreeMap<String, Option<String>>) -> Result<(), GuestError> {
        self.done("set environment variables", Request::EnvSet { vars }, CHUNK_DEADLINE).await
    }

    /// Removes every variable that [`GuestClient::env_set`] set.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub async fn env_clear(&self) -> Result<(), GuestError> {
        self.done("clear environment variables", Request::EnvClear, CHUNK_DEADLINE).await
    }

    /// Freezes user processes for `capture`, which is any id that was not used before. The guest gives up and thaws them
    /// if that takes longer than `limit`. Frozen already: they stay so, for this capture from then on.
    ///
    /// # Errors
    /// [`GuestError::NotFrozen`]: they run again. [`GuestError::Refused`]: `capture` was thawed already. See
    /// [`GuestError`]; after any other but these they may be frozen: thaw.
    pub async fn freeze(&self, capture: Uuid, limit: Duration) -> Result<(), GuestError> {
        let operation = "freeze the guest's processes";
        let request =
            Request::Freeze { capture: Nonce::from_bytes(capture.into_bytes()), timeout_ms: millis(limit) };
        match self.done(operation, request, limit + EXEC_GRACE).await {
            Err(GuestError::Refused { code: ErrorCode::TimedOut, .. }) => {
                Err(GuestError::NotFrozen { operation, id: self.record.id, limit })
            }
            result => result,
        }
    }

    /// Lets user processes run again, whatever they were frozen for. A freeze for `capture` that is still on its way, as
    /// that of a host process that was killed, is refused when it comes.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub async fn thaw(&self, capture: Uuid) -> Result<(), GuestError> {
        let request = Request::Thaw { capture: Nonce::from_bytes(capture.into_bytes()) };
        self.done("thaw the guest's processes", request, CHUNK_DEADLINE).await
    }

    /// Writes all dirty file system data to the machine's disk, within 15 s.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub async fn sync(&self) -> Result<(), GuestError> {
        self.done("flush the guest's file systems", Request::Sync, SYNC_DEADLINE).await
    }

    /// Ends user processes, which have `grace` between SIGTERM and SIGKILL, flushes the disk and powers off. When this
    /// returns the guest is on its way; the machine's process ends a little later.
    ///
    /// # Errors
    /// See [`GuestError`]. A connection that ends before the answer is none: the machine is gone, as asked.
    pub async fn shutdown(&self, grace: Duration) -> Result<(), GuestError> {
        let request = Request::Shutdown { grace_ms: millis(grace) };
        match self.done("shut the guest down", request, grace + SHUTDOWN_MARGIN).await {
            Err(GuestError::Disconnected { .. }) => Ok(()),
            result => result,
        }
    }
}
