//! What needs a state folder and, since opening one looks for it, QEMU; but no machine.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod common;

use std::{fs, os::unix::fs::PermissionsExt};

use common::Cli;
use serde_json::Value;

#[test]
fn state_folder_that_is_a_file_is_named_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "mine").unwrap();
    let cli = Cli::at(&file);

    let (listed, ran) = (cli.run(&["ls"]), cli.run(&["run", "true"]));

    assert_eq!((listed.status, ran.status), (1, 125), "{listed:?} {ran:?}");
    for ended in [listed, ran] {
        let lines: Vec<&str> = ended.stderr.lines().collect();
        assert!(lines[0].starts_with("agentiso: could not use the state folder"), "{ended:?}");
        assert!(lines[0].contains(file.to_str().unwrap()), "{ended:?}");
        assert!(lines[1].contains("AGENTISO_HOME"), "{ended:?}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}

#[test]
fn state_folder_that_others_may_enter_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();

    let ended = Cli::at(folder.path()).run(&["ls", "--json"]);

    assert_eq!((ended.status, ended.stdout.as_str()), (1, ""));
    assert!(ended.error()["message"].as_str().unwrap().contains("not private"), "{ended:?}");
}

#[test]
fn missing_qemu_is_named_with_the_remedy() {
    let cli = Cli::new();

    let ended = common::Ended::from(
        cli.command(&["ls", "--json"]).env("AGENTISO_QEMU", "/no/such/qemu").output().unwrap(),
    );

    assert_eq!(ended.status, 1);
    assert!(ended.error()["message"].as_str().unwrap().contains("/no/such/qemu"), "{ended:?}");
}

#[test]
fn new_state_folder_has_no_workspaces() {
    let cli = Cli::new();

    let json = cli.ok(&["ls", "--json"]);
    let text = cli.ok(&["ls"]);
    let quiet = cli.ok(&["ls", "--quiet"]);

    assert_eq!(json, "[]\n");
    assert_eq!((text.lines().count(), quiet.as_str()), (1, ""));
    assert_eq!(fs::metadata(cli.home()).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn unknown_workspace_is_an_error_in_every_command() {
    let cli = Cli::new();
    for (line, status) in [
        (&["info", "nobody"][..], 1),
        (&["start", "nobody"], 1),
        (&["stop", "nobody"], 1),
        (&["pause", "nobody"], 1),
        (&["resume", "nobody"], 1),
        (&["rm", "-f", "nobody"], 1),
        (&["logs", "nobody"], 1),
        (&["snapshot", "create", "nobody", "s"], 1),
        (&["snapshot", "ls", "nobody"], 1),
        (&["snapshot", "rm", "nobody", "s"], 1),
        (&["restore", "nobody", "s"], 1),
        (&["fork", "nobody"], 1),
        (&["share", "nobody"], 1),
        (&["share", "--undo", "nobody"], 1),
        (&["port", "ls", "nobody"], 1),
        (&["policy", "nobody"], 1),
        (&["cp", "nobody:/etc/hosts", "-"], 1),
        (&["cp", "/etc/hosts", "nobody:/"], 1),
        (&["exec", "nobody", "true"], 125),
    ] {
        let ended = cli.run(&[&["--json"], line].concat());

        assert_eq!(ended.status, status, "{line:?}: {ended:?}");
        let error = ended.error();
        assert_eq!(error["message"], "there is no workspace nobody", "{line:?}");
        assert_eq!(
            (&error["code"], &error["next_step"]),
            (&"invalid_request".into(), &"`agentiso ls` lists the workspaces".into())
        );
    }
}

#[test]
fn all_workspaces_to_remove_are_tried() {
    let ended = Cli::new().run(&["rm", "-f", "one", "two"]);

    assert_eq!((ended.status, ended.stdout.as_str()), (1, ""));
    assert!(
        ended.stderr.contains("no workspace one") && ended.stderr.contains("no workspace two"),
        "{ended:?}"
    );
}

#[test]
fn unknown_image_is_an_error_and_leaves_nothing() {
    let cli = Cli::new();

    let created = cli.run(&["create", "--json", "--image", "nothing", "w"]);
    let ran = cli.run(&["run", "--image", "nothing", "true"]);

    assert_eq!((created.status, ran.status), (1, 125), "{created:?} {ran:?}");
    let error = created.error();
    assert!(error["message"].as_str().unwrap().contains("nothing"), "{error}");
    assert!(error["next_step"].is_string(), "{error}");
    assert!(ran.stderr.starts_with("agentiso: "), "{ran:?}");
    assert_eq!(cli.ok(&["ls", "--json"]), "[]\n");
}

#[test]
fn copy_without_a_workspace_or_between_two_is_refused() {
    let cli = Cli::new();
    for line in [["cp", "/etc/hosts", "/tmp"], ["cp", "a:/x", "b:/y"], ["cp", "-", "-"]] {
        let ended = cli.run(&line);

        assert_eq!(ended.status, 1, "{line:?}: {ended:?}");
        assert!(ended.stderr.contains("WORKSPACE:PATH") || ended.stderr.contains("A:PATH"), "{ended:?}");
    }
}

#[test]
fn prune_does_not_remove_without_being_sure() {
    let cli = Cli::new();

    let refused = cli.run(&["prune"]);
    let planned: Value = serde_json::from_str(&cli.ok(&["prune", "--dry-run", "--json"])).unwrap();
    let done: Value = serde_json::from_str(&cli.ok(&["prune", "--force", "--json"])).unwrap();

    assert_eq!(refused.status, 1);
    assert!(refused.stderr.contains("--force"), "{refused:?}");
    assert_eq!((&planned["done"], &done["done"]), (&false.into(), &true.into()));
}

#[test]
fn terminal_and_json_exclude_each_other() {
    let ended = Cli::new().run(&["exec", "--json", "-t", "w", "true"]);

    assert_eq!(ended.status, 125);
    assert_eq!(ended.error()["code"], "invalid_params");
}

#[test]
fn tokens_of_the_mcp_server_are_made_listed_and_removed() {
    let cli = Cli::new();

    let token = cli.ok(&["mcp", "token", "add", "ci"]);
    let listed = cli.ok(&["mcp", "token", "ls", "--json"]);
    let taken = cli.run(&["mcp", "token", "add", "ci", "--json"]);
    cli.ok(&["mcp", "token", "rm", "ci"]);

    assert!(token.len() == 65 && token.trim_end().bytes().all(|byte| byte.is_ascii_hexdigit()), "{token}");
    assert_eq!(serde_json::from_str::<Value>(&listed).unwrap(), serde_json::json!(["ci"]));
    assert_eq!(taken.status, 1);
    assert!(taken.error()["next_step"].as_str().unwrap().contains("token rm"), "{taken:?}");
    assert_eq!(cli.ok(&["mcp", "token", "ls"]), "");
}

#[test]
fn mcp_over_http_is_not_served_without_tokens_or_to_other_hosts() {
    let cli = Cli::new();

    let nobody = cli.run(&["mcp", "--http", "127.0.0.1:0"]);
    cli.ok(&["mcp", "token", "add", "ci"]);
    let everybody = cli.run(&["mcp", "--http", "0.0.0.0:0"]);

    assert_eq!((nobody.status, everybody.status), (1, 1));
    assert!(nobody.stderr.contains("token add"), "{nobody:?}");
    assert!(everybody.stderr.contains("--allow-remote"), "{everybody:?}");
}

#[test]
fn mcp_tools_are_printed() {
    let printed = Cli::new().ok(&["mcp", "--print-tools", "json"]);

    let tools: Vec<Value> = serde_json::from_str(&printed).unwrap();
    assert!(tools.iter().any(|tool| tool["name"] == "workspace_fork"), "{printed}");
}
