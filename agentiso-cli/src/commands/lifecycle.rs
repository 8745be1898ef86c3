//! `start`, `stop`, `pause`, `resume` and `rm`.

use agentiso_core::{Workspace, WorkspaceState, types::WorkspaceId};
use clap::Args;
use serde::Serialize;

use crate::{
    context::Context,
    error::{self, CliError},
};

/// Boot the machine of a stopped workspace
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// The workspace
    #[arg(value_name = "WORKSPACE")]
    workspace: String,
}

/// Shut the machine of a workspace down; its disk is kept
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// The workspace
    #[arg(value_name = "WORKSPACE")]
    workspace: String,
}

/// Stop the virtual CPUs of a running workspace; memory and connections stay
#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    /// The workspace
    #[arg(value_name = "WORKSPACE")]
    workspace: String,
}

/// Let a paused workspace run on
#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    /// The workspace
    #[arg(value_name = "WORKSPACE")]
    workspace: String,
}

/// Remove workspaces with their disks and snapshots
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Remove them although they run
    #[arg(short, long)]
    force: bool,

    /// The workspaces; all are tried, whichever fail
    #[arg(value_name = "WORKSPACE", required = true)]
    workspaces: Vec<String>,
}

/// What a workspace does now.
#[derive(Debug, Serialize)]
struct Changed {
    workspace_id: WorkspaceId,
    name: String,
    state: WorkspaceState,
}

/// What `rm` did.
#[derive(Debug, Default, Serialize)]
struct Removed {
    removed: Vec<RemovedWorkspace>,
    failures: Vec<Failure>,
}

#[derive(Debug, Serialize)]
struct RemovedWorkspace {
    workspace_id: WorkspaceId,
    name: String,
}

#[derive(Debug, Serialize)]
struct Failure {
    name: String,
    error: String,
}

pub(crate) async fn start(args: StartArgs, context: &Context) -> Result<u8, CliError> {
    let workspace = context.workspace(&args.workspace).await?;
    let progress = context.progress(format!("starting {}", workspace.name()));
    workspace.start().await?;
    drop(progress);
    report(&workspace, context).await
}

pub(crate) async fn stop(args: StopArgs, context: &Context) -> Result<u8, CliError> {
    let workspace = context.workspace(&args.workspace).await?;
    let progress = context.progress(format!("stopping {}", workspace.name()));
    workspace.stop().await?;
    drop(progress);
    report(&workspace, context).await
}

pub(crate) async fn pause(args: PauseArgs, context: &Context) -> Result<u8, CliError> {
    let workspace = context.workspace(&args.workspace).await?;
    workspace.pause().await?;
    report(&workspace, context).await
}

pub(crate) async fn resume(args: ResumeArgs, context: &Context) -> Result<u8, CliError> {
    let workspace = context.workspace(&args.workspace).await?;
    workspace.resume().await?;
    report(&workspace, context).await
}

async fn report(workspace: &Workspace, context: &Context) -> Result<u8, CliError> {
    let summary = workspace.info().await?.summary;
    context.output.print_json_only(&Changed {
        workspace_id: summary.workspace_id,
        name: summary.name,
        state: summary.state,
    })?;
    Ok(0)
}

pub(crate) async fn rm(args: RmArgs, context: &Context) -> Result<u8, CliError> {
    // One that cannot be opened fails for all of them alike.
    context.host().await?;
    let mut report = Removed::default();
    for given in &args.workspaces {
        let progress = context.progress(format!("removing {given}"));
        let result = remove(given, args.force, context).await;
        drop(progress);
        match result {
            Ok(removed) => report.removed.push(removed),
            Err(error) => {
                error::print(&error, context.output.json);
                report.failures.push(Failure { name: given.clone(), error: error::chain(&error) });
            }
        }
    }
    context.output.print_json_only(&report)?;
    match report.failures.len() {
        0 => Ok(0),
        failed => Err(CliError::Partly { failed, total: args.workspaces.len() }),
    }
}

async fn remove(given: &str, force: bool, context: &Context) -> Result<RemovedWorkspace, CliError> {
    let workspace = context.workspace(given).await?;
    if !force {
        let state = workspace.info().await?.summary.state;
        if state != WorkspaceState::Stopped {
            return Err(CliError::request(
                format!("workspace {} is {state}", workspace.name()),
                format!("stop it first, or remove it as it is: `agentiso rm -f {}`", workspace.name()),
            ));
        }
    }
    workspace.destroy().await?;
    Ok(RemovedWorkspace { workspace_id: workspace.id(), name: workspace.name().to_owned() })
}
