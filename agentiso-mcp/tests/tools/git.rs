//! The git tools, with a git of the guest that answers what it is told to.

use std::sync::{Arc, Mutex};

use agentiso_core::testkit::{FakeInvocation, FakeOutput};
use serde_json::{Value, json};

use crate::client::Client;

const SHA: &str = "0123456789012345678901234567890123456789";

/// What git was asked.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Vec<FakeInvocation>>>);

impl Asked {
    /// The arguments of each time, without what says where.
    fn commands(&self) -> Vec<Vec<String>> {
        let all = self.0.lock().unwrap();
        all.iter()
            .map(|asked| {
                let from = if asked.argv[1] == "-C" { 3 } else { 1 };
                asked.argv[from..].to_vec()
            })
            .collect()
    }

    fn find(&self, word: &str) -> FakeInvocation {
        let all = self.0.lock().unwrap();
        all.iter().find(|asked| asked.argv.iter().any(|it| it == word)).cloned().expect(word)
    }
}

fn printed(text: &str) -> FakeOutput {
    FakeOutput { stdout: text.as_bytes().to_vec(), ..FakeOutput::default() }
}

fn failed(status: u8, text: &str) -> FakeOutput {
    FakeOutput { status, stderr: text.as_bytes().to_vec(), ..FakeOutput::default() }
}

/// A client with a workspace `w` whose git answers so; what is none answers as a healthy repository.
async fn client(
    answer: impl Fn(&str, &FakeInvocation) -> Option<FakeOutput> + Send + Sync + 'static,
) -> (Client, Asked) {
    let mut client = Client::new().await;
    let id = client.create("w").await;
    let asked = Asked::default();
    let notes = asked.clone();
    client.guest(&id).add_program("git", move |invocation| {
        notes.0.lock().unwrap().push(invocation.clone());
        let from = if invocation.argv[1] == "-C" { 3 } else { 1 };
        let command = invocation.argv[from].clone();
        answer(&command, &invocation).unwrap_or_else(|| match command.as_str() {
            "rev-parse" if invocation.argv.iter().any(|it| it == "MERGE_HEAD") => failed(1, ""),
            "rev-parse" => printed(&format!("{SHA}\n")),
            "symbolic-ref" => printed("main\n"),
            "log" => printed(&format!("{SHA}\x000123456\x00Fix it\n")),
            "var" => printed("Ada <ada@example.com> 0 +0000\n"),
            _ => FakeOutput::default(),
        })
    });
    (client, asked)
}

