use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Repository, Request, workspace};
use crate::{
    failure::Failure,
    tools::{Call, Class, Effect, Group, Tool},
};

/// Longest commit message, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// Who commits where neither the call nor the workspace's git says.
const FALLBACK_NAME: &str = "agentiso";
const FALLBACK_EMAIL: &str = "agentiso@localhost";

pub(crate) struct Commit;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CommitParams {
    /// The workspace: its UUID, 8 or more of the UUID's first digits, or its name.
    workspace_id: String,
    /// The commit message.
    #[schemars(length(min = 1))]
    message: String,
    /// The repository's folder, an absolute path; /workspace unless given.
    path: Option<String>,
    /// Whether all changes and new files are added first; true unless given. False commits what is staged.
    add_all: Option<bool>,
    /// The author's name; what the workspace's git is configured with unless given.
    author_name: Option<String>,
    /// The author's e-mail address; what the workspace's git is configured with unless given.
    author_email: Option<String>,
}

impl Tool for Commit {
    type Params = CommitParams;
    const NAME: &'static str = "git_commit";
    const TITLE: &'static str = "Commit changes";
    const GROUP: Group = Group::Git;
    const CLASS: Class = Class::Exec;
    const EFFECT: Effect = Effect::Adds;
    const DESCRIPTION: &'static str = "Commits the changes in a git repository of a workspace. Returns commit_sha, \
        short_sha, branch (null when detached), summary (the message's first line), nothing_to_commit. That there is \
        nothing to commit is no error: nothing_to_commit is true then and commit_sha the commit that is there.";
    const EXAMPLES: &'static [&'static str] = &[
        r#"{"workspace_id":"build","message":"Fix the parser"}"#,
        r#"{"workspace_id":"build","message":"Add tests","add_all":false,"author_name":"Ada","author_email":"ada@example.com"}"#,
    ];

    async fn call(call: &Call<'_>, params: CommitParams) -> Result<Value, Failure> {
        let CommitParams { workspace_id, message, path, add_all, author_name, author_email } = params;
        if message.trim().is_empty() || message.contains('\0') || message.len() > MAX_MESSAGE_BYTES {
            return Err(Failure::parameter(
                "the message is empty, longer than 1 MiB, or has a NUL character",
                "say in the message what was changed and why",
            ));
        }
        identity("author_name", author_name.as_deref())?;
        identity("author_email", author_email.as_deref())?;
        let workspace = workspace(call, &workspace_id).await?;
        let repository = Repository::new(&workspace, path)?;
        if add_all.unwrap_or(true) {
            call.progress.stage("adding the changes");
            repository.ask("add the changes in", Request::new(&["add", "--all"])).await?;
        }
        call.progress.stage("committing");
        let nothing = is_nothing_staged(&repository).await?;
        if !nothing {
            let env = who(&repository, author_name.as_deref(), author_email.as_deref()).await?;
            let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let request = Request {
                stdin: Some(message.into_bytes()),
                env: &env,
                ..Request::new(&["commit", "--quiet", "--file=-"])
            };
            repository.ask("commit in", request).await?;
        }
        describe(&repository, nothing).await
    }
}

/// What is checked out after the call.
async fn describe(repository: &Repository<'_>, nothing_to_commit: bool) -> Result<Value, Failure> {
    let line = repository.line(&["log", "-1", "--no-show-signature", "--format=%H%x00%h%x00%s"]).await?;
    let mut parts = line.iter().flat_map(|line| line.splitn(3, '\0'));
    let (sha, short, summary) = (parts.next(), parts.next(), parts.next());
    Ok(json!({
        "commit_sha": sha,
        "short_sha": short,
        "branch": repository.branch().await?,
        "summary": if nothing_to_commit { Some("nothing to commit") } else { summary },
        "nothing_to_commit": nothing_to_commit,
    }))
}

/// Whether a commit would hold nothing: the index is as the commit that is checked out, and no merge is to be completed.
async fn is_nothing_staged(repository: &Repository<'_>) -> Result<bool, Failure> {
    let output = repository.git(Request::new(&["diff", "--cached", "--quiet", "--no-ext-diff"])).await?;
    match output.exit_code() {
        0 => Ok(repository.line(&["rev-parse", "--quiet", "--verify", "MERGE_HEAD"]).await?.is_none()),
        1 => Ok(false),
        _ => Err(repository.failed("look at the changes in", &output)),
    }
}

/// Name and address that git is told, so far as it does not know them itself.
async fn who(
    repository: &Repository<'_>,
    name: Option<&str>,
    email: Option<&str>,
) -> Result<Vec<(&'static str, String)>, Failure> {
    let mut env = Vec::new();
    let mut tell = |names: [&'static str; 2], value: &str| {
        env.extend(names.map(|name| (name, value.to_owned())));
    };
    let is_known = repository.line(&["var", "GIT_COMMITTER_IDENT"]).await?.is_some();
    match (name, is_known) {
        (Some(name), _) => tell(["GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"], name),
        (None, false) => tell(["GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"], FALLBACK_NAME),
        (None, true) => {}
    }
    match (email, is_known) {
        (Some(email), _) => tell(["GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"], email),
        (None, false) => tell(["GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"], FALLBACK_EMAIL),
        (None, true) => {}
    }
    Ok(env)
}

/// A name or address that git takes as it is.
fn identity(what: &str, given: Option<&str>) -> Result<(), Failure> {
    match given {
        Some(text)
            if text.trim().is_empty() || text.contains(['<', '>']) || text.contains(char::is_control) =>
        {
            Err(Failure::parameter(
                format!("{what} is empty, or has <, > or control characters"),
                format!("give {what} as in \"Ada\" or \"ada@example.com\", or leave it out"),
            ))
        }
        _ => Ok(()),
    }
}
