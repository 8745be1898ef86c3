//! `snapshot` and `restore`.

use agentiso_core::{RestoreReport, RestoreSpec, SnapshotInfo, SnapshotSpec, types::SnapshotName};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::{
    context::Context,
    error::CliError,
    output::{self, table},
};

/// Take, list, restore and remove snapshots
#[derive(Debug, Args)]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    command: SnapshotCommand,
}

#[derive(Debug, Subcommand)]
enum SnapshotCommand {
    /// Take a snapshot: disk, memory and processes of a running machine, which goes on, or the disk of a stopped one;
    /// prints its name
    Create {
        /// The workspace
        #[arg(value_name = "WORKSPACE")]
        workspace: String,
        /// Name of the snapshot
        #[arg(value_name = "NAME")]
        name: SnapshotName,
        /// Take it although the guest does not confirm that its file systems are flushed
        #[arg(long)]
        crash_consistent: bool,
        /// Keep the disk alone, not memory and processes
        #[arg(long)]
        disk_only: bool,
    },
    /// List the snapshots of a workspace, oldest first
    Ls {
        /// The workspace
        #[arg(value_name = "WORKSPACE")]
        workspace: String,
    },
    /// Put a workspace back to a snapshot
    Restore(RestoreArgs),
    /// Remove a snapshot
    Rm {
        /// The workspace
        #[arg(value_name = "WORKSPACE")]
        workspace: String,
        /// Name of the snapshot
        #[arg(value_name = "NAME")]
        name: SnapshotName,
    },
}

/// Put a workspace back to a snapshot: with memory it runs on from there, without it boots; newer snapshots are removed
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The workspace
    #[arg(value_name = "WORKSPACE")]
    workspace: String,

    /// Name of the snapshot
    #[arg(value_name = "SNAPSHOT")]
    snapshot: SnapshotName,

    /// Put back the disk alone, although the snapshot holds memory
    #[arg(long)]
    disk_only: bool,
}

pub(crate) async fn snapshot(args: SnapshotArgs, context: &Context) -> Result<u8, CliError> {
    match args.command {
        SnapshotCommand::Create { workspace, name, crash_consistent, disk_only } => {
            let workspace = context.workspace(&workspace).await?;
            let progress = context.progress(format!("taking a snapshot of {}", workspace.name()));
            let memory = disk_only.then_some(false);
            let taken = workspace.snapshot_with(SnapshotSpec { name, memory, crash_consistent }).await?;
            drop(progress);
            context.output.print(&taken, |taken| format!("{}\n", taken.name))?;
        }
        SnapshotCommand::Ls { workspace } => {
            let snapshots = context.workspace(&workspace).await?.snapshots().await?;
            context.output.print(&snapshots, |snapshots| listing(snapshots))?;
        }
        SnapshotCommand::Restore(args) => return restore(args, context).await,
        SnapshotCommand::Rm { workspace, name } => {
            let workspace = context.workspace(&workspace).await?;
            workspace.delete_snapshot(name.as_str()).await?;
            context.output.print_json_only(&json!({
                "workspace_id": workspace.id(),
                "name": workspace.name(),
                "deleted": name,
            }))?;
        }
    }
    Ok(0)
}

pub(crate) async fn restore(args: RestoreArgs, context: &Context) -> Result<u8, CliError> {
    let workspace = context.workspace(&args.workspace).await?;
    let progress = context.progress(format!("restoring {}", workspace.name()));
    let report =
        workspace.restore_with(RestoreSpec { name: args.snapshot, disk_only: args.disk_only }).await?;
    drop(progress);
    if let Some(line) = removed_text(&report) {
        context.output.say(&line);
    }
    context.output.print_json_only(&report)?;
    Ok(0)
}

fn removed_text(report: &RestoreReport) -> Option<String> {
    let newer = &report.removed_snapshots;
    (!newer.is_empty()).then(|| format!("removed the newer snapshots {}", newer.join(", ")))
}

fn listing(snapshots: &[SnapshotInfo]) -> String {
    let rows: Vec<Vec<String>> = snapshots
        .iter()
        .map(|snapshot| {
            vec![
                snapshot.name.clone(),
                output::utc(snapshot.created_at),
                output::bytes(snapshot.size_bytes),
                output::yes_no(snapshot.memory),
                output::yes_no(!snapshot.crash_consistent),
            ]
        })
        .collect();
    table(&["NAME", "CREATED", "SIZE", "MEMORY", "FLUSHED"], &rows)
}
