//! Commands that go on without a connection.

use agentiso_core::channel::client::{Exit, JobReport, exit_status};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Call, Class, Effect, Group, Tool,
    params::{Variables, bounded, needed, shell, unwanted},
};
use crate::failure::Failure;

/// SIGKILL.
const KILL: u64 = 9;

/// The highest signal number of Linux.
const MAX_SIGNAL: u64 = 64;

pub(crate) struct Background;

/// What to do with a job.
#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Action {
    Start,
    Poll,
    Kill,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct BackgroundParams {
    /// The workspace: its UUID, 8 or more of the UUID's first digits, or its name.
    workspace_id: String,
    /// "start" begins a job (command, workdir, env); "poll" tells how it is (job_id); "kill" signals it (job_id, signal).
    action: Action,
    /// start: what /bin/sh -c runs, as root.
    command: Option<String>,
    /// start: the folder to run it in, an absolute path.
    workdir: Option<String>,
    /// start: environment variables for this job alone.
    env: Option<Variables>,
    /// poll, kill: the job, as start returned it.
    job_id: Option<u64>,
    /// kill: the number of the signal that its process group gets; 9 (SIGKILL) unless given, 15 lets it clean up.
    #[schemars(range(min = 1, max = 64))]
    signal: Option<u64>,
}

impl Tool for Background {
    type Params = BackgroundParams;
    const NAME: &'static str = "exec_background";
    const TITLE: &'static str = "Run a command in the background";
    const GROUP: Group = Group::Exec;
    const CLASS: Class = Class::Exec;
    const EFFECT: Effect = Effect::Changes;
    const DESCRIPTION: &'static str = "Runs a command that goes on when the call has returned: servers, long builds. \
        start returns job_id. poll returns running, exit_code (null while it runs), and the newest 256 KiB of stdout and \
        stderr so far, with the number of bytes printed in all. kill sends a signal to the job's process group.";
    const EXAMPLES: &'static [&'static str] = &[
        r#"{"workspace_id":"build","action":"start","command":"python3 -m http.server 8000"}"#,
        r#"{"workspace_id":"build","action":"poll","job_id":1}"#,
        r#"{"workspace_id":"build","action":"kill","job_id":1,"signal":15}"#,
    ];

    async fn call(call: &Call<'_>, params: BackgroundParams) -> Result<Value, Failure> {
        match params.action {
            Action::Start => start(call, params).await,
            Action::Poll => poll(call, params).await,
            Action::Kill => kill(call, params).await,
        }
    }
}

async fn start(call: &Call<'_>, params: BackgroundParams) -> Result<Value, Failure> {
    unwanted(&params.job_id, "job_id", "start")?;
    unwanted(&params.signal, "signal", "start")?;
    let command = needed(params.command, "command", "start")?;
    let spec = shell(&command, params.workdir, params.env)?;
    let workspace = call.caller.workspace(&params.workspace_id).await?;
    let started = workspace.guest().await?.job_start(spec.command).await;
    let job = started.map_err(|error| Failure::guest(&workspace, &error))?;
    Ok(json!({ "workspace_id": workspace.id(), "job_id": job.id, "pid": job.pid }))
}

async fn poll(call: &Call<'_>, params: BackgroundParams) -> Result<Value, Failure> {
    expect_job_alone(&params, "poll")?;
    unwanted(&params.signal, "signal", "poll")?;
    let id = needed(params.job_id, "job_id", "poll")?;
    let workspace = call.caller.workspace(&params.workspace_id).await?;
    let polled = workspace.guest().await?.job_poll(id).await;
    let JobReport { job, stdout, stderr } = polled.map_err(|error| Failure::guest(&workspace, &error))?;
    Ok(json!({
        "workspace_id": workspace.id(),
        "job_id": job.id,
        "running": job.exit.is_none(),
        "exit_code": job.exit.map(exit_status),
        "signal": job.exit.and_then(signal_of),
        "stdout": String::from_utf8_lossy(&stdout),
        "stderr": String::from_utf8_lossy(&stderr),
        "stdout_bytes": job.stdout_bytes,
        "stderr_bytes": job.stderr_bytes,
    }))
}

fn signal_of(exit: Exit) -> Option<u8> {
    match exit {
        Exit::Signal(signal) => Some(signal),
        Exit::Code(_) | Exit::TimedOut => None,
    }
}

async fn kill(call: &Call<'_>, params: BackgroundParams) -> Result<Value, Failure> {
    expect_job_alone(&params, "kill")?;
    let id = needed(params.job_id, "job_id", "kill")?;
    let signal = bounded("signal", params.signal.unwrap_or(KILL), 1, MAX_SIGNAL)?;
    let number = u8::try_from(signal).unwrap_or(u8::MAX);
    let workspace = call.caller.workspace(&params.workspace_id).await?;
    let signalled = workspace.guest().await?.job_signal(id, number).await;
    signalled.map_err(|error| Failure::guest(&workspace, &error))?;
    Ok(json!({ "workspace_id": workspace.id(), "job_id": id, "signal": signal }))
}

fn expect_job_alone(params: &BackgroundParams, action: &str) -> Result<(), Failure> {
    unwanted(&params.command, "command", action)?;
    unwanted(&params.workdir, "workdir", action)?;
    unwanted(&params.env, "env", action)
}
