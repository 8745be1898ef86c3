use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Repository, Request, workspace};
use crate::{
    failure::Failure,
    tools::{
        Call, Class, Effect, Group, Tool,
        params::{MAX_OUTPUT_BYTES, bounded},
        text::whole_characters,
    },
};

/// Bytes of a diff that are returned unless the call says otherwise.
const DEFAULT_MAX_BYTES: u64 = 64 * 1024;

pub(crate) struct Diff;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiffParams {
    /// The workspace: its UUID, 8 or more of the UUID's first digits, or its name.
    workspace_id: String,
    /// The repository's folder, an absolute path; /workspace unless given.
    path: Option<String>,
    /// What is staged against the last commit, instead of the working tree against the index; false unless given.
    staged: Option<bool>,
    /// Only how much of each file is changed; false unless given.
    stat: Option<bool>,
    /// Only this file or folder, relative to the repository's folder.
    file_path: Option<String>,
    /// How much of the diff to return, in bytes; 65536 unless given.
    #[schemars(range(min = 1, max = 16_777_216))]
    max_bytes: Option<u64>,
}

impl Tool for Diff {
    type Params = DiffParams;
    const NAME: &'static str = "git_diff";
    const TITLE: &'static str = "Show changes";
    const GROUP: Group = Group::Git;
    const CLASS: Class = Class::Exec;
    const EFFECT: Effect = Effect::Reads;
    const DESCRIPTION: &'static str = "The changes in a git repository of a workspace that are not committed. Returns diff, \
        total_bytes and truncated; a diff that is cut is cut between two characters. Files that git does not know are \
        not in it: git_status lists them.";
    const EXAMPLES: &'static [&'static str] = &[
        r#"{"workspace_id":"build","stat":true}"#,
        r#"{"workspace_id":"build","staged":true,"file_path":"src/main.rs"}"#,
    ];

    async fn call(call: &Call<'_>, params: DiffParams) -> Result<Value, Failure> {
        let max = bounded("max_bytes", params.max_bytes.unwrap_or(DEFAULT_MAX_BYTES), 1, MAX_OUTPUT_BYTES)?;
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        if params.file_path.as_ref().is_some_and(|path| path.is_empty() || path.contains('\0')) {
            return Err(Failure::parameter(
                "file_path is empty or has a NUL character",
                "name a file, or leave it out",
            ));
        }
        let workspace = workspace(call, &params.workspace_id).await?;
        let repository = Repository::new(&workspace, params.path)?;
        let mut arguments = vec!["diff", "--no-color", "--no-ext-diff"];
        if params.staged.unwrap_or_default() {
            arguments.push("--cached");
        }
        if params.stat.unwrap_or_default() {
            arguments.push("--stat");
        }
        arguments.push("--");
        arguments.extend(params.file_path.as_deref());
        let request = Request { max_output_bytes: max, ..Request::new(&arguments) };
        let output = repository.ask("compare", request).await?;
        let truncated = output.stdout_bytes > max as u64;
        let kept = if truncated { whole_characters(&output.stdout[..max]) } else { &output.stdout };
        Ok(json!({
            "diff": String::from_utf8_lossy(kept),
            "total_bytes": output.stdout_bytes,
            "truncated": truncated,
        }))
    }
}
