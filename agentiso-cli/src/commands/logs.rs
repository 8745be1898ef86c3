//! `logs`.

use std::io::IsTerminal;

use agentiso_core::{hypervisor::MachineLog, types::WorkspaceId};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{context::Context, error::CliError, output, stdio};

/// Show what the machine of a workspace, and the hypervisor that runs it, have printed
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The workspace
    #[arg(value_name = "WORKSPACE")]
    workspace: String,

    /// Which log
    #[arg(long = "type", value_name = "LOG", value_enum, default_value_t = Log::Console)]
    log: Log,

    /// Only this many lines from the end
    #[arg(short = 'n', long, value_name = "N")]
    lines: Option<usize>,
}

/// Which log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Log {
    /// What the guest's kernel and agent print
    Console,
    /// What the hypervisor prints
    Stderr,
    /// Both, one after the other
    All,
}

/// Most bytes read of one log: both are kept smaller than that.
const MAX_LOG_BYTES: u64 = 1024 * 1024;

#[derive(Debug, Serialize)]
struct Logs {
    workspace_id: WorkspaceId,
    #[serde(skip_serializing_if = "Option::is_none")]
    console: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr: Option<String>,
}

pub(crate) async fn logs(args: LogsArgs, context: &Context) -> Result<u8, CliError> {
    let workspace = context.workspace(&args.workspace).await?;
    let mut console = None;
    let mut stderr = None;
    if matches!(args.log, Log::Console | Log::All) {
        console = Some(workspace.logs(MachineLog::Console, MAX_LOG_BYTES).await?);
    }
    if matches!(args.log, Log::Stderr | Log::All) {
        stderr = Some(workspace.logs(MachineLog::Stderr, MAX_LOG_BYTES).await?);
    }
    let logs = [console, stderr].map(|log| log.map(|log| last_lines(&log, args.lines).to_vec()));
    if context.output.json {
        let [console, stderr] = logs.map(|log| log.map(|log| String::from_utf8_lossy(&log).into_owned()));
        context.output.print_json_only(&Logs { workspace_id: workspace.id(), console, stderr })?;
        return Ok(0);
    }
    // A guest writes what it likes: on a terminal that could be commands to it.
    let on_terminal = std::io::stdout().is_terminal();
    for log in logs.into_iter().flatten() {
        let result = if on_terminal {
            stdio::write_out(output::printable(&log).as_bytes())
        } else {
            stdio::write_out(&log)
        };
        result.map_err(CliError::stdout)?;
    }
    Ok(0)
}

fn last_lines(log: &[u8], lines: Option<usize>) -> &[u8] {
    let Some(lines) = lines else { return log };
    if lines == 0 {
        return &[];
    }
    let body = log.strip_suffix(b"\n").unwrap_or(log);
    let breaks = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
    match breaks.map(|(index, _)| index).nth(lines - 1) {
        Some(index) => &log[index + 1..],
        None => log,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_counts_from_the_end() {
        for (log, lines, expected) in [
            ("a\nb\nc\n", None, "a\nb\nc\n"),
            ("a\nb\nc\n", Some(2), "b\nc\n"),
            ("a\nb\nc", Some(1), "c"),
            ("a\nb\nc\n", Some(3), "a\nb\nc\n"),
            ("a\n", Some(9), "a\n"),
            ("a\n", Some(0), ""),
            ("", Some(1), ""),
        ] {
            assert_eq!(last_lines(log.as_bytes(), lines), expected.as_bytes(), "{log:?} {lines:?}");
        }
    }
}
