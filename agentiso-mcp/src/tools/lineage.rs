//! Workspaces from workspaces: forks, their tree, what differs, and which of them goes on.

use agentiso_core::{
    Change, DiffSpec, EngineError, ForkSpec, PromoteSpec, channel::client::RawPath, types::SnapshotName,
    types::WorkspaceName,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Call, Class, Effect, Group, Tool,
    params::{absolute, bounded},
};
use crate::failure::Failure;

/// Forks are named so unless the call says otherwise.
const DEFAULT_PREFIX: &str = "worker";

/// Differences in one answer unless the call says otherwise.
const DEFAULT_DIFFERENCES: u64 = 1000;

/// Most differences in one answer.
const MAX_DIFFERENCES: u64 = 20_000;

pub(crate) struct Fork;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ForkParams {
    /// The workspace: its UUID, 8 or more of the UUID's first digits, or its name.
    workspace_id: String,
    /// The snapshot to begin from; the workspace as it is now unless given.
    snapshot_name: Option<String>,
    /// The name of the fork, if there is to be one.
    new_name: Option<String>,
    /// How many forks; 1 unless given.
    #[schemars(range(min = 1, max = 20))]
    count: Option<u64>,
    /// Forks are named PREFIX-1, PREFIX-2, ..., or with the next free numbers; "worker" unless given.
    name_prefix: Option<String>,
}

impl Tool for Fork {
    type Params = ForkParams;
    const NAME: &'static str = "workspace_fork";
    const TITLE: &'static str = "Fork a workspace";
    const GROUP: Group = Group::Workspace;
    const CLASS: Class = Class::Create;
    const EFFECT: Effect = Effect::Adds;
    const DESCRIPTION: &'static str = "Makes running copies of a workspace, disk, memory and processes, while it goes on \
        after standing still for some milliseconds. A stopped one, and a snapshot without memory, gives copies that boot. \
        Each copy has a host name and an address of its own, no port forwards, and belongs to this session. Returns \
        success_count, failure_count, workers [{workspace_id, name, state}], failures [{name, error}], forked_from. It \
        costs as much of the rate limit as one workspace_create; the quota must hold for all copies.";
    const EXAMPLES: &'static [&'static str] = &[
        r#"{"workspace_id":"build","count":4}"#,
        r#"{"workspace_id":"build","snapshot_name":"before-upgrade","new_name":"try-two"}"#,
    ];

    async fn call(call: &Call<'_>, params: ForkParams) -> Result<Value, Failure> {
        let count = u32::try_from(bounded("count", params.count.unwrap_or(1), 1, 20)?).unwrap_or(u32::MAX);
        let name = |name: Option<String>| name.map(WorkspaceName::new).transpose().map_err(EngineError::from);
        let new_name = name(params.new_name)?;
        let prefix = name(Some(params.name_prefix.unwrap_or_else(|| DEFAULT_PREFIX.to_owned())))?;
        let snapshot = params.snapshot_name.map(SnapshotName::new).transpose().map_err(EngineError::from)?;
        if new_name.is_some() && count > 1 {
            return Err(Failure::parameter(
                format!("new_name was given for {count} forks"),
                "give name_prefix instead, or leave count out",
            ));
        }
        call.progress.stage("forking the machine");
        let spec = ForkSpec { snapshot, disk_only: false, count, name: new_name, prefix };
        let mut report = call.caller.fork(&params.workspace_id, spec).await?;
        for failure in &mut report.failures {
            failure.error = call.service.without_paths(&failure.error);
        }
        call.service.metrics.forked(&report);
        Ok(json!(report))
    }
}

pub(crate) struct Tree;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TreeParams {
    /// Only this workspace and what was forked from it: its UUID, 8 or more of the UUID's first digits, or its name.
    workspace_id: Option<String>,
}

