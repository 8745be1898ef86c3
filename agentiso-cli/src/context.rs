//! What every command has at hand.

use agentiso_core::{
    Config, Host, Workspace,
    doctor::{CheckStatus, doctor},
};
use tokio::sync::OnceCell;

use crate::{error::CliError, output::Output, progress::Progress};

/// What every command has at hand.
#[derive(Debug)]
pub(crate) struct Context {
    /// How results are printed.
    pub(crate) output: Output,
    host: OnceCell<Host>,
}

impl Context {
    pub(crate) fn new(json: bool) -> Self {
        Self { output: Output { json }, host: OnceCell::new() }
    }

    /// Where the state folder is and what is configured.
    pub(crate) fn config(&self) -> Result<Config, CliError> {
        Ok(Config::from_env()?)
    }

    /// The opened state folder.
    pub(crate) async fn host(&self) -> Result<&Host, CliError> {
        self.host.get_or_try_init(|| async { Ok(Host::open(self.config()?).await?) }).await
    }

    /// A workspace, found by what people call it.
    pub(crate) async fn workspace(&self, name_or_id: &str) -> Result<Workspace, CliError> {
        Ok(self.host().await?.workspace(name_or_id).await?)
    }

    /// Shows on a terminal that something takes its time; not with `--json`.
    pub(crate) fn progress(&self, what: impl Into<String>) -> Progress {
        Progress::spinner(what, !self.output.json)
    }

    /// The QEMU that machines would run in, with its version.
    pub(crate) async fn qemu(&self) -> Result<Option<String>, CliError> {
        let checks = doctor(&self.config()?).await.checks;
        let found = checks.into_iter().find(|check| check.name == "QEMU" && check.status == CheckStatus::Ok);
        Ok(found.map(|check| check.detail))
    }

    /// Waits until what was begun is complete or undone.
    pub(crate) async fn close(&self) {
        if let Some(host) = self.host.get() {
            host.close().await;
            host.images().idle().await;
        }
    }
}
