//! What needs neither machine nor QEMU: help, wrong command lines, completions, the man page.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod common;

use std::process::Stdio;

use common::Cli;

/// Every command with every flag it takes.
const COMMANDS: &[(&str, &[&str])] = &[
    ("init", &["--agent", "--shim", "--kernel-deb", "--kernel", "--modules"]),
    (
        "run",
        &[
            "--image",
            "--cpus",
            "--memory",
            "--disk",
            "--internet",
            "--publish",
            "--name",
            "--keep",
            "--env",
            "--workdir",
            "--interactive",
            "--tty",
            "--timeout",
            "COMMAND",
        ],
    ),
    ("create", &["--image", "--cpus", "--memory", "--disk", "--internet", "--publish", "NAME"]),
    ("ls", &["--state", "--quiet"]),
    ("info", &["WORKSPACE"]),
    ("start", &["WORKSPACE"]),
    ("stop", &["WORKSPACE"]),
    ("pause", &["WORKSPACE"]),
    ("resume", &["WORKSPACE"]),
    ("rm", &["--force", "WORKSPACE"]),
    ("exec", &["--env", "--workdir", "--interactive", "--tty", "--timeout", "WORKSPACE", "COMMAND"]),
    ("shell", &["--env", "--workdir", "WORKSPACE"]),
    ("cp", &["--archive", "--follow-link", "SOURCE", "DESTINATION"]),
    ("logs", &["--type", "--lines", "WORKSPACE"]),
    ("snapshot", &["create", "ls", "restore", "rm"]),
    ("snapshot create", &["--crash-consistent", "WORKSPACE", "NAME"]),
    ("restore", &["WORKSPACE", "SNAPSHOT"]),
    ("fork", &["--snapshot", "--count", "--name", "WORKSPACE"]),
    ("tree", &["WORKSPACE"]),
    ("diff", &["A[@SNAPSHOT]", "B[@SNAPSHOT]", "PATH", "Exit status"]),
    ("promote", &["--drop", "--yes", "CHILD"]),
    ("share", &["--undo", "WORKSPACE"]),
    ("port", &["add", "rm", "ls"]),
    ("port add", &["WORKSPACE", "[HOST:]GUEST"]),
    ("policy", &["--internet", "--inter-vm", "--ports", "--group", "--no-group", "WORKSPACE"]),
    ("image", &["build", "import", "ls", "info", "rm"]),
    ("image build", &["--name", "--disk", "DISTRIBUTION"]),
    ("image import", &["--disk", "NAME", "FILE"]),
    ("prune", &["--dry-run", "--force"]),
    ("doctor", &[]),
    ("completions", &["SHELL"]),
    ("man", &["--dir"]),
];

#[test]
fn help_of_every_command_names_every_argument() {
    let cli = Cli::new();
    for (command, arguments) in COMMANDS {
        let mut words: Vec<&str> = command.split(' ').collect();
        words.push("--help");

        let help = cli.ok(&words);

        for argument in [*arguments, &["--json"]].concat() {
            assert!(help.contains(argument), "{command}: no {argument} in\n{help}");
        }
    }
}

#[test]
fn help_names_every_command() {
    let help = Cli::new().ok(&["--help"]);

    for (command, _) in COMMANDS.iter().filter(|(command, _)| !command.contains(' ')) {
        assert!(help.contains(&format!("\n  {command} ")), "no {command} in\n{help}");
    }
}

#[test]
fn no_command_is_a_wrong_command_line() {
    let ended = Cli::new().run(&[]);

    assert_eq!((ended.status, ended.stdout.as_str()), (2, ""));
    assert!(ended.stderr.contains("Usage"), "{ended:?}");
}

#[test]
fn wrong_arguments_end_with_the_status_that_tells_them_apart() {
    let cli = Cli::new();
    let too_long = "a".repeat(129);
    for (line, status) in [
        (vec!["create", &too_long], 2),
        (vec!["create", "a b"], 2),
        (vec!["create", ".."], 2),
        (vec!["create", "--memory", "0"], 2),
        (vec!["create", "--memory", "9000"], 2),
        (vec!["create", "--cpus", "9"], 2),
        (vec!["create", "--disk", "101"], 2),
        (vec!["create", "-p", "80:80"], 2),
        (vec!["fork", "w", "--count", "21"], 2),
        (vec!["image", "build", "arch"], 2),
        (vec!["rm"], 2),
        (vec!["bogus"], 2),
        (vec!["run"], 125),
        (vec!["run", "--memory", "0", "true"], 125),
        (vec!["run", "--name", &too_long, "true"], 125),
        (vec!["exec", "w"], 125),
        (vec!["shell"], 125),
        (vec!["diff", "a"], 125),
        (vec!["diff", "a", "b@"], 125),
        (vec!["promote", "a", "--yes"], 2),
    ] {
        let ended = cli.run(&line);

        assert_eq!((ended.status, ended.stdout.as_str()), (status, ""), "{line:?}: {ended:?}");
        assert!(
            ended.stderr.starts_with("error: ") && ended.stderr.contains("--help"),
            "{line:?}: {ended:?}"
        );
    }
    assert!(!cli.home().exists(), "a wrong command line touches nothing");
}

#[test]
fn wrong_arguments_are_json_when_asked_for() {
    let ended = Cli::new().run(&["create", "--json", "--memory", "9000"]);

    let error = ended.error();

    assert_eq!((ended.status, ended.stdout.as_str()), (2, ""));
    assert_eq!(error["code"], "invalid_params");
    assert!(error["message"].as_str().unwrap().contains("128 to 8192 MiB"), "{error}");
    assert_eq!(error["next_step"], "see `agentiso create --help`");
}

#[test]
fn value_of_a_variable_is_not_repeated_in_an_error() {
    let ended = Cli::new().run(&["exec", "-e", "TOKEN=hush", "--bogus", "w", "true"]);

    assert_eq!(ended.status, 125);
    assert!(!ended.stderr.contains("hush"), "{ended:?}");
}

#[test]
fn completions_know_every_command() {
    let cli = Cli::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = cli.ok(&["completions", shell]);

        for (command, _) in COMMANDS.iter().filter(|(command, _)| !command.contains(' ')) {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
}

#[test]
fn man_page_is_printed_and_written_for_every_command() {
    let cli = Cli::new();
    let folder = tempfile::tempdir().unwrap();

    let page = cli.ok(&["man"]);
    cli.ok(&["man", "--dir", folder.path().to_str().unwrap()]);

    assert!(page.contains(".TH agentiso 1") && page.contains("AGENTISO_HOME"), "{page}");
    for (command, _) in COMMANDS {
        let file = folder.path().join(format!("agentiso-{}.1", command.replace(' ', "-")));
        assert!(file.exists(), "{}", file.display());
    }
}

#[test]
fn nobody_reading_the_output_ends_it_quietly() {
    let cli = Cli::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);

    let ended = cli.command(&["completions", "bash"]).stdout(Stdio::from(writer)).output().unwrap();

    assert_eq!(ended.status.code(), Some(141));
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
}

#[test]
fn version_names_program_and_protocol() {
    let cli = Cli::new();

    let text = cli.ok(&["--version"]);
    let json: serde_json::Value = serde_json::from_str(&cli.ok(&["--version", "--json"])).unwrap();

    assert!(text.starts_with(concat!("agentiso ", env!("CARGO_PKG_VERSION"))), "{text}");
    assert!(text.contains("protocol generation"), "{text}");
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert!(json["protocol_generation"].is_u64() && json.get("qemu").is_some(), "{json}");
}