impl Tool for Tree {
    type Params = TreeParams;
    const NAME: &'static str = "workspace_tree";
    const TITLE: &'static str = "Show the tree of forks";
    const GROUP: Group = Group::Workspace;
    const CLASS: Class = Class::Other;
    const EFFECT: Effect = Effect::Reads;
    const DESCRIPTION: &'static str = "Which workspaces were forked from which, with the memory and the disk that are each \
        one's own. Returns {\"trees\": [{workspace_id, name, state, gone, memory_unique_bytes, disk_used_bytes, ..., \
        forks: [...]}]}. A parent that was destroyed, or belongs to somebody else, is shown with gone: true.";
    const EXAMPLES: &'static [&'static str] = &["{}", r#"{"workspace_id":"build"}"#];

    async fn call(call: &Call<'_>, params: TreeParams) -> Result<Value, Failure> {
        Ok(json!({ "trees": call.caller.tree(params.workspace_id.as_deref()).await? }))
    }
}

pub(crate) struct Diff;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiffParams {
    /// What is compared with: WORKSPACE, or WORKSPACE@SNAPSHOT.
    a: String,
    /// What is compared: WORKSPACE, or WORKSPACE@SNAPSHOT. A file that is only here was added.
    b: String,
    /// A file, or a folder with all below it; an absolute path, "/" unless given.
    path: Option<String>,
    /// How many differences to return; 1000 unless given. All are counted.
    #[schemars(range(min = 0, max = 20_000))]
    max_differences: Option<u64>,
}

impl Tool for Diff {
    type Params = DiffParams;
    const NAME: &'static str = "workspace_diff";
    const TITLE: &'static str = "Compare the files of two workspaces";
    const GROUP: Group = Group::Workspace;
    const CLASS: Class = Class::Other;
    const EFFECT: Effect = Effect::Reads;
    const DESCRIPTION: &'static str = "Compares the files of two workspaces, or of snapshots of them: what did this fork \
        change? Returns a, b, differences [{change: added|modified|deleted|not_compared, path, what, old, new}] in the \
        order of their paths, added, modified, deleted, not_compared (counts) and truncated. Of the root file system \
        alone. A stopped workspace, or a snapshot, is read by a helper machine, which takes as long as a fork.";
    const EXAMPLES: &'static [&'static str] = &[
        r#"{"a":"build","b":"worker-1","path":"/workspace"}"#,
        r#"{"a":"build@before-upgrade","b":"build","path":"/etc"}"#,
    ];

    async fn call(call: &Call<'_>, params: DiffParams) -> Result<Value, Failure> {
        let path = params.path.unwrap_or_else(|| "/".to_owned());
        absolute("path", &path)?;
        let max = bounded(
            "max_differences",
            params.max_differences.unwrap_or(DEFAULT_DIFFERENCES),
            0,
            MAX_DIFFERENCES,
        )?;
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let spec = DiffSpec {
            from: params.a.parse().map_err(EngineError::from)?,
            to: params.b.parse().map_err(EngineError::from)?,
            path: RawPath::new(path.into_bytes()),
        };
        call.progress.stage("comparing the files");
        let mut found = call.caller.diff(spec).await?;
        let mut differences = Vec::new();
        let (mut added, mut modified, mut deleted, mut not_compared) = (0_u64, 0_u64, 0_u64, 0_u64);
        while let Some(difference) = found.next().await? {
            match difference.change {
                Change::Added => added += 1,
                Change::Modified => modified += 1,
                Change::Deleted => deleted += 1,
                Change::NotCompared => not_compared += 1,
            }
            if differences.len() < max {
                differences.push(difference);
            }
        }
        let total = added + modified + deleted + not_compared;
        Ok(json!({
            "a": params.a,
            "b": params.b,
            "truncated": total > differences.len() as u64,
            "differences": differences,
            "added": added,
            "modified": modified,
            "deleted": deleted,
            "not_compared": not_compared,
        }))
    }
}

pub(crate) struct Promote;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PromoteParams {
    /// The fork: its UUID, 8 or more of the UUID's first digits, or its name.
    workspace_id: String,
    /// Destroy the old parent and its other forks, instead of keeping the parent stopped as NAME-old; false unless given.
    drop_others: Option<bool>,
}

impl Tool for Promote {
    type Params = PromoteParams;
    const NAME: &'static str = "workspace_promote";
    const TITLE: &'static str = "Let a fork take its parent's place";
    const GROUP: Group = Group::Workspace;
    const CLASS: Class = Class::Other;
    const EFFECT: Effect = Effect::Changes;
    const DESCRIPTION: &'static str = "Gives a fork the name and the port forwards of the workspace it was forked from: the \
        attempt that won goes on as the original. The old parent is stopped and kept as NAME-old, or, with drop_others, \
        destroyed together with its other forks. Returns promoted, old_name, parent, dropped, failures, port_forwards, \
        warnings.";
    const EXAMPLES: &'static [&'static str] = &[r#"{"workspace_id":"worker-3"}"#];

    async fn call(call: &Call<'_>, params: PromoteParams) -> Result<Value, Failure> {
        call.progress.stage("exchanging the names");
        let spec = PromoteSpec { drop_others: params.drop_others.unwrap_or_default() };
        let mut report = call.caller.promote(&params.workspace_id, spec).await?;
        let texts = report.failures.iter_mut().map(|failure| &mut failure.error).chain(&mut report.warnings);
        for text in texts {
            *text = call.service.without_paths(text);
        }
        Ok(json!(report))
    }
}
