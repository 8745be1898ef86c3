//! `run`: status, streams and signals of a command in a throwaway machine, of which nothing is left.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod common;

use common::{
    Cli,
    vm::{self, Machine, Running},
};
use rustix::process::Signal;

/// Starts `run` with a shell script and waits for the line that the script prints first.
fn start<'a>(cli: &'a Cli, script: &str) -> (Running, Machine<'a>, String) {
    let machine = Machine::named(cli, &vm::unique("run"));
    let command = cli.command(&["run", "--memory", "256", "--name", &machine.name, "--", "sh", "-c", script]);
    let mut running = Running::start(command);
    assert_eq!(running.line(), "ready");
    let id = machine.info()["workspace_id"].as_str().unwrap().to_owned();
    (running, machine, id)
}

#[track_caller]
fn assert_gone(machine: &Machine<'_>, id: &str) {
    assert_eq!(vm::listed(machine.cli, &machine.name), None);
    assert_eq!(vm::leftovers(machine.cli, id), Vec::<String>::new());
}

#[test]
fn status_and_streams_are_the_commands_own() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::named(&cli, &vm::unique("run"));
    let script = "uname -r; id -u; echo $((6*7)) >&2; exit 3";

    let ended = cli.run(&["run", "--name", &machine.name, "--", "sh", "-c", script]);

    let image: serde_json::Value =
        serde_json::from_str(&cli.ok(&["image", "info", "debian", "--json"])).unwrap();
    assert_eq!(ended.status, 3, "{ended:?}");
    assert_eq!(ended.stdout, format!("{}\n0\n", image["kernel_release"].as_str().unwrap()));
    assert_eq!(ended.stderr, "42\n");
    assert_eq!(vm::listed(&cli, &machine.name), None);
}

#[test]
fn json_holds_what_the_command_printed() {
    let Some(cli) = vm::cli() else { return };

    let ended =
        cli.run(&["run", "--json", "--memory", "256", "--", "sh", "-c", "echo out; echo err >&2; exit 4"]);

    let result: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((ended.status, ended.stderr.as_str()), (4, ""));
    assert_eq!(
        (&result["exit_code"], &result["stdout"], &result["stderr"], &result["timed_out"], &result["kept"]),
        (&4.into(), &"out\n".into(), &"err\n".into(), &false.into(), &false.into())
    );
}

#[test]
fn kept_workspace_goes_on_and_is_named_on_standard_error() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::named(&cli, &vm::unique("run"));

    let ended =
        cli.run(&["run", "--memory", "256", "--keep", "--name", &machine.name, "--", "touch", "/root/made"]);

    assert_eq!((ended.status, ended.stdout.as_str()), (0, ""));
    assert!(ended.stderr.contains(&machine.name), "{ended:?}");
    assert_eq!(machine.sh("ls /root/made"), "/root/made\n");
    assert_eq!(machine.info()["throwaway"], false);
}

#[test]
fn interrupt_goes_to_the_command() {
    let Some(cli) = vm::cli() else { return };
    let (running, machine, id) =
        start(&cli, "trap 'echo caught; exit 7' INT; echo ready; while :; do sleep 0.1; done");

    running.signal(Signal::INT);
    let ended = running.end();

    assert_eq!((ended.status, ended.stdout.as_str()), (7, "caught\n"), "{ended:?}");
    assert_gone(&machine, &id);
}

#[test]
fn second_interrupt_destroys_the_workspace() {
    let Some(cli) = vm::cli() else { return };
    let (mut running, machine, id) =
        start(&cli, "trap 'echo caught' INT; echo ready; while :; do sleep 0.1; done");

    running.signal(Signal::INT);
    assert_eq!(running.line(), "caught");
    running.signal(Signal::INT);
    let ended = running.end();

    assert_eq!((ended.status, ended.stderr.as_str()), (130, ""), "{ended:?}");
    assert_gone(&machine, &id);
}

#[test]
fn termination_while_the_machine_boots_leaves_nothing() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::named(&cli, &vm::unique("run"));
    let mut run = cli.command(&["run", "--name", &machine.name, "--", "true"]);
    // From a template all might be over before anyone could end it.
    run.env("AGENTISO_TEMPLATES", "off");
    let running = Running::start(run);
    let listed = vm::wait_for("the creation", || vm::listed(&cli, &machine.name));

    running.signal(Signal::TERM);
    let ended = running.end();

    assert_eq!(ended.status, 143, "{ended:?}");
    assert_gone(&machine, listed["workspace_id"].as_str().unwrap());
}

#[test]
fn reader_that_goes_away_ends_the_run_quietly() {
    let Some(cli) = vm::cli() else { return };
    let (mut running, machine, id) = start(&cli, "echo ready; while :; do echo more; done");

    running.close_stdout();
    let ended = running.end();

    assert_eq!((ended.status, ended.stderr.as_str()), (141, ""), "{ended:?}");
    assert_gone(&machine, &id);
}
