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
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod audit;
mod caller;
mod document;
mod failure;
mod folder;
mod metrics;
mod progress;
mod prompts;
mod resources;
mod server;
mod service;
mod tools;

use rmcp::ServiceExt;
use tokio::io::{AsyncRead, AsyncWrite};

pub use document::{tools_json, tools_markdown};
pub use service::{Options, Service, SetupError};

use caller::Caller;
use server::Server;

/// The image of a workspace unless the call names one.
pub const DEFAULT_IMAGE: &str = "debian";

/// Why the server ended, other than because its client went away.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The client did not begin as MCP says.
    #[error("the MCP client did not open the session properly")]
    Initialize(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A task of the server panicked; a defect.
    #[error("the MCP server ended unexpectedly")]
    Panicked(#[source] tokio::task::JoinError),
}

/// Serves one client over standard input and output until it closes them. Nothing else may write to standard output
/// meanwhile.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve_stdio(service: Service) -> Result<(), ServeError> {
    let (input, output) = rmcp::transport::io::stdio_pipes();
    serve(service, input, output).await
}

/// Serves one client over any pair of streams until it closes its side. Calls that are under way then are given up.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve<R, W>(service: Service, input: R, output: W) -> Result<(), ServeError>
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    use rmcp::service::ServerInitializeError::ConnectionClosed;
    let caller = Caller::operator(service.host.clone());
    let running = match Server::new(service, caller).serve((input, output)).await {
        Ok(running) => running,
        // A client that looks in and leaves has done nothing wrong.
        Err(ConnectionClosed(_)) => return Ok(()),
        Err(error) => return Err(ServeError::Initialize(Box::new(error))),
    };
    running.waiting().await.map(|_| ()).map_err(ServeError::Panicked)
}
