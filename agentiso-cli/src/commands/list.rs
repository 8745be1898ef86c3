//! `ls` and `info`.

use agentiso_core::{WorkspaceInfo, WorkspaceState, WorkspaceSummary};
use clap::Args;

use crate::{
    context::Context,
    error::CliError,
    output::{self, fields, table},
};

/// List the workspaces
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Only those in this state: creating, starting, running, paused, stopping, stopped, destroying
    #[arg(long, value_name = "STATE", value_parser = state)]
    state: Option<WorkspaceState>,

    /// Print the names only
    #[arg(short, long)]
    quiet: bool,
}

/// Show everything about a workspace
#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// The workspace
    #[arg(value_name = "WORKSPACE")]
    workspace: String,
}

/// Reads a state as it is printed.
fn state(word: &str) -> Result<WorkspaceState, String> {
    serde_json::from_value(serde_json::Value::String(word.to_owned())).map_err(|_| {
        "not one of creating, starting, running, paused, stopping, stopped, destroying".to_owned()
    })
}

pub(crate) async fn ls(args: LsArgs, context: &Context) -> Result<u8, CliError> {
    let mut workspaces = context.host().await?.list().await?;
    workspaces.retain(|workspace| args.state.is_none_or(|state| state == workspace.state));
    context.output.print(&workspaces, |workspaces| {
        if args.quiet {
            workspaces.iter().map(|workspace| format!("{}\n", workspace.name)).collect()
        } else {
            listing(workspaces)
        }
    })?;
    Ok(0)
}

pub(crate) async fn info(args: InfoArgs, context: &Context) -> Result<u8, CliError> {
    let info = context.workspace(&args.workspace).await?.info().await?;
    context.output.print(&info, description)?;
    Ok(0)
}

fn listing(workspaces: &[WorkspaceSummary]) -> String {
    let rows: Vec<Vec<String>> = workspaces
        .iter()
        .map(|workspace| {
            vec![
                workspace.name.clone(),
                workspace.workspace_id.to_string().chars().take(8).collect(),
                state_text(workspace),
                workspace.image.clone(),
                workspace.resources.vcpus.to_string(),
                format!("{} MiB", workspace.resources.memory_mb),
                format!("{} GiB", workspace.resources.disk_gb),
                output::age(workspace.created_at),
                workspace.owner.to_string(),
            ]
        })
        .collect();
    table(&["NAME", "ID", "STATE", "IMAGE", "CPUS", "MEMORY", "DISK", "AGE", "OWNER"], &rows)
}

fn state_text(workspace: &WorkspaceSummary) -> String {
    if workspace.crashed { format!("{} (crashed)", workspace.state) } else { workspace.state.to_string() }
}

fn memory_text(info: &WorkspaceInfo) -> Option<String> {
    let (unique, shared) = (info.memory_unique_bytes?, info.memory_shared_bytes?);
    Some(format!("{} of its own, {} shared", output::bytes(unique), output::bytes(shared)))
}

fn description(info: &WorkspaceInfo) -> String {
    let summary = &info.summary;
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "none".to_owned());
    let lines = |lines: Vec<String>| if lines.is_empty() { "none".to_owned() } else { lines.join("\n") };
    fields(&[
        ("name", summary.name.clone()),
        ("id", summary.workspace_id.to_string()),
        ("state", state_text(summary)),
        ("image", summary.image.clone()),
        ("created", output::utc(summary.created_at)),
        ("owner", summary.owner.to_string()),
        ("throwaway", output::yes_no(summary.throwaway)),
        (
            "resources",
            format!(
                "{} vCPUs, {} MiB memory, {} GiB disk",
                summary.resources.vcpus, summary.resources.memory_mb, summary.resources.disk_gb
            ),
        ),
        (
            "disk used",
            format!(
                "{} of its own, {} shared",
                output::bytes(info.disk_used_bytes),
                output::bytes(info.disk_shared_bytes)
            ),
        ),
        ("memory used", or_none(memory_text(info))),
        ("process", or_none(info.pid.map(|pid| pid.to_string()))),
        ("boot time", or_none(info.boot_time_ms.map(|ms| format!("{ms} ms")))),
        ("address", or_none(summary.ip.clone())),
        ("internet", super::policy::internet_text(&info.network)),
        (
            "other workspaces",
            if info.network.allow_inter_vm { "reachable" } else { "not reachable" }.to_owned(),
        ),
        ("ports", lines(info.port_forwards.iter().map(super::port::text).collect())),
        (
            "snapshots",
            lines(
                info.snapshots
                    .iter()
                    .map(|snapshot| {
                        format!(
                            "{} ({}, {})",
                            snapshot.name,
                            output::utc(snapshot.created_at),
                            output::bytes(snapshot.size_bytes)
                        )
                    })
                    .collect(),
            ),
        ),
        (
            "forked from",
            or_none(info.forked_from.as_ref().map(|origin| match &origin.snapshot {
                Some(snapshot) => format!("{} at {snapshot}", origin.name),
                None => origin.name.clone(),
            })),
        ),
        ("isolation", format!("{} ({})", info.isolation.level, info.isolation.hypervisor)),
        ("storage", info.isolation.storage.clone()),
        ("network", info.isolation.network.clone()),
        ("channel", info.isolation.channel.clone()),
        ("confinement", lines(info.isolation.confinement.clone())),
        ("left open", lines(info.isolation.open.clone())),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_read_as_they_are_printed() {
        for expected in [WorkspaceState::Creating, WorkspaceState::Running, WorkspaceState::Stopped] {
            assert_eq!(state(&expected.to_string()), Ok(expected));
        }
        assert!(state("RUNNING").is_err());
    }
}
