//! A first command of nobody's: the emulator translates code when it first runs, and what starts a program is half of what
//! a new machine has to run until a user's first command has ended.

use std::time::Duration;

use super::engine::Engine;
use crate::channel::client::{CollectOptions, ExecSpec, GuestClient, GuestError};
use crate::hypervisor::Accelerator;
use crate::store::WorkspaceRecord;

/// For the shell: a program, found by its name.
const COMMAND: &str = "exec true";

/// An image may have a shell that never ends.
const LIMIT: Duration = Duration::from_secs(5);

impl Engine {
    /// Whether a machine gains by running that command while it is being configured: it does so on another CPU, of its own
    /// and of the host's, and has none of a user's processes yet.
    pub(super) fn warms_up(&self, record: &WorkspaceRecord) -> bool {
        let is_emulated = self.backends.hypervisor.capabilities().accelerator == Accelerator::Tcg;
        let host = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        is_emulated && record.resources.vcpus.get() > 1 && host > 1
    }
}

/// Runs the command. How it ends does not matter: an image may have no shell.
///
/// # Errors
/// The agent did not answer.
pub(super) async fn warm_up(client: &GuestClient) -> Result<(), GuestError> {
    let command = ExecSpec { timeout: Some(LIMIT), ..ExecSpec::shell(COMMAND) };
    match client.exec_collect(command, CollectOptions::default()).await {
        Ok(_) | Err(GuestError::Refused { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
