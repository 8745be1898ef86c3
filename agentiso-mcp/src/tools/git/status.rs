use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{MAX_ANSWER_BYTES, Repository, Request, status_format, workspace};
use crate::{
    failure::Failure,
    tools::{Call, Class, Effect, Group, Tool},
};

/// Most paths of one list in an answer.
const MAX_PATHS: usize = 5000;

pub(crate) struct Status;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StatusParams {
    /// The workspace: its UUID, 8 or more of the UUID's first digits, or its name.
    workspace_id: String,
    /// The repository's folder, an absolute path; /workspace unless given.
    path: Option<String>,
}

impl Tool for Status {
    type Params = StatusParams;
    const NAME: &'static str = "git_status";
    const TITLE: &'static str = "Show a repository's status";
    const GROUP: Group = Group::Git;
    const CLASS: Class = Class::Exec;
    const EFFECT: Effect = Effect::Reads;
    const DESCRIPTION: &'static str = "The state of a git repository in a workspace: branch (null when detached), ahead and \
        behind (null without an upstream), the paths staged, modified, untracked and conflicted, renames [{from, to}], \
        and dirty. At most 5000 paths in a list; truncated says so.";
    const EXAMPLES: &'static [&'static str] = &[r#"{"workspace_id":"build","path":"/workspace"}"#];

    async fn call(call: &Call<'_>, params: StatusParams) -> Result<Value, Failure> {
        let workspace = workspace(call, &params.workspace_id).await?;
        let repository = Repository::new(&workspace, params.path)?;
        let arguments = ["status", "--porcelain=v2", "--branch", "--untracked-files=normal", "-z"];
        let request = Request { env: &[("GIT_OPTIONAL_LOCKS", "0")], ..Request::new(&arguments) };
        let output = repository.ask("look at", request).await?;
        let is_whole = output.stdout_bytes <= MAX_ANSWER_BYTES as u64;
        let bytes = &output.stdout[..output.stdout.len().min(MAX_ANSWER_BYTES)];
        let mut status = status_format::parse(bytes, is_whole).map_err(|malformed| {
            Failure::internal(format!(
                "git in workspace {} answered what its manual does not know: {:?}",
                workspace.name(),
                malformed.entry
            ))
        })?;
        let mut truncated = !is_whole;
        for list in [&mut status.staged, &mut status.modified, &mut status.untracked, &mut status.conflicted]
        {
            truncated |= list.len() > MAX_PATHS;
            list.truncate(MAX_PATHS);
        }
        truncated |= status.renames.len() > MAX_PATHS;
        status.renames.truncate(MAX_PATHS);
        let mut result = json!(status);
        result["truncated"] = truncated.into();
        Ok(result)
    }
}
