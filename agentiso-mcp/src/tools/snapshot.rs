//! Points in time to go back to.

use agentiso_core::{EngineError, SnapshotSpec, types::SnapshotName};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Call, Class, Effect, Group, Tool,
    params::{needed, unwanted},
};
use crate::failure::Failure;

pub(crate) struct Snapshot;

/// What to do.
#[derive(Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Action {
    Create,
    Restore,
    List,
    Delete,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SnapshotParams {
    /// The workspace: its UUID, 8 or more of the UUID's first digits, or its name.
    workspace_id: String,
    /// "create" (name, include_memory), "restore" (name), "list", or "delete" (name).
    action: Action,
    /// create, restore, delete: the snapshot's name, 1-128 of the characters A-Z a-z 0-9 . _ -
    #[schemars(length(min = 1, max = 128))]
    name: Option<String>,
    /// create: whether memory and processes are kept with the disk; true when the machine runs, unless given.
    include_memory: Option<bool>,
}

impl Tool for Snapshot {
    type Params = SnapshotParams;
    const NAME: &'static str = "snapshot";
    const TITLE: &'static str = "Snapshots of a workspace";
    const GROUP: Group = Group::Snapshot;
    const CLASS: Class = Class::Other;
    const EFFECT: Effect = Effect::Changes;
    const DESCRIPTION: &'static str = "Takes, restores, lists and deletes snapshots of a workspace, at most 20. create: a \
        running machine goes on; returns snapshot_id, name, created_at, memory, size_bytes. restore: puts disk, and \
        memory and processes if the snapshot holds them, back; snapshots that are newer are REMOVED and named in \
        removed_snapshots; a running machine is rebooted when the snapshot holds the disk alone. list: {\"snapshots\": \
        [...]}, oldest first. delete: refused, naming them, while workspaces depend on it.";
    const EXAMPLES: &'static [&'static str] = &[
        r#"{"workspace_id":"build","action":"create","name":"before-upgrade"}"#,
        r#"{"workspace_id":"build","action":"restore","name":"before-upgrade"}"#,
        r#"{"workspace_id":"build","action":"list"}"#,
    ];

    async fn call(call: &Call<'_>, params: SnapshotParams) -> Result<Value, Failure> {
        let SnapshotParams { workspace_id, action, name, include_memory } = params;
        let word = match action {
            Action::Create => "create",
            Action::Restore => "restore",
            Action::List => "list",
            Action::Delete => "delete",
        };
        if !matches!(action, Action::Create) {
            unwanted(&include_memory, "include_memory", word)?;
        }
        let name = match action {
            Action::List => {
                unwanted(&name, "name", word)?;
                None
            }
            _ => Some(SnapshotName::new(needed(name, "name", word)?).map_err(EngineError::from)?),
        };
        let workspace = call.caller.workspace(&workspace_id).await?;
        match (action, name) {
            (Action::Create, Some(name)) => {
                call.progress.stage("taking the snapshot");
                let spec = SnapshotSpec { memory: include_memory, ..SnapshotSpec::new(name) };
                Ok(json!(workspace.snapshot_with(spec).await?))
            }
            (Action::Restore, Some(name)) => {
                call.progress.stage("restoring the snapshot");
                Ok(json!(call.caller.concealed(workspace.restore(name.as_str()).await).await?))
            }
            (Action::Delete, Some(name)) => {
                call.progress.stage("deleting the snapshot");
                call.caller.concealed(workspace.delete_snapshot(name.as_str()).await).await?;
                Ok(json!({ "workspace_id": workspace.id(), "name": workspace.name(), "deleted": name }))
            }
            (_, _) => Ok(json!({ "snapshots": workspace.snapshots().await? })),
        }
    }
}
