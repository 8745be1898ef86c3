use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{MAX_WORDS_BYTES, Repository, Request, name, redact::Secrets, workspace};
use crate::{
    failure::Failure,
    tools::{Call, Class, Effect, Group, Tool, params::timeout},
};

/// How long a push may take unless the call says otherwise.
const DEFAULT_LIMIT: Duration = Duration::from_secs(120);

/// The remote unless the call names one.
const DEFAULT_REMOTE: &str = "origin";

pub(crate) struct Push;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PushParams {
    /// The workspace: its UUID, 8 or more of the UUID's first digits, or its name.
    workspace_id: String,
    /// The repository's folder, an absolute path; /workspace unless given.
    path: Option<String>,
    /// The remote's name, or a URL; "origin" unless given.
    remote: Option<String>,
    /// The branch to push; the one that is checked out unless given.
    branch: Option<String>,
    /// Replace the remote's branch even if commits of it are lost; false unless given.
    force: Option<bool>,
    /// Remember the remote's branch as the upstream; false unless given.
    set_upstream: Option<bool>,
    /// Seconds after which the push is given up; 120 unless given.
    #[schemars(range(min = 1, max = 86_400))]
    timeout_secs: Option<u64>,
}

impl Tool for Push {
    type Params = PushParams;
    const NAME: &'static str = "git_push";
    const TITLE: &'static str = "Push commits";
    const GROUP: Group = Group::Git;
    const CLASS: Class = Class::Exec;
    const EFFECT: Effect = Effect::Changes;
    const DESCRIPTION: &'static str = "Pushes a branch of a git repository in a workspace to a remote. Git uses the \
        credentials that the workspace has; it never asks. Returns pushed, remote, branch and output, with all \
        credentials replaced by ***.";
    const EXAMPLES: &'static [&'static str] =
        &[r#"{"workspace_id":"build","branch":"fix-parser","set_upstream":true}"#];

    async fn call(call: &Call<'_>, params: PushParams) -> Result<Value, Failure> {
        let limit = timeout(params.timeout_secs, DEFAULT_LIMIT)?;
        let remote = params.remote.unwrap_or_else(|| DEFAULT_REMOTE.to_owned());
        let secrets = Secrets::of_url(&remote);
        name("remote", &remote).map_err(|failure| failure.map_message(|message| secrets.redact(message)))?;
        if let Some(branch) = &params.branch {
            name("branch", branch)?;
        }
        let workspace = workspace(call, &params.workspace_id).await?;
        let mut repository = Repository::new(&workspace, params.path)?;
        repository.secrets = secrets;
        let branch = match params.branch {
            Some(branch) => branch,
            None => current(&repository).await?,
        };
        let mut arguments = vec!["push", "--porcelain"];
        if params.force.unwrap_or_default() {
            arguments.push("--force");
        }
        if params.set_upstream.unwrap_or_default() {
            arguments.push("--set-upstream");
        }
        arguments.extend(["--", &remote, &branch]);
        call.progress.stage("pushing");
        let request = Request { limit, max_output_bytes: MAX_WORDS_BYTES, ..Request::new(&arguments) };
        let output = repository.ask("push from", request).await?;
        Ok(json!({
            "pushed": true,
            "remote": repository.secrets.redact(&remote),
            "branch": branch,
            "output": repository.words(&[output.stdout.as_slice(), b"\n", &output.stderr].concat()),
        }))
    }
}

/// The branch that is checked out.
async fn current(repository: &Repository<'_>) -> Result<String, Failure> {
    if let Some(branch) = repository.branch().await? {
        return Ok(branch);
    }
    // Tells a folder that is no repository from a commit that is checked out.
    repository.ask("push from", Request::new(&["rev-parse", "--git-dir"])).await?;
    Err(Failure::request(
        format!(
            "no branch is checked out in {} of workspace {}",
            repository.path,
            repository.workspace.name()
        ),
        "say with branch what to push, as in \"HEAD:refs/heads/NAME\"",
    ))
}
