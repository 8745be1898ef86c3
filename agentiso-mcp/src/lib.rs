//! The MCP server: tools over the agentiso engine, and nothing but translation.
//!
//! A call that reached a tool answers its errors with `isError` and one JSON text `{"code", "message", "next_step"}`;
//! JSON-RPC errors are for malformed requests, unknown methods and unknown tools. docs/tools.md lists the tools.
//!
//! - `server.rs`: the MCP handler; `tools/`: parameters and results of each tool, and how they become calls of the engine.
//! - `caller.rs`: on whose behalf a call acts, and what it therefore sees.
//! - `failure.rs`: errors as callers see them; `progress.rs`: how far a call is.
//! - `resources.rs`, `prompts.rs`: what clients can read, and offer to people.
//! - `folder.rs`: the one folder of the host that files are copied from and to.
//! - `audit.rs`, `metrics.rs`: an account of every call.
//! - `lines.rs`, `stall.rs`: what a client may send, and how long it may leave unread what it is sent.
//! - `http/`, `tokens.rs`: clients with a token over HTTP. `program.rs`: the programs' command line.
//!
//! Features: `http` (default), the HTTP transport and the metrics' address.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod audit;
mod caller;
mod document;
mod failure;
mod folder;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "http")]
pub mod http;
mod lines;
mod metrics;
mod program;
mod progress;
mod prompts;
mod resources;
mod server;
mod service;
mod stall;
mod tokens;
mod tools;

use rmcp::ServiceExt;
use tokio::io::{AsyncRead, AsyncWrite};

pub use document::{tools_json, tools_markdown};
pub use program::{McpArgs, Printed, RunError, log_directives};
pub use service::{Options, Service, SetupError};
pub use tokens::{TokenError, Tokens};

use agentiso_core::EngineError;
use lines::BoundedLines;
use server::Server;
use stall::{Limits, Stalling};

/// How long a client may leave what it is sent unread.
const WRITE_LIMIT: std::time::Duration = std::time::Duration::from_secs(60);

/// The image of a workspace unless the call names one.
pub const DEFAULT_IMAGE: &str = "debian";

/// Why the server ended, other than because its client went away.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The client did not begin as MCP says.
    #[error("the MCP client did not open the session properly")]
    Initialize(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The session cannot be used.
    #[error("could not begin the session {name}")]
    Session {
        /// The session.
        name: String,
        /// Why.
        #[source]
        source: Box<EngineError>,
    },
    /// The client does not read what it is sent.
    #[error("the MCP client has not read anything for {after:?}")]
    Stalled {
        /// How long it was waited.
        after: std::time::Duration,
    },
    /// A task of the server panicked; a defect.
    #[error("the MCP server ended unexpectedly")]
    Panicked(#[source] tokio::task::JoinError),
}

/// Serves one client over standard input and output, as the session of this name, until it closes them. Nothing else may
/// write to standard output meanwhile.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve_stdio(service: Service, session: &str) -> Result<(), ServeError> {
    let (input, output) = rmcp::transport::io::stdio_pipes();
    serve(service, session, input, output).await
}

/// Serves one client over any pair of streams, as the session of this name, until it closes its side. Calls that are under way then are given up.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve<R, W>(service: Service, session: &str, input: R, output: W) -> Result<(), ServeError>
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    use rmcp::service::ServerInitializeError::ConnectionClosed;
    let caller = service.caller(session).await;
    let caller = caller
        .map_err(|source| ServeError::Session { name: session.to_owned(), source: Box::new(source) })?;
    let output = Stalling::new(output, Limits { write: WRITE_LIMIT, idle: None });
    let mut stalled = output.stalled();
    let serving = async {
        let running = match Server::new(service, caller).serve((BoundedLines::new(input), output)).await {
            Ok(running) => running,
            // A client that looks in and leaves has done nothing wrong.
            Err(ConnectionClosed(_)) => return Ok(()),
            Err(error) => return Err(ServeError::Initialize(Box::new(error))),
        };
        running.waiting().await.map(|_| ()).map_err(ServeError::Panicked)
    };
    tokio::select! {
        served = serving => served,
        // Fails when the stream is gone, and the server with it.
        Ok(_) = stalled.wait_for(|stalled| *stalled) => Err(ServeError::Stalled { after: WRITE_LIMIT }),
    }
}