async fn fails(client: &mut Client, tool: &str, arguments: Value, code: &str) -> (String, String) {
    let (is_error, answer) = client.call(tool, arguments).await;
    assert!(is_error && answer["code"] == code, "{answer}");
    (answer["message"].as_str().unwrap().to_owned(), answer["next_step"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn clone_takes_every_word_as_one_argument() {
    let (mut client, asked) = client(|_, _| None).await;
    let url = "https://example.com/r.git; touch /pwned $(id)";

    let call = json!({ "workspace_id": "w", "url": url, "path": "/a b", "branch": "x y", "depth": 3 });
    let answer = client.ok("git_clone", call).await;

    assert_eq!(answer, json!({ "path": "/a b", "commit_sha": SHA }));
    assert_eq!(asked.commands()[0], ["clone", "--quiet", "--branch=x y", "--depth=3", "--", url, "/a b"]);
    assert_eq!(asked.find("clone").env["GIT_TERMINAL_PROMPT"], "0");
}

#[tokio::test]
async fn credentials_are_in_no_answer_no_error_and_no_log() {
    let (mut client, _) = client(|command, asked| {
        (command == "clone").then(|| {
            let url = &asked.argv[asked.argv.len() - 2];
            failed(
                128,
                &format!("fatal: Authentication failed for '{url}'\nremote: bad token hunter2-secret\n"),
            )
        })
    })
    .await;
    let call = json!({ "workspace_id": "w", "url": "https://ada:hunter2-secret@example.com/r.git" });

    let (message, next_step) = fails(&mut client, "git_clone", call, "invalid_request").await;

    assert!(message.contains("https://***@example.com/r.git") && !message.contains("hunter2"), "{message}");
    assert!(next_step.contains("credentials"), "{next_step}");
    let audit = std::fs::read_to_string(client.lab.folder.path().join("state/mcp-audit.jsonl")).unwrap();
    assert!(!audit.contains("hunter2") && !audit.contains("example.com"), "{audit}");
}

#[tokio::test]
async fn words_that_git_would_take_for_options_are_refused() {
    let (mut client, asked) = client(|_, _| None).await;
    for (tool, arguments) in [
        ("git_clone", json!({ "url": "--upload-pack=touch /pwned" })),
        ("git_clone", json!({ "url": "" })),
        ("git_clone", json!({ "url": "https://h/r", "branch": "--x" })),
        ("git_clone", json!({ "url": "https://h/r", "depth": 0 })),
        ("git_clone", json!({ "url": "https://h/r", "path": "rel" })),
        ("git_push", json!({ "remote": "--receive-pack=x" })),
        ("git_push", json!({ "branch": "-d" })),
        ("git_push", json!({ "timeout_secs": 0 })),
        ("git_status", json!({ "path": "rel" })),
        ("git_commit", json!({ "message": " \n" })),
        ("git_commit", json!({ "message": "m", "author_email": "a>b" })),
        ("git_commit", json!({ "message": "m", "author_name": "" })),
        ("git_diff", json!({ "max_bytes": 0 })),
        ("git_diff", json!({ "file_path": "" })),
    ] {
        let mut arguments = arguments;
        arguments["workspace_id"] = "w".into();
        client.fails(tool, arguments, "invalid_params").await;
    }
    assert_eq!(asked.commands(), Vec::<Vec<String>>::new());
}

#[tokio::test]
async fn status_is_what_git_says() {
    let (mut client, asked) = client(|command, _| {
        let entries = ["# branch.head main", "# branch.ab +1 -2", "? new file"];
        (command == "status").then(|| printed(&entries.map(|entry| format!("{entry}\0")).concat()))
    })
    .await;

    let status = client.ok("git_status", json!({ "workspace_id": "w" })).await;

    assert_eq!(
        status,
        json!({
            "branch": "main", "ahead": 1, "behind": 2, "staged": [], "modified": [], "untracked": ["new file"],
            "conflicted": [], "renames": [], "dirty": true, "truncated": false,
        })
    );
    assert_eq!(asked.find("status").argv[..3], ["git", "-C", "/workspace"]);
}

#[tokio::test]
async fn what_is_wrong_with_a_repository_is_told_with_the_next_step() {
    let (mut client, _) =
        client(|_, _| Some(failed(128, "fatal: not a git repository (or any parent): .git\n"))).await;
    for (tool, arguments) in [
        ("git_status", json!({})),
        ("git_commit", json!({ "message": "m" })),
        ("git_push", json!({ "branch": "b" })),
        ("git_push", json!({})),
        ("git_diff", json!({})),
    ] {
        let mut arguments = arguments;
        arguments["workspace_id"] = "w".into();
        let (message, next_step) = fails(&mut client, tool, arguments, "invalid_request").await;
        assert!(
            message.contains("not a git repository") && next_step.contains("git_clone"),
            "{tool}: {message}"
        );
    }
}

#[tokio::test]
async fn workspace_without_git_is_told_how_to_get_it() {
    let mut client = Client::new().await;
    client.create("w").await;

    let (message, next_step) =
        fails(&mut client, "git_status", json!({ "workspace_id": "w" }), "invalid_request").await;

    assert!(message.contains("has no git") && next_step.contains("apt-get install"), "{message} {next_step}");
}

#[tokio::test]
async fn commit_adds_all_and_passes_the_message_as_it_is() {
    let (mut client, asked) = client(|command, _| (command == "diff").then(|| failed(1, ""))).await;
    let message = "-F /etc/passwd\n\n`id` \"quoted\"";

    let call =
        json!({ "workspace_id": "w", "message": message, "author_name": "Eve", "author_email": "e@x" });
    let answer = client.ok("git_commit", call).await;

    assert_eq!(
        answer,
        json!({
            "commit_sha": SHA, "short_sha": "0123456", "branch": "main", "summary": "Fix it",
            "nothing_to_commit": false,
        })
    );
    let commit = asked.find("commit");
    assert_eq!(commit.stdin, message.as_bytes());
    assert_eq!(
        (commit.env["GIT_AUTHOR_NAME"].as_str(), commit.env["GIT_COMMITTER_EMAIL"].as_str()),
        ("Eve", "e@x")
    );
    assert!(asked.commands().contains(&vec!["add".to_owned(), "--all".to_owned()]));
}

#[tokio::test]
async fn nothing_to_commit_is_no_error_and_add_all_can_be_left_out() {
    let (mut client, asked) = client(|_, _| None).await;

    let call = json!({ "workspace_id": "w", "message": "m", "add_all": false });
    let answer = client.ok("git_commit", call).await;

    assert_eq!((&answer["nothing_to_commit"], &answer["commit_sha"]), (&json!(true), &json!(SHA)));
    let commands: Vec<String> = asked.commands().into_iter().map(|words| words[0].clone()).collect();
    assert!(!commands.iter().any(|word| word == "add" || word == "commit"), "{commands:?}");
}

#[tokio::test]
async fn committer_that_git_does_not_know_is_agentiso() {
    let (mut client, asked) = client(|command, _| match command {
        "diff" => Some(failed(1, "")),
        "var" => Some(failed(128, "unable to auto-detect email address")),
        _ => None,
    })
    .await;

    client.ok("git_commit", json!({ "workspace_id": "w", "message": "m" })).await;

    assert_eq!(asked.find("commit").env["GIT_AUTHOR_EMAIL"], "agentiso@localhost");
}

#[tokio::test]
async fn push_names_remote_and_branch_and_hides_credentials() {
    let (mut client, asked) = client(|command, _| {
        (command == "push")
            .then(|| printed("To https://tok3n:x-oauth-basic@example.com/r.git\n*\tmain:main\t[new]\n"))
    })
    .await;

    let call = json!({ "workspace_id": "w", "force": true, "set_upstream": true });
    let answer = client.ok("git_push", call).await;

    assert_eq!((&answer["remote"], &answer["branch"]), (&json!("origin"), &json!("main")));
    let output = answer["output"].as_str().unwrap();
    assert!(output.contains("https://***@example.com") && !output.contains("tok3n"), "{output}");
    assert_eq!(
        asked.find("push").argv[3..],
        ["push", "--porcelain", "--force", "--set-upstream", "--", "origin", "main"]
    );
}

#[tokio::test]
async fn push_of_a_detached_head_asks_for_a_branch() {
    let (mut client, _) = client(|command, _| (command == "symbolic-ref").then(|| failed(1, ""))).await;

    let (message, next_step) =
        fails(&mut client, "git_push", json!({ "workspace_id": "w" }), "invalid_request").await;

    assert!(message.contains("no branch") && next_step.contains("refs/heads"), "{message}");
}

#[tokio::test]
async fn long_diff_is_cut_between_characters() {
    let (mut client, asked) =
        client(|command, _| (command == "diff").then(|| printed(&"ä€".repeat(100)))).await;

    let call =
        json!({ "workspace_id": "w", "max_bytes": 9, "staged": true, "stat": true, "file_path": "-a b" });
    let cut = client.ok("git_diff", call).await;
    let whole = client.ok("git_diff", json!({ "workspace_id": "w" })).await;

    assert_eq!(
        (&cut["diff"], &cut["truncated"], &cut["total_bytes"]),
        (&json!("ä€ä"), &json!(true), &json!(500))
    );
    assert_eq!((whole["diff"].as_str().unwrap().len(), &whole["truncated"]), (500, &json!(false)));
    assert_eq!(
        asked.commands()[0],
        ["diff", "--no-color", "--no-ext-diff", "--cached", "--stat", "--", "-a b"]
    );
}

/// A client with a workspace `w` whose git is this host's own, with the folder in place of `/workspace`.
async fn real_git(folder: &tempfile::TempDir) -> Option<Client> {
    if std::process::Command::new("git").arg("--version").output().is_err() {
        println!("skipped: this host has no git");
        return None;
    }
    let mut client = Client::new().await;
    let id = client.create("w").await;
    let root = folder.path().to_str().unwrap().to_owned();
    client.guest(&id).add_program("git", move |asked| {
        let here = |text: &String| text.replace("/workspace", &root);
        let mut child = std::process::Command::new("git")
            .args(asked.argv[1..].iter().map(here))
            .envs(asked.env)
            // Nothing of this host's own configuration.
            .envs([
                ("GIT_CONFIG_GLOBAL", "/dev/null"),
                ("GIT_CONFIG_SYSTEM", "/dev/null"),
                ("HOME", root.as_str()),
            ])
            .env("PATH", std::env::var_os("PATH").unwrap())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), &asked.stdin).unwrap();
        let done = child.wait_with_output().unwrap();
        let status = u8::try_from(done.status.code().unwrap()).unwrap();
        FakeOutput { status, stdout: done.stdout, stderr: done.stderr }
    });
    Some(client)
}

#[tokio::test(flavor = "multi_thread")]
async fn git_itself_clones_commits_and_pushes() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut client) = real_git(&folder).await else { return };
    let run = |arguments: &[&str]| {
        let done =
            std::process::Command::new("git").current_dir(folder.path()).args(arguments).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    run(&["init", "--quiet", "--bare", "--initial-branch=main", "far.git"]);
    let at = |path: &str| folder.path().join("near").join(path);
    let near = |more: Value| {
        let mut arguments = json!({ "workspace_id": "w", "path": "/workspace/near" });
        arguments.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        arguments
    };

    let clone = json!({ "url": "/workspace/far.git" });
    let cloned = client.ok("git_clone", near(clone)).await;
    assert_eq!(cloned, json!({ "path": "/workspace/near", "commit_sha": null }));
    let fresh = client.ok("git_status", near(json!({}))).await;
    assert_eq!(
        (&fresh["branch"], &fresh["dirty"], &fresh["ahead"]),
        (&json!("main"), &json!(false), &Value::Null)
    );

    std::fs::write(at("a file"), "one\n").unwrap();
    let nothing = client.ok("git_commit", near(json!({ "message": "m", "add_all": false }))).await;
    assert_eq!((&nothing["nothing_to_commit"], &nothing["commit_sha"]), (&json!(true), &Value::Null));
    let first = client.ok("git_commit", near(json!({ "message": "-m first\n\nmore" }))).await;
    assert_eq!((&first["summary"], &first["branch"]), (&json!("-m first"), &json!("main")));
    assert!(
        first["commit_sha"].as_str().unwrap().starts_with(first["short_sha"].as_str().unwrap()),
        "{first}"
    );
    let pushed = client.ok("git_push", near(json!({ "set_upstream": true }))).await;
    assert_eq!((&pushed["remote"], &pushed["branch"]), (&json!("origin"), &json!("main")));

    std::fs::rename(at("a file"), at("b file")).unwrap();
    client
        .ok("git_commit", near(json!({ "message": "second", "author_name": "Ada", "author_email": "a@x" })))
        .await;
    std::fs::write(at("b file"), "ä€\n".repeat(1000)).unwrap();
    std::fs::write(at("new\nline"), "").unwrap();
    let status = client.ok("git_status", near(json!({}))).await;
    assert_eq!((&status["ahead"], &status["behind"]), (&json!(1), &json!(0)));
    assert_eq!((&status["modified"], &status["untracked"]), (&json!(["b file"]), &json!(["new\nline"])));

    let diff = client.ok("git_diff", near(json!({ "max_bytes": 301 }))).await;
    assert_eq!(diff["truncated"], true);
    assert!(!diff["diff"].as_str().unwrap().contains('\u{fffd}'), "{diff}");
    let stat = client.ok("git_diff", near(json!({ "stat": true, "file_path": "b file" }))).await;
    assert!(stat["diff"].as_str().unwrap().contains("1 file changed"), "{stat}");
    client.ok("git_push", near(json!({ "branch": "HEAD:refs/heads/other" }))).await;
    let again = client.ok("git_clone", json!({
        "workspace_id": "w", "path": "/workspace/third", "url": "file:///workspace/far.git", "branch": "other", "depth": 1,
    }));
    assert!(again.await["commit_sha"].is_string());
    let (message, next_step) =
        fails(&mut client, "git_clone", near(json!({ "url": "/workspace/far.git" })), "invalid_request")
            .await;
    assert!(message.contains("already exists") && next_step.contains("another path"), "{message}");
}
