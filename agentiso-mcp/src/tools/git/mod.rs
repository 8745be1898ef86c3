//! Git in a workspace: git itself runs there, with argument vectors and no shell, and what it says is shown without
//! credentials.

mod clone;
mod commit;
mod diff;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod push;
mod redact;
mod status;
mod status_format;

use std::time::Duration;

use agentiso_core::{
    EngineError, Workspace,
    channel::client::{CollectOptions, ErrorCode, ExecOutput, ExecSpec, Exit, GuestError},
};

use self::redact::Secrets;
pub(super) use self::{clone::Clone, commit::Commit, diff::Diff, push::Push, status::Status};
use super::{Call, cut, params::absolute};
use crate::failure::Failure;

/// Where repositories are unless a call says otherwise.
const DEFAULT_PATH: &str = "/workspace";

/// How long git may take for what needs no network.
const LOCAL_LIMIT: Duration = Duration::from_secs(120);

/// Most bytes of git's own words in an error or a result.
const MAX_WORDS_BYTES: usize = 4096;

/// Most bytes of an answer that is taken apart.
const MAX_ANSWER_BYTES: usize = 8 * 1024 * 1024;

/// A repository in a workspace.
struct Repository<'a> {
    workspace: &'a Workspace,
    path: String,
    secrets: Secrets,
}

/// What git is asked.
struct Request<'a> {
    arguments: &'a [&'a str],
    limit: Duration,
    max_output_bytes: usize,
    stdin: Option<Vec<u8>>,
    env: &'a [(&'a str, &'a str)],
}

impl<'a> Request<'a> {
    fn new(arguments: &'a [&'a str]) -> Self {
        Self { arguments, limit: LOCAL_LIMIT, max_output_bytes: MAX_ANSWER_BYTES, stdin: None, env: &[] }
    }
}

impl<'a> Repository<'a> {
    fn new(workspace: &'a Workspace, path: Option<String>) -> Result<Self, Failure> {
        let path = path.unwrap_or_else(|| DEFAULT_PATH.to_owned());
        absolute("path", &path)?;
        Ok(Self { workspace, path, secrets: Secrets::default() })
    }

    /// Runs git in the repository, and returns what it printed, however it ended.
    async fn git(&self, request: Request<'_>) -> Result<ExecOutput, Failure> {
        let arguments = ["git", "-C", self.path.as_str()];
        self.run(arguments.into_iter().chain(request.arguments.iter().copied()), &request).await
    }

    /// Runs a program, git, with these arguments.
    async fn run(
        &self,
        argv: impl Iterator<Item = &str>,
        request: &Request<'_>,
    ) -> Result<ExecOutput, Failure> {
        let mut spec = ExecSpec::program(argv).timeout(request.limit);
        let always = [
            // Nobody can answer a question: fail instead.
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_PAGER", "cat"),
            // A path is a path, not a pattern.
            ("GIT_LITERAL_PATHSPECS", "1"),
            ("LC_ALL", "C.UTF-8"),
            ("LANGUAGE", "C"),
        ];
        for (name, value) in always.iter().chain(request.env) {
            spec = spec.env(*name, *value);
        }
        let options =
            CollectOptions { max_output_bytes: request.max_output_bytes, stdin: request.stdin.clone() };
        match self.workspace.guest().await?.exec_collect(spec, options).await {
            Ok(output) => Ok(output),
            Err(GuestError::Refused { code: ErrorCode::NotFound, .. }) => Err(Failure::request(
                format!("workspace {} has no git", self.workspace.name()),
                "install it with exec, as in `apt-get update && apt-get install -y git`, which needs internet access: \
                 network_policy allows it",
            )),
            Err(error) => Err(self.redacted(Failure::guest(self.workspace, &error))),
        }
    }

    /// Runs git in the repository and expects success.
    async fn ask(&self, operation: &str, request: Request<'_>) -> Result<ExecOutput, Failure> {
        let output = self.git(request).await?;
        if output.success() { Ok(output) } else { Err(self.failed(operation, &output)) }
    }

