//! `agentiso-mcp`: the MCP server over standard input and output, for the state folder that the environment names.

use std::process::ExitCode;

use agentiso_core::{Config, EngineError, Host};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    // Standard output belongs to the protocol.
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(EnvFilter::try_from_env("AGENTISO_LOG").unwrap_or_else(|_| EnvFilter::new("warn")))
        .init();
    if let Some(argument) = std::env::args_os().nth(1) {
        return match argument.to_str() {
            Some("--version") => {
                println!("agentiso-mcp {}", env!("CARGO_PKG_VERSION"));
                ExitCode::SUCCESS
            }
            _ => {
                eprintln!(
                    "agentiso-mcp takes no arguments (but --version): it speaks MCP over standard input and output"
                );
                ExitCode::from(2)
            }
        };
    }
    let host = match open().await {
        Ok(host) => host,
        Err(error) => {
            eprintln!("agentiso-mcp: {}", error.report());
            if let Some(next_step) = error.next_step() {
                eprintln!("next: {next_step}");
            }
            return ExitCode::FAILURE;
        }
    };
    let served = agentiso_mcp::serve_stdio(host.clone()).await;
    // What a call that was given up had begun is undone first.
    host.close().await;
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            eprintln!("agentiso-mcp: {error}{}", cause.unwrap_or_default());
            ExitCode::FAILURE
        }
    }
}

async fn open() -> Result<Host, EngineError> {
    Host::open(Config::from_env()?).await
}
