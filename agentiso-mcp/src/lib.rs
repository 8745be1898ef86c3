//! The MCP server: tools over the agentiso engine, and nothing but translation.
//!
//! Today it has four tools: `workspace_create`, `workspace_list`, `workspace_destroy` and `exec`. A call that reached a
//! tool answers its errors with `isError` and one JSON text `{"code", "message", "next_step"}`; JSON-RPC errors are for
//! malformed requests, unknown methods and unknown tools. The server acts as the operator: it sees and operates every
//! workspace of the state folder.
//!
//! - `server.rs`: the MCP handler.
//! - `tools.rs`: parameters and results of each tool, and how they become calls of the engine.
//! - `failure.rs`: errors as callers see them.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod failure;
mod server;
mod tools;

use agentiso_core::Host;
use rmcp::ServiceExt;
use tokio::io::{AsyncRead, AsyncWrite};

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
pub async fn serve_stdio(host: Host) -> Result<(), ServeError> {
    let (input, output) = rmcp::transport::io::stdio_pipes();
    serve(host, input, output).await
}

/// Serves one client over any pair of streams until it closes its side. Calls that are under way then are given up.
///
/// # Errors
/// See [`ServeError`].
pub async fn serve<R, W>(host: Host, input: R, output: W) -> Result<(), ServeError>
where
    R: AsyncRead + Send + Unpin + 'static,
    W: AsyncWrite + Send + Unpin + 'static,
{
    use rmcp::service::ServerInitializeError::ConnectionClosed;
    let running = match Server::new(host).serve((input, output)).await {
        Ok(running) => running,
        // A client that looks in and leaves has done nothing wrong.
        Err(ConnectionClosed(_)) => return Ok(()),
        Err(error) => return Err(ServeError::Initialize(Box::new(error))),
    };
    running.waiting().await.map(|_| ()).map_err(ServeError::Panicked)
}
