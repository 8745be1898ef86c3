//! Commands in several workspaces at once.

use std::time::Duration;

use agentiso_core::channel::client::{CollectOptions, Exit};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Call, Class, Effect, Group, Tool,
    exec::run,
    params::{shell, timeout},
};
use crate::failure::Failure;

/// Most workspaces of one call.
const MAX_WORKSPACES: usize = 20;

/// How long each command may take unless the call says otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);

pub(crate) struct Parallel;

/// One command for all, or one for each.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged)]
enum Commands {
    One(String),
    Each(Vec<String>),
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ParallelParams {
    /// The workspaces, 1 to 20: UUIDs, beginnings of UUIDs, or names.
    #[schemars(length(min = 1, max = 20))]
    workspace_ids: Vec<String>,
    /// One command for all of them, or an array with one command for each workspace in the same order.
    commands: Commands,
    /// Seconds after which each command is killed; 300 unless given.
    #[schemars(range(min = 1, max = 86_400))]
    timeout_secs: Option<u64>,
}

impl Tool for Parallel {
    type Params = ParallelParams;
    const NAME: &'static str = "exec_parallel";
    const TITLE: &'static str = "Run commands in several workspaces";
    const GROUP: Group = Group::Exec;
    const CLASS: Class = Class::Exec;
    const EFFECT: Effect = Effect::Changes;
    const DESCRIPTION: &'static str = "Runs a command in each of up to 20 workspaces at once (/bin/sh -c, as root). Returns \
        results, one for each workspace in the order given: {workspace_id, exit_code, stdout, stderr, timed_out} or \
        {workspace_id, error}; and summary {total, succeeded, failed, timed_out, elapsed_ms}. One that fails does not \
        stop the others. It costs as much of the rate limit as one exec.";
    const EXAMPLES: &'static [&'static str] = &[
        r#"{"workspace_ids":["worker-1","worker-2"],"commands":"cargo test"}"#,
        r#"{"workspace_ids":["worker-1","worker-2"],"commands":["./try a","./try b"],"timeout_secs":600}"#,
    ];

    async fn call(call: &Call<'_>, params: ParallelParams) -> Result<Value, Failure> {
        let count = params.workspace_ids.len();
        if !(1..=MAX_WORKSPACES).contains(&count) {
            return Err(Failure::parameter(
                format!("workspace_ids has {count} entries: it can have 1 to {MAX_WORKSPACES}"),
                "name 1 to 20 workspaces, and call again for the others",
            ));
        }
        let commands = match params.commands {
            Commands::One(command) => vec![command; count],
            Commands::Each(commands) if commands.len() == count => commands,
            Commands::Each(commands) => {
                return Err(Failure::parameter(
                    format!("there are {} commands for {count} workspaces", commands.len()),
                    "give one string for all of them, or as many commands as workspaces",
                ));
            }
        };
        let limit = timeout(params.timeout_secs, DEFAULT_TIMEOUT)?;
        for command in &commands {
            shell(command, None, None)?;
        }
        let began = Instant::now();
        call.progress.stage("the commands run");
        let running = params
            .workspace_ids
            .iter()
            .zip(&commands)
            .map(|(given, command)| async move { one(call, given, command, limit).await });
        let done = join_all(running).await;
        let elapsed = began.elapsed();
        let of = |wanted: Ended| done.iter().filter(|(ended, _)| *ended == wanted).count();
        let summary = json!({
            "total": count,
            "succeeded": of(Ended::Succeeded),
            "failed": of(Ended::Failed),
            "timed_out": of(Ended::TimedOut),
            "elapsed_ms": u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
        });
        let results: Vec<Value> = done.into_iter().map(|(_, result)| result).collect();
        Ok(json!({ "results": results, "summary": summary }))
    }
}

/// How one of the commands ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Succeeded,
    Failed,
    TimedOut,
}

async fn one(call: &Call<'_>, given: &str, command: &str, limit: Duration) -> (Ended, Value) {
    let ran = async {
        let spec = shell(command, None, None)?.timeout(limit);
        let workspace = call.caller.workspace(given).await?;
        let output = run(call, &workspace, spec, CollectOptions::default()).await?;
        Ok::<_, Failure>((workspace.id(), output))
    };
    match ran.await {
        Ok((id, output)) => {
            let ended = match output.exit {
                Exit::Code(0) => Ended::Succeeded,
                Exit::TimedOut => Ended::TimedOut,
                Exit::Code(_) | Exit::Signal(_) => Ended::Failed,
            };
            let result = json!({
                "workspace_id": id,
                "exit_code": output.exit_code(),
                "stdout": output.stdout_text(),
                "stderr": output.stderr_text(),
                "timed_out": ended == Ended::TimedOut,
            });
            (ended, result)
        }
        Err(failure) => {
            let failure = failure.map_message(|message| call.service.without_paths(message));
            (Ended::Failed, json!({ "workspace_id": given, "error": failure }))
        }
    }
}

/// Awaits all of them at once, in this task: dropping it drops all.
async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut waiting: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut all = true;
        for (future, output) in &mut waiting {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(ready) => *output = Some(ready),
                    std::task::Poll::Pending => all = false,
                }
            }
        }
        if all { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    waiting.into_iter().filter_map(|(_, output)| output).collect()
}
