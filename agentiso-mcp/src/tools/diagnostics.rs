//! What a machine has printed.

use agentiso_core::{Workspace, hypervisor::MachineLog};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Call, Class, Effect, Group, Tool, params::bounded, text::last_lines};
use crate::failure::Failure;

/// Most bytes read of one log: both are kept smaller than that.
const MAX_LOG_BYTES: u64 = 1024 * 1024;

/// Lines unless the call says otherwise.
const DEFAULT_LINES: u64 = 100;

/// Most lines.
const MAX_LINES: u64 = 100_000;

pub(crate) struct Logs;

/// Which log.
#[derive(Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum LogType {
    #[default]
    All,
    Console,
    Stderr,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogsParams {
    /// The workspace: its UUID, 8 or more of the UUID's first digits, or its name.
    workspace_id: String,
    /// "console" is what the guest's kernel and agent print, "stderr" what the hypervisor prints, "all" is both; "all"
    /// unless given.
    log_type: Option<LogType>,
    /// How many lines from the end of each; 100 unless given.
    #[schemars(range(min = 0, max = 100_000))]
    max_lines: Option<u64>,
}

impl Tool for Logs {
    type Params = LogsParams;
    const NAME: &'static str = "workspace_logs";
    const TITLE: &'static str = "Read a machine's logs";
    const GROUP: Group = Group::Diagnostics;
    const CLASS: Class = Class::Other;
    const EFFECT: Effect = Effect::Reads;
    const DESCRIPTION: &'static str = "The newest lines that a workspace's machine has printed, running or not: console \
        (kernel and agent) and stderr (hypervisor). For finding out why a machine does not start or was lost. What \
        commands print is returned by exec.";
    const EXAMPLES: &'static [&'static str] =
        &[r#"{"workspace_id":"build"}"#, r#"{"workspace_id":"build","log_type":"console","max_lines":20}"#];

    async fn call(call: &Call<'_>, params: LogsParams) -> Result<Value, Failure> {
        let lines = bounded("max_lines", params.max_lines.unwrap_or(DEFAULT_LINES), 0, MAX_LINES)?;
        let lines = usize::try_from(lines).unwrap_or(usize::MAX);
        let workspace = call.caller.workspace(&params.workspace_id).await?;
        let mut result = json!({ "workspace_id": workspace.id() });
        let wanted = params.log_type.unwrap_or_default();
        for (log, kind, key) in [
            (MachineLog::Console, LogType::Console, "console"),
            (MachineLog::Stderr, LogType::Stderr, "stderr"),
        ] {
            if wanted == kind || wanted == LogType::All {
                result[key] = last_lines(&read(&workspace, log).await?, lines).into();
            }
        }
        Ok(result)
    }
}

/// A log as text. The guest writes what it likes: bytes that are no text become U+FFFD.
pub(crate) async fn read(workspace: &Workspace, log: MachineLog) -> Result<String, Failure> {
    let bytes = workspace.logs(log, MAX_LOG_BYTES).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
