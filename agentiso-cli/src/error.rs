//! What people and programs are told when something failed.

use std::{io, process::ExitCode};

use agentiso_core::{
    ErrorKind,
    channel::client::{ErrorCode, GuestError},
    image::{AssetError, ImageError},
};
use serde_json::json;

use crate::{exit, stdio};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The library refused or failed.
    #[error(transparent)]
    Engine(Box<agentiso_core::EngineError>),
    /// The agent in a guest refused or failed, or cannot be reached.
    #[error(transparent)]
    Guest(Box<GuestError>),
    /// The MCP server could not serve, or its tokens not be changed.
    #[error(transparent)]
    Mcp(Box<agentiso_mcp::RunError>),
    /// Something on this side of the library: a local file, the terminal.
    #[error("{doing}")]
    Local {
        /// What could not be done, to what.
        doing: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The arguments parse but make no sense together or for what is there.
    #[error("{message}")]
    Request {
        /// What is wrong.
        message: String,
        /// What to do about it.
        next_step: Option<String>,
    },
    /// Part of the work failed; each failure has been reported.
    #[error("{failed} of {total} failed")]
    Partly {
        /// How many.
        failed: usize,
        /// Of how many.
        total: usize,
    },
    /// Whoever read our output has gone.
    #[error("nobody reads the output any more")]
    BrokenPipe,
    /// A signal asked us to end.
    #[error("interrupted")]
    Interrupted {
        /// Its number.
        signal: u8,
    },
}

impl From<agentiso_core::EngineError> for CliError {
    fn from(error: agentiso_core::EngineError) -> Self {
        Self::Engine(Box::new(error))
    }
}

impl From<GuestError> for CliError {
    fn from(error: GuestError) -> Self {
        Self::Guest(Box::new(error))
    }
}

impl From<ImageError> for CliError {
    fn from(error: ImageError) -> Self {
        agentiso_core::EngineError::from(error).into()
    }
}

impl From<AssetError> for CliError {
    fn from(error: AssetError) -> Self {
        ImageError::from(error).into()
    }
}

impl CliError {
    /// Something on this side of the library.
    pub(crate) fn local(doing: impl Into<String>, source: io::Error) -> Self {
        Self::Local { doing: doing.into(), source }
    }

    /// Writing to standard output failed.
    pub(crate) fn stdout(source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::BrokenPipe {
            Self::BrokenPipe
        } else {
            Self::local("could not write to standard output", source)
        }
    }

    /// A request that cannot be served as it is.
    pub(crate) fn request(message: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self::Request { message: message.into(), next_step: Some(next_step.into()) }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Engine(error) => error.kind(),
            Self::Mcp(error) => error.kind(),
            Self::Request { .. } => ErrorKind::InvalidParams,
            Self::Guest(error) => match **error {
                GuestError::Refused { code: ErrorCode::Invalid, .. } => ErrorKind::InvalidParams,
                GuestError::Refused {
                    code: ErrorCode::NotFound | ErrorCode::NotPermitted | ErrorCode::Conflict,
                    ..
                } => ErrorKind::InvalidRequest,
                _ => ErrorKind::InternalError,
            },
            _ => ErrorKind::InternalError,
        }
    }

    fn next_step(&self) -> Option<String> {
        match self {
            Self::Engine(error) => error.next_step(),
            Self::Mcp(error) => error.next_step(),
            Self::Request { next_step, .. } => next_step.clone(),
            _ => None,
        }
    }
}

/// The message of an error with those of its causes, outermost first.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        // Transparent wrappers repeat what is already there.
        if !text.ends_with(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

/// Reports an error and says what to end with; `failure` is what this command ends with when it failed.
pub(crate) fn report(error: &CliError, json: bool, failure: u8) -> ExitCode {
    ExitCode::from(match error {
        // Whoever went away does not want to hear about it, and whoever pressed Ctrl-C knows.
        CliError::BrokenPipe => exit::of_signal(exit::SIGPIPE),
        CliError::Interrupted { signal } => exit::of_signal(*signal),
        CliError::Partly { .. } => failure,
        CliError::Guest(refused) if failure == exit::AGENTISO_FAILED => {
            print(error, json);
            refused.exit_status()
        }
        _ => {
            print(error, json);
            failure
        }
    })
}

/// Prints an error on standard error.
pub(crate) fn print(error: &CliError, json: bool) {
    let message = chain(error);
    let next_step = error.next_step();
    if json {
        print_json(error.kind(), &message, next_step.as_deref());
    } else {
        stdio::say(&format!("agentiso: {message}"));
        if let Some(next_step) = next_step {
            stdio::say(&next_step);
        }
    }
}

/// Prints `{"error": {code, message, next_step}}` on standard error.
pub(crate) fn print_json(code: ErrorKind, message: &str, next_step: Option<&str>) {
    stdio::say(&json!({"error": {"code": code, "message": message, "next_step": next_step}}).to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_names_every_cause_once() {
        let error = CliError::local("could not open a.tar", io::Error::from(io::ErrorKind::NotFound));

        assert_eq!(chain(&error), "could not open a.tar: entity not found");
    }

    #[test]
    fn closed_standard_output_is_no_message() {
        let error = CliError::stdout(io::Error::from(io::ErrorKind::BrokenPipe));

        assert!(matches!(error, CliError::BrokenPipe));
    }
}
