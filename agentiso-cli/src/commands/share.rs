//! `share`.

use agentiso_core::types::{Owner, WorkspaceId};
use clap::Args;
use serde::Serialize;

use crate::{context::Context, error::CliError};

/// Let sessions of the MCP server see and adopt a workspace of the operator's
///
/// It belongs to nobody then: any session can adopt it, and owns it afterwards. What was set for all its commands
/// (set_env) is removed at that moment; its disk, its snapshots and what runs in it go with it.
#[derive(Debug, Args)]
pub(crate) struct ShareArgs {
    /// Take it back instead, as long as no session has adopted it
    #[arg(long)]
    undo: bool,

    /// The workspace
    #[arg(value_name = "WORKSPACE")]
    workspace: String,
}

/// Whose a workspace is now.
#[derive(Debug, Serialize)]
struct Shared {
    workspace_id: WorkspaceId,
    name: String,
    owner: Owner,
}

pub(crate) async fn share(args: ShareArgs, context: &Context) -> Result<u8, CliError> {
    let host = context.host().await?;
    let (workspace, owner) = match args.undo {
        false => (host.share(&args.workspace).await?, Owner::Nobody),
        true => (host.unshare(&args.workspace).await?, Owner::Operator),
    };
    let shared = Shared { workspace_id: workspace.id(), name: workspace.name().to_owned(), owner };
    context.output.print_json_only(&shared)?;
    Ok(0)
}
