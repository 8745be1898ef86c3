//! What a shell inherits, and every way around it.

use std::collections::BTreeMap;
use std::io::Write;

use agentiso_guest::limits::{MAX_ENV_VAR_BYTES, MAX_ENV_VARS};
use agentiso_guest::message::{Command, ErrorCode, Request, TtySize};

use crate::client::{Agent, Answer, command};

fn set(agent: &Agent, vars: &[(&str, Option<&str>)]) -> Answer {
    let vars = vars.iter().map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned))).collect();
    agent.ask(&Request::EnvSet { vars })
}

fn with_env(argv: &[&str], env: &[(&str, &str)]) -> Request {
    let env: BTreeMap<_, _> =
        env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Request::Exec { command: Command { env, ..command(argv) }, stdin: false, tty: None, timeout_ms: None }
}

/// The ways that a variable can reach a command.
fn ways(name: &str, value: &str) -> Vec<Request> {
    let env: BTreeMap<_, _> = [(name.to_owned(), value.to_owned())].into();
    let command = || Command { env: env.clone(), ..command(&["/bin/sh", "-c", "true"]) };
    let tty = Some(TtySize { columns: 80, rows: 24 });
    vec![
        Request::Exec { command: command(), stdin: false, tty: None, timeout_ms: None },
        Request::Exec { command: command(), stdin: true, tty, timeout_ms: None },
        Request::JobStart { command: command() },
        Request::EnvSet { vars: [(name.to_owned(), Some(value.to_owned()))].into() },
        Request::EnvSet { vars: [(name.to_owned(), None)].into() },
    ]
}

#[test]
fn variables_that_subvert_a_shell_or_the_loader_are_refused_by_name_on_every_way() {
    let agent = Agent::start();
    let names = [
        "ENV",
        "BASH_ENV",
        "BASH_FUNC_ls%%",
        "BASH_FUNC_ls()",
        "BASH_LOADABLES_PATH",
        "BASH_XTRACEFD",
        "SHELLOPTS",
        "BASHOPTS",
        "PS0",
        "PS1",
        "PS2",
        "PS4",
        "PROMPT_COMMAND",
        "IFS",
        "ZDOTDIR",
        "FPATH",
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "LD_AUDIT",
        "LD_DEBUG",
        "LD_BIND_NOW",
        "GCONV_PATH",
        "GLIBC_TUNABLES",
        "LOCPATH",
        "MALLOC_TRACE",
    ];
    for name in names {
        for request in ways(name, "/tmp/evil") {
            let answer = agent.ask(&request);
            let (code, message) = answer.error();
            assert_eq!(code, ErrorCode::Invalid, "{name}");
            assert!(message.contains(name), "{message}");
            assert!(!message.contains("/tmp/evil"), "{message}");
        }
    }
}

#[test]
fn malformed_names_are_refused_on_every_way() {
    let agent = Agent::start();
    for name in ["", "A=B", "LD_PRELOAD=/tmp/evil", "=", "A\0B", "\0"] {
        for request in ways(name, "x") {
            assert_eq!(agent.ask(&request).error().0, ErrorCode::Invalid, "{name:?}");
        }
    }
}

#[test]
fn values_that_smuggle_a_variable_or_a_function_are_refused() {
    let agent = Agent::start();

    assert_eq!(set(&agent, &[("A", Some("x\0LD_PRELOAD=/tmp/evil"))]).error().0, ErrorCode::Invalid);
    assert_eq!(set(&agent, &[("A", Some("() { :; }; echo evil"))]).error().0, ErrorCode::Invalid);
}

#[test]
fn refused_name_between_two_equal_ones_is_seen() {
    let agent = Agent::start();
    let mut connection = agent.connect();
    // JSON that no map would write.
    let json = br#"{"op":"env_set","vars":{"A":"1","BASH_ENV":"/tmp/evil","A":"2"}}"#;
    let length = u32::try_from(json.len()).unwrap().to_be_bytes();

    connection.socket.write_all(&[&length[..], json].concat()).unwrap();

    assert_eq!(connection.answer().error().0, ErrorCode::Invalid);
    assert_eq!(agent.shell("echo \"<$A>\"").stdout, b"<>\n");
}

#[test]
fn lower_case_names_are_other_names_and_run_nothing() {
    let agent = Agent::start();
    let marker = agent.text_path("evil");
    let start = agent.text_path("start");
    std::fs::write(&start, format!("touch {marker}\n")).unwrap();

    for shell in ["/bin/sh", "/bin/bash"] {
        let env = [("env", start.as_str()), ("bash_env", &start), ("Env", &start), ("ld_preload", &start)];
        let answer = agent.ask(&with_env(&[shell, "-c", "echo $env"], &env));
        assert_eq!(answer.text().trim(), start);
    }

    assert!(!agent.path("evil").exists());
}

#[test]
fn environment_of_the_agent_itself_is_not_inherited() {
    let agent =
        Agent::start_with(&[("SECRET_OF_THE_HOST", "1"), ("BASH_ENV", "/tmp/evil"), ("ENV", "/tmp/evil")]);

    let answer = agent.ask(&with_env(&["env"], &[]));

    let text = answer.text();
    let names: Vec<&str> = text.lines().filter_map(|line| line.split('=').next()).collect();
    assert_eq!(names, ["HOME", "LANG", "LOGNAME", "PATH", "SHELL", "USER"]);
}

#[test]
fn set_variables_reach_later_commands_until_removed() {
    let agent = Agent::start();
    let seen = || agent.shell("echo $A-$B").text();

    assert!(set(&agent, &[("A", Some("1")), ("B", Some("x y"))]).is_done());
    assert_eq!(seen(), "1-x y\n");
    assert!(set(&agent, &[("A", None)]).is_done());
    assert_eq!(seen(), "-x y\n");
    assert!(agent.ask(&Request::EnvClear).is_done());
    assert_eq!(seen(), "-\n");
}

#[test]
fn request_wins_over_what_was_set() {
    let agent = Agent::start();
    set(&agent, &[("A", Some("set"))]);

    let answer = agent.ask(&with_env(&["/bin/sh", "-c", "echo $A"], &[("A", "asked")]));

    assert_eq!(answer.text(), "asked\n");
}

#[test]
fn one_refused_variable_changes_nothing() {
    let agent = Agent::start();
    set(&agent, &[("A", Some("old"))]);

    assert_eq!(set(&agent, &[("A", Some("new")), ("LD_PRELOAD", Some("x"))]).error().0, ErrorCode::Invalid);

    assert_eq!(agent.shell("echo $A").text(), "old\n");
}

#[test]
fn variables_are_limited_in_number_and_length() {
    let agent = Agent::start();
    let numbered = |range: std::ops::Range<usize>| Request::EnvSet {
        vars: range.map(|number| (format!("V{number}"), Some("x".to_owned()))).collect(),
    };
    let long = |length: usize| Request::EnvSet { vars: [("L".to_owned(), Some("x".repeat(length)))].into() };

    assert!(agent.ask(&long(MAX_ENV_VAR_BYTES - 1)).is_done());
    assert_eq!(agent.ask(&long(MAX_ENV_VAR_BYTES)).error().0, ErrorCode::Exhausted);
    assert!(agent.ask(&Request::EnvClear).is_done());
    assert!(agent.ask(&numbered(0..MAX_ENV_VARS)).is_done());
    assert_eq!(agent.ask(&numbered(MAX_ENV_VARS..MAX_ENV_VARS + 1)).error().0, ErrorCode::Exhausted);
}