    /// The one line that git answers; none if it ends with another status than 0.
    async fn line(&self, arguments: &[&str]) -> Result<Option<String>, Failure> {
        let output = self.git(Request::new(arguments)).await?;
        let line = output.stdout_text().trim_end_matches('\n').to_owned();
        Ok((output.success() && !line.is_empty()).then_some(line))
    }

    /// The branch that is checked out; none if there is none.
    async fn branch(&self) -> Result<Option<String>, Failure> {
        self.line(&["symbolic-ref", "--quiet", "--short", "HEAD"]).await
    }

    /// The commit that is checked out; none in a repository without any.
    async fn head(&self) -> Result<Option<String>, Failure> {
        self.line(&["rev-parse", "--quiet", "--verify", "HEAD^{commit}"]).await
    }

    /// What git said, without credentials and cut to size.
    fn words(&self, bytes: &[u8]) -> String {
        let text = self.secrets.redact(String::from_utf8_lossy(bytes).trim());
        if text.len() <= MAX_WORDS_BYTES {
            return text;
        }
        format!("{} [...]", cut(&text, MAX_WORDS_BYTES))
    }

    /// Git did not do as asked.
    fn failed(&self, operation: &str, output: &ExecOutput) -> Failure {
        let mut words = self.words(&output.stderr);
        if words.is_empty() {
            words = self.words(&output.stdout);
        }
        let status = output.exit_code();
        let place = format!("{} of workspace {}", self.path, self.workspace.name());
        if output.exit == Exit::TimedOut {
            return Failure::request(
                format!("could not {operation} {place}: the time was over; git said until then: {words}"),
                "check with network_policy that the workspace reaches the server, or give it more time",
            );
        }
        Failure::request(
            format!("could not {operation} {place}: git ended with status {status}: {words}"),
            next_step(&words),
        )
    }

    fn redacted(&self, failure: Failure) -> Failure {
        failure.map_message(|message| self.secrets.redact(message))
    }
}

/// What usually helps when git says this.
fn next_step(words: &str) -> &'static str {
    let says = |text: &str| words.contains(text);
    if says("not a git repository") {
        "name the folder of a repository with path, or make one with git_clone, or with exec and `git init`"
    } else if says("cannot change to") {
        "check the path with file_list: there is no such folder"
    } else if says("Could not resolve host") || says("Network is unreachable") || says("Connection timed out")
    {
        "the workspace may have no internet access: network_policy with allow_internet true gives it"
    } else if says("Authentication failed")
        || says("could not read Username")
        || says("Permission denied (publickey")
    {
        "give the workspace credentials, as with a token in the remote's URL or in git's credential store"
    } else if says("already exists and is not an empty directory") {
        "give another path, or remove what is there with exec"
    } else if says("non-fast-forward") || says("fetch first") || says("[rejected]") {
        "fetch and merge first, with exec and `git pull --rebase`, or push with force"
    } else if says("dubious ownership") {
        "give the files to root with exec and `chown -R root: FOLDER`"
    } else {
        "git's message says what is wrong: correct that and call again"
    }
}

/// A name of a remote or a branch: nothing that git would take for an option.
fn name(what: &str, given: &str) -> Result<(), Failure> {
    if given.is_empty() || given.starts_with('-') || given.contains(char::is_control) {
        return Err(Failure::parameter(
            format!("{what} {given:?} cannot be used with git"),
            format!(
                "give a {what} that is not empty, does not begin with a dash and has no control characters"
            ),
        ));
    }
    Ok(())
}

/// The workspace of a call of these tools.
async fn workspace(call: &Call<'_>, given: &str) -> Result<Workspace, Failure> {
    let workspace = call.caller.workspace(given).await?;
    // Says that it does not run before anything else is asked.
    workspace.guest().await.map_err(|error: EngineError| Failure::from(error))?;
    Ok(workspace)
}
