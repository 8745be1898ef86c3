//! Running a command to its end.

use agentiso_core::{
    Workspace,
    channel::client::{CollectOptions, DEFAULT_EXEC_TIMEOUT, ExecEvent, ExecOutput, ExecSpec},
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Call, Class, Effect, Group, Tool,
    params::{Variables, output_limit, shell, timeout},
};
use crate::failure::Failure;

pub(crate) struct Exec;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExecParams {
    /// The workspace: its UUID, 8 or more of the UUID's first digits, or its name.
    workspace_id: String,
    /// What /bin/sh -c runs, as root.
    command: String,
    /// Seconds after which the command and all its children are killed; 120 unless given.
    #[schemars(range(min = 1, max = 86_400))]
    timeout_secs: Option<u64>,
    /// The folder to run it in, an absolute path; /root unless given.
    workdir: Option<String>,
    /// Environment variables for this command alone. At most 256, each at most 32 KiB.
    env: Option<Variables>,
    /// How much of each stream to return, in bytes; 262144 unless given. What is longer ends with
    /// "[TRUNCATED: N bytes total, showing first M bytes]".
    #[schemars(range(min = 0, max = 16_777_216))]
    max_output_bytes: Option<u64>,
}

impl Tool for Exec {
    type Params = ExecParams;
    const NAME: &'static str = "exec";
    const TITLE: &'static str = "Run a command";
    const GROUP: Group = Group::Exec;
    const CLASS: Class = Class::Exec;
    const EFFECT: Effect = Effect::Changes;
    const DESCRIPTION: &'static str = "Runs a command as root in a workspace (/bin/sh -c) and returns exit_code, stdout \
        and stderr. A command that fails is no error of the tool. exit_code is 128+n after signal n, and 124 when the \
        time was over; stdout and stderr then hold what was printed until then. With a progress token, output is sent \
        while it is printed. Use exec_background for servers and for what takes longer than minutes.";
    const EXAMPLES: &'static [&'static str] = &[
        r#"{"workspace_id":"build","command":"uname -a"}"#,
        r#"{"workspace_id":"build","command":"make -j4 test","workdir":"/workspace","timeout_secs":600,"env":{"CI":"1"}}"#,
    ];

    async fn call(call: &Call<'_>, params: ExecParams) -> Result<Value, Failure> {
        let limit = timeout(params.timeout_secs, DEFAULT_EXEC_TIMEOUT)?;
        let max_output_bytes = output_limit(params.max_output_bytes)?;
        let spec = shell(&params.command, params.workdir, params.env)?.timeout(limit);
        let workspace = call.caller.workspace(&params.workspace_id).await?;
        call.progress.stage("the command runs");
        let options = CollectOptions { max_output_bytes, ..CollectOptions::default() };
        let output = run(call, &workspace, spec, options).await?;
        Ok(json!({
            "exit_code": output.exit_code(),
            "stdout": output.stdout_text(),
            "stderr": output.stderr_text(),
        }))
    }
}

/// Runs a command, with its output told as progress.
pub(super) async fn run(
    call: &Call<'_>,
    workspace: &Workspace,
    spec: ExecSpec,
    options: CollectOptions,
) -> Result<ExecOutput, Failure> {
    let guest = workspace.guest().await?;
    let ran = guest
        .exec_observed(spec, options, |event| match event {
            ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) => call.progress.output(bytes),
            ExecEvent::Started { .. } | ExecEvent::Exited(_) => {}
        })
        .await;
    call.service.metrics.executed(ran.as_ref().ok().map(|output| output.exit));
    ran.map_err(|error| Failure::guest(workspace, &error))
}
