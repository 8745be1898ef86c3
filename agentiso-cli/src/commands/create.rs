//! `create`.

use agentiso_core::{
    WorkspaceInfo, WorkspaceState,
    types::{Resources, WorkspaceId, WorkspaceName},
};
use clap::Args;
use serde::Serialize;

use super::args::MachineArgs;
use crate::{context::Context, error::CliError};

/// Create a workspace and start its machine; prints the workspace's name
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Name of the workspace: 1-128 of the characters A-Z a-z 0-9 . _ -; one is made up if none is given
    #[arg(value_name = "NAME")]
    name: Option<WorkspaceName>,

    #[command(flatten)]
    machine: MachineArgs,
}

/// What was created, with the keys of the tool workspace_create.
#[derive(Debug, Serialize)]
struct Created {
    workspace_id: WorkspaceId,
    name: String,
    state: WorkspaceState,
    ip: Option<String>,
    boot_time_ms: Option<u64>,
    /// Whether a machine that stood ready was taken; there are none yet.
    from_pool: bool,
    resources: Resources,
}

impl From<WorkspaceInfo> for Created {
    fn from(info: WorkspaceInfo) -> Self {
        Self {
            workspace_id: info.summary.workspace_id,
            name: info.summary.name,
            state: info.summary.state,
            ip: info.summary.ip,
            boot_time_ms: info.boot_time_ms,
            // A pool belongs to a process that lives longer than this one.
            from_pool: false,
            resources: info.summary.resources,
        }
    }
}

pub(crate) async fn create(args: CreateArgs, context: &Context) -> Result<u8, CliError> {
    let spec = args.machine.spec(args.name)?;
    let host = context.host().await?;
    let progress = context.progress(format!("starting a machine from {}", spec.image));
    let workspace = host.create(spec).await?;
    let info = workspace.info().await?;
    drop(progress);
    context.output.print(&Created::from(info), |created| format!("{}\n", created.name))?;
    Ok(0)
}
