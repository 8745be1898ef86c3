use agentiso_core::{EngineError, ErrorKind, channel::client::GuestError};
use rmcp::model::{CallToolResult, ContentBlock};
use serde::Serialize;

/// Why a tool call failed, as its caller sees it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Failure {
    code: ErrorKind,
    message: String,
    next_step: String,
}

impl Failure {
    /// A parameter was wrong.
    pub(crate) fn parameter(message: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self { code: ErrorKind::InvalidParams, message: message.into(), next_step: next_step.into() }
    }

    /// Tells the log of a failure of this host. What is wrong with a call may quote its parameters, which can be
    /// secret, and is told to the caller alone.
    pub(crate) fn log(&self, tool: &'static str) {
        if self.code == ErrorKind::InternalError {
            tracing::warn!(tool, message = self.message, "a tool call failed");
        }
    }

    /// An answer with `isError` and this as its one JSON text.
    pub(crate) fn into_result(self) -> CallToolResult {
        CallToolResult::error(vec![ContentBlock::text(serde_json::json!(self).to_string())])
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let code = if is_refused_by_guest(&error) { ErrorKind::InvalidRequest } else { error.kind() };
        Self { code, message: error.report(), next_step: next_step(&error, code) }
    }
}

/// Whether the guest itself said no: that is neither this host's failure nor agentiso's.
fn is_refused_by_guest(error: &EngineError) -> bool {
    let EngineError::Operation { source, .. } = error else { return false };
    matches!(source.downcast_ref(), Some(GuestError::Refused { .. }))
}

/// What the caller can do next, in terms of these tools.
fn next_step(error: &EngineError, code: ErrorKind) -> String {
    match error {
        EngineError::NoSuchWorkspace { .. } => "call workspace_list for the workspaces there are".to_owned(),
        EngineError::NameTaken { .. } => {
            "choose another name, or remove the old workspace with workspace_destroy".to_owned()
        }
        _ => error.next_step().unwrap_or_else(|| {
            match code {
                ErrorKind::InvalidParams => "correct the parameters and call again",
                ErrorKind::InvalidRequest => "correct the request: what it asks for cannot be done as it is",
                ErrorKind::InternalError => {
                    "call again; if that fails too, `agentiso doctor` on the host says what is wrong there"
                }
            }
            .to_owned()
        }),
    }
}
