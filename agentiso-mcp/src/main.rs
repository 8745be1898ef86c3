//! `agentiso-mcp`: the MCP server over standard input and output, for the state folder that the environment names.
//!
//! With AGENTISO_POOL=N it keeps N machines of the default image and size ready, for workspaces to be made of.

use std::process::ExitCode;

use agentiso_core::{Config, EngineError, Host, MAX_POOL, Pool, PoolSpec, types::Resources};
use agentiso_mcp::DEFAULT_IMAGE;
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
    let pool = match pool(&host).await {
        Ok(pool) => pool,
        Err(error) => {
            eprintln!("agentiso-mcp: no pool: {error}");
            return ExitCode::FAILURE;
        }
    };
    let service = agentiso_mcp::Service::new(host.clone(), &agentiso_mcp::Options::default());
    let Ok(service) = service else { return ExitCode::FAILURE };
    let served = agentiso_mcp::serve_stdio(service).await;
    if let Some(pool) = pool {
        pool.close().await;
    }
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

/// The pool that the environment asks for.
async fn pool(host: &Host) -> Result<Option<Pool>, String> {
    let Some(wanted) = std::env::var_os("AGENTISO_POOL").filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let size = wanted
        .to_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| format!("AGENTISO_POOL is {wanted:?}: it can be 0 to {MAX_POOL}"))?;
    if size == 0 {
        return Ok(None);
    }
    let spec = PoolSpec { image: DEFAULT_IMAGE.to_owned(), resources: Resources::default(), size };
    host.pool(spec).await.map(Some).map_err(|error| error.report())
}

async fn open() -> Result<Host, EngineError> {
    Host::open(Config::from_env()?).await
}
