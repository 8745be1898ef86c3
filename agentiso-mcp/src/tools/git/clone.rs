use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{MAX_WORDS_BYTES, Repository, Request, name, redact::Secrets, workspace};
use crate::{
    failure::Failure,
    tools::{Call, Class, Effect, Group, Tool, params::bounded},
};

/// How long a clone may take.
const LIMIT: Duration = Duration::from_secs(900);

/// Longest URL, in bytes.
const MAX_URL_BYTES: usize = 4096;

pub(crate) struct Clone;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CloneParams {
    /// The workspace: its UUID, 8 or more of the UUID's first digits, or its name.
    workspace_id: String,
    /// The repository's URL. Credentials in it are never shown, but stay in the clone's configuration.
    url: String,
    /// The folder to clone into, an absolute path; /workspace unless given. It must not exist or be empty.
    path: Option<String>,
    /// The branch or tag to check out; the remote's own unless given.
    branch: Option<String>,
    /// Only so many commits of history; all unless given.
    #[schemars(range(min = 1, max = 2_147_483_647))]
    depth: Option<u64>,
}

impl Tool for Clone {
    type Params = CloneParams;
    const NAME: &'static str = "git_clone";
    const TITLE: &'static str = "Clone a repository";
    const GROUP: Group = Group::Git;
    const CLASS: Class = Class::Exec;
    const EFFECT: Effect = Effect::Adds;
    const DESCRIPTION: &'static str = "Clones a git repository into a workspace. Returns path and commit_sha (null for an \
        empty repository). The workspace needs internet access (network_policy) for a URL of the internet. Credentials \
        in URLs are replaced by *** in all that is returned. At most 15 minutes.";
    const EXAMPLES: &'static [&'static str] =
        &[r#"{"workspace_id":"build","url":"https://github.com/octocat/Hello-World.git","depth":1}"#];

    async fn call(call: &Call<'_>, params: CloneParams) -> Result<Value, Failure> {
        let CloneParams { workspace_id, url, path, branch, depth } = params;
        if url.len() > MAX_URL_BYTES {
            return Err(Failure::parameter("the URL is longer than 4096 bytes", "give a shorter one"));
        }
        // The URL may hold a secret: an error does not quote it.
        if name("url", &url).is_err() {
            return Err(Failure::parameter(
                "the URL is empty, begins with a dash or has control characters",
                "give the URL of a repository, as in https://host/path.git",
            ));
        }
        let branch = branch
            .map(|branch| name("branch", &branch).map(|()| format!("--branch={branch}")))
            .transpose()?;
        let depth =
            depth.map(|depth| bounded("depth", depth, 1, i32::MAX.unsigned_abs().into())).transpose()?;
        let depth = depth.map(|depth| format!("--depth={depth}"));
        let workspace = workspace(call, &workspace_id).await?;
        let mut repository = Repository::new(&workspace, path)?;
        repository.secrets = Secrets::of_url(&url);
        let arguments: Vec<&str> = ["git", "clone", "--quiet"]
            .into_iter()
            .chain(branch.as_deref())
            .chain(depth.as_deref())
            .chain(["--", &url, &repository.path])
            .collect();
        call.progress.stage("cloning the repository");
        let request = Request { limit: LIMIT, max_output_bytes: MAX_WORDS_BYTES, ..Request::new(&[]) };
        let output = repository.run(arguments.into_iter(), &request).await?;
        if !output.success() {
            return Err(repository.failed("clone into", &output));
        }
        let commit_sha = repository.head().await?;
        Ok(json!({ "path": repository.path, "commit_sha": commit_sha }))
    }
}
