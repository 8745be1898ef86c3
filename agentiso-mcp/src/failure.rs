//! Errors as callers see them.

use agentiso_core::{
    EngineError, ErrorKind, StoreError, Workspace,
    channel::client::{ErrorCode, GuestError},
    image::{CatalogError, ImageError},
    session::AuthError,
};
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

    /// It cannot be done as things are.
    pub(crate) fn request(message: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self { code: ErrorKind::InvalidRequest, message: message.into(), next_step: next_step.into() }
    }

    /// This host failed.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self {
            code: ErrorKind::InternalError,
            message: message.into(),
            next_step: default_step(ErrorKind::InternalError).to_owned(),
        }
    }

    /// The guest of a workspace did not do as asked.
    pub(crate) fn guest(workspace: &Workspace, error: &GuestError) -> Self {
        let mut message = format!("workspace {}: {error}", workspace.name());
        let mut cause = std::error::Error::source(error);
        while let Some(source) = cause {
            message.push_str(": ");
            message.push_str(&source.to_string());
            cause = source.source();
        }
        let (code, next_step) = match error {
            GuestError::Refused { code, .. } => (
                if *code == ErrorCode::Invalid {
                    ErrorKind::InvalidParams
                } else {
                    ErrorKind::InvalidRequest
                },
                refused_step(*code),
            ),
            GuestError::Request { .. } => (ErrorKind::InvalidParams, "send less at once"),
            GuestError::AgentBusy { .. } => {
                (ErrorKind::InvalidRequest, "wait for running commands to end, then call again")
            }
            _ => (ErrorKind::InternalError, default_step(ErrorKind::InternalError)),
        };
        Self { code, message, next_step: next_step.to_owned() }
    }

    /// What kind of failure it is.
    pub(crate) fn code(&self) -> ErrorKind {
        self.code
    }

    /// What went wrong, in one line.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// What to do next.
    pub(crate) fn next_step(&self) -> &str {
        &self.next_step
    }

    /// The same with another message, as one without a secret that it may hold.
    pub(crate) fn map_message(mut self, change: impl FnOnce(&str) -> String) -> Self {
        self.message = change(&self.message);
        self
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
        let code = error.kind();
        Self { code, message: error.report(), next_step: next_step(&error, code) }
    }
}

/// What the caller can do next, in terms of these tools: the library speaks of the command line.
fn next_step(error: &EngineError, code: ErrorKind) -> String {
    match error {
        EngineError::NoSuchWorkspace { .. } => "call workspace_list for the workspaces there are".to_owned(),
        EngineError::NameTaken { .. } | EngineError::Store(StoreError::NameTaken { .. }) => {
            "choose another name, or remove the old workspace with workspace_destroy".to_owned()
        }
        EngineError::NoSuchSnapshot { .. } => {
            "call snapshot with the action \"list\" for the snapshots there are".to_owned()
        }
        EngineError::TooManySnapshots { .. } => {
            "delete one that is no longer needed with snapshot and the action \"delete\"".to_owned()
        }
        EngineError::SnapshotInUse { .. } => "remove those workspaces first, with workspace_destroy".to_owned(),
        EngineError::WrongState { state, .. } => {
            format!("it is {state}: workspace_start boots it, workspace_stop stops it; then call again")
        }
        EngineError::MemoryUnusable { .. } => {
            "whoever operates this host can restore its disk alone; or take a new snapshot".to_owned()
        }
        EngineError::Image(error)
            if matches!(**error, ImageError::Catalog(CatalogError::NotFound { .. })) =>
        {
            "leave base_image out for the default one; `agentiso image ls` on the host lists the images there are"
                .to_owned()
        }
        EngineError::Start { .. } => {
            "call workspace_logs for its console; `agentiso doctor` on the host checks that".to_owned()
        }
        EngineError::Session(AuthError::NotOwner { .. }) => {
            "nobody owns it: workspace_adopt makes it this session's".to_owned()
        }
        EngineError::Session(AuthError::UnknownWorkspace { .. }) => {
            "call workspace_list for the workspaces there are".to_owned()
        }
        EngineError::Operation { source, .. } => match source.downcast_ref() {
            Some(GuestError::Refused { code, .. }) => refused_step(*code).to_owned(),
            _ => default_step(code).to_owned(),
        },
        _ => error.next_step().unwrap_or_else(|| default_step(code).to_owned()),
    }
}

/// What to do when the guest itself said no.
fn refused_step(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::NotFound => "check the path with file_list, or the program with exec, and call again",
        ErrorCode::NotPermitted => "check what is at that path with file_list: it cannot be used that way",
        ErrorCode::Invalid => "correct the parameters and call again",
        ErrorCode::Conflict => "it is there or in use already: remove it, or use another name",
        ErrorCode::Exhausted => {
            "something is used up in the workspace: free disk or memory, or end processes"
        }
        ErrorCode::TimedOut => "give it more time with timeout_secs, or run it with exec_background",
        ErrorCode::Failed => "the message says what failed in the workspace: correct that and call again",
    }
}

fn default_step(code: ErrorKind) -> &'static str {
    match code {
        ErrorKind::InvalidParams => "correct the parameters and call again",
        ErrorKind::InvalidRequest => "correct the request: what it asks for cannot be done as it is",
        ErrorKind::InternalError => {
            "call again; if that fails too, `agentiso doctor` on the host says what is wrong there"
        }
    }
}
