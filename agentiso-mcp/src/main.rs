//! `agentiso-mcp`: the MCP server of the state folder that the environment names; the same as `agentiso mcp`.
#![forbid(unsafe_code)]

use std::{
    io::{self, Write},
    process::ExitCode,
};

use agentiso_core::{Config, Host};
use agentiso_mcp::{McpArgs, RunError, log_directives};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The MCP server of agentiso
#[derive(Debug, Parser)]
#[command(name = "agentiso-mcp", version)]
struct Line {
    #[command(flatten)]
    args: McpArgs,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Line { args } = Line::parse();
    // Standard output belongs to the protocol.
    let wanted = std::env::var("AGENTISO_LOG").unwrap_or_else(|_| "warn".to_owned());
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_env_filter(EnvFilter::new(log_directives(&wanted)))
        .init();
    match run(args).await {
        Ok(status) => status,
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(source) = cause {
                let message = source.to_string();
                if !text.ends_with(&message) {
                    text.push_str(": ");
                    text.push_str(&message);
                }
                cause = source.source();
            }
            eprintln!("agentiso-mcp: {text}");
            if let Some(next_step) = error.next_step() {
                eprintln!("next: {next_step}");
            }
            ExitCode::FAILURE
        }
    }
}

async fn run(args: McpArgs) -> Result<ExitCode, RunError> {
    let config = Config::from_env()?;
    if let Some(printed) = args.print(&config)? {
        // Whoever does not read it does not want it.
        let _ = io::stdout().write_all(printed.text.as_bytes());
        return Ok(ExitCode::SUCCESS);
    }
    let host = Host::open(config.clone()).await?;
    let served = tokio::select! {
        served = args.serve(&config, host.clone()) => served.map(|()| ExitCode::SUCCESS),
        number = signalled() => Ok(ExitCode::from(number.saturating_add(128))),
    };
    // What a call that was given up had begun is undone first.
    host.close().await;
    served
}

/// Waits for a signal that asks to end, and returns its number.
async fn signalled() -> u8 {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => 2,
        _ = terminate.recv() => 15,
    }
}
