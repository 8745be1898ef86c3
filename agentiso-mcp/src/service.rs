//! What all clients of a server share.

use std::{path::PathBuf, sync::Arc};

use agentiso_core::{EngineError, session::Sessions};
use tokio::time::Instant;

use crate::{
    audit::{Audit, Touched},
    caller::Caller,
    folder::TransferFolder,
    metrics::Metrics,
};

/// How a server is set up.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The one folder of this host that `file_transfer` copies from and to; without it that tool is refused.
    pub transfer_dir: Option<PathBuf>,
    /// The state folder, where the audit log is kept; without it none is.
    pub state_dir: Option<PathBuf>,
}

/// Why a server could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The transfer folder cannot be used.
    #[error("could not open the transfer folder {path}")]
    TransferFolder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A server of any number of clients. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    pub(crate) sessions: Sessions,
    pub(crate) transfer: Option<Arc<TransferFolder>>,
    pub(crate) metrics: Arc<Metrics>,
    audit: Option<Arc<Audit>>,
    state_dir: Option<Arc<str>>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("transfer", &self.transfer).finish_non_exhaustive()
    }
}

impl Service {
    /// A server of the sessions of a state folder.
    ///
    /// # Errors
    /// The transfer folder cannot be opened.
    pub fn new(sessions: Sessions, options: &Options) -> Result<Self, SetupError> {
        let open = |path: &PathBuf| {
            TransferFolder::open(path)
                .map_err(|source| SetupError::TransferFolder { path: path.clone(), source })
        };
        Ok(Self {
            sessions,
            transfer: options.transfer_dir.as_ref().map(open).transpose()?.map(Arc::new),
            metrics: Arc::default(),
            audit: options.state_dir.as_deref().map(Audit::at).map(Arc::new),
            state_dir: options.state_dir.as_deref().map(|path| path.display().to_string().into()),
        })
    }

    /// Begins a session, or goes on with the one of that name.
    pub(crate) async fn caller(&self, session: &str) -> Result<Caller, EngineError> {
        Ok(Caller::new(self.sessions.open(session).await?))
    }

    /// Begins to keep an account of a call.
    pub(crate) fn account(&self, session: &str, tool: &'static str, touched: Touched) -> Account {
        Account {
            service: self.clone(),
            session: session.to_owned(),
            tool,
            touched,
            began: Instant::now(),
            outcome: "cancelled",
        }
    }

    /// A text for clients without what is this host's own business.
    pub(crate) fn without_paths(&self, text: &str) -> String {
        match &self.state_dir {
            Some(path) if !path.is_empty() => text.replace(&**path, "[state folder]"),
            _ => text.to_owned(),
        }
    }
}

/// A call under way. However it ends, it is counted and in the audit log.
pub(crate) struct Account {
    service: Service,
    session: String,
    tool: &'static str,
    touched: Touched,
    began: Instant,
    outcome: &'static str,
}

impl Account {
    /// The call ended; one that does not was cancelled.
    pub(crate) fn end(mut self, outcome: &'static str) {
        self.outcome = outcome;
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let time = self.began.elapsed();
        self.service.metrics.called(self.tool, self.outcome, time);
        if let Some(audit) = &self.service.audit {
            audit.write(&self.session, self.tool, &self.touched.all(), self.outcome, time);
        }
    }
}
