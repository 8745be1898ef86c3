//! The `agentiso` command: what is typed becomes calls of `agentiso-core`, what they return becomes text or JSON.
//!
//! Standard output is data, standard error is talk. Everything that decides anything about a workspace is in the
//! library.
#![forbid(unsafe_code)]

mod cli;
mod commands;
mod context;
mod error;
mod exit;
mod output;
mod progress;
mod session;
mod signals;
mod stdio;
mod terminal;
mod transfer;
mod usage;
mod version;

use std::{process::ExitCode, time::Duration};

use clap::Parser;

use crate::context::Context;

/// How long the end waits for threads that still work.
const LAST_WORK: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().collect();
    let cli = match cli::Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return usage::report(&error, &arguments),
    };
    start_log(cli.json);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(source) => {
            let error = error::CliError::local("could not start the runtime's threads", source);
            return error::report(&error, cli.json, exit::failure_status(&cli));
        }
    };
    let failure = exit::failure_status(&cli);
    let json = cli.json;
    let result = runtime.block_on(async {
        let context = Context::new(json);
        let result = commands::dispatch(cli.command, cli.version, &context).await;
        // Another signal ends the wait as well: the next command puts right what is left then.
        let _ = signals::interruptible(async {
            context.close().await;
            Ok(())
        })
        .await;
        result
    });
    // A thread that waits for whoever reads standard output must not hold up the end; one that removes a temporary
    // file is given the time.
    runtime.shutdown_timeout(LAST_WORK);
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => error::report(&error, json, failure),
    }
}

/// Sends what the library logs to standard error: warnings, or what `AGENTISO_LOG` asks for (`debug`,
/// `agentiso_core::storage=trace`). With `--json` only on request, for standard error is then read by programs.
fn start_log(json: bool) {
    let quiet = if json { "off" } else { "warn" };
    let wanted = std::env::var("AGENTISO_LOG").unwrap_or_else(|_| quiet.to_owned());
    let filter = tracing_subscriber::EnvFilter::new(agentiso_mcp::log_directives(&wanted));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}
