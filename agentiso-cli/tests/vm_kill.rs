//! kill -9 in the middle of something: the next command finds a consistent state, and nothing is left over.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod common;

use common::vm::{self, Machine, Running};

#[track_caller]
fn id_of(machine: &Machine<'_>) -> String {
    let listed = vm::wait_for("the workspace", || vm::listed(machine.cli, &machine.name));
    listed["workspace_id"].as_str().unwrap().to_owned()
}

#[test]
fn killed_creation_is_undone_by_the_next_command() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::named(&cli, &vm::unique("kill"));
    let mut create = cli.command(&["create", "--memory", "256", &machine.name]);
    // From a template it might be complete before anyone could kill it.
    create.env("AGENTISO_TEMPLATES", "off");
    let mut running = Running::start(create);
    let id = id_of(&machine);
    vm::wait_for("its machine", || (!vm::leftovers(&cli, &id).is_empty()).then_some(()));

    running.kill();
    cli.ok(&["ls"]);

    vm::wait_for("the undoing", || vm::listed(&cli, &machine.name).is_none().then_some(()));
    assert_eq!(vm::leftovers(&cli, &id), Vec::<String>::new());
    cli.ok(&["create", "--memory", "256", &machine.name]);
}

#[test]
fn killed_run_is_destroyed_by_the_next_command() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::named(&cli, &vm::unique("kill"));
    let command = cli.command(&[
        "run",
        "--memory",
        "256",
        "--name",
        &machine.name,
        "--",
        "sh",
        "-c",
        "echo ready; sleep 1000",
    ]);
    let mut running = Running::start(command);
    assert_eq!(running.line(), "ready");
    let id = id_of(&machine);

    running.kill();
    cli.ok(&["ls"]);

    vm::wait_for("the end of the throwaway", || vm::listed(&cli, &machine.name).is_none().then_some(()));
    assert_eq!(vm::leftovers(&cli, &id), Vec::<String>::new());
}

#[test]
fn killed_exec_hangs_its_command_up_and_frees_its_lane() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "kill", &[]);
    for round in 0..35 {
        let script = "echo ready; exec sleep 4242";
        let mut running = Running::start(cli.command(&["exec", &machine.name, "--", "sh", "-c", script]));
        assert_eq!(running.line(), "ready", "round {round}");
        running.kill();
    }

    // Each ends within the 5 s between SIGHUP and SIGKILL.
    vm::wait_for("the end of the commands", || {
        (machine.sh("pgrep -cx sleep || true").trim() == "0").then_some(())
    });
    assert_eq!(machine.sh("echo on"), "on\n");
}

#[test]
fn killed_snapshot_leaves_all_or_nothing() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "kill", &[]);
    for (index, delay) in [0, 5, 10, 20, 40, 80, 160].into_iter().enumerate() {
        let name = format!("s{index}");
        let mut running = Running::start(cli.command(&["snapshot", "create", &machine.name, &name]));
        std::thread::sleep(std::time::Duration::from_millis(delay));
        running.kill();

        let listed: Vec<serde_json::Value> =
            serde_json::from_str(&cli.ok(&["snapshot", "ls", &machine.name, "--json"])).unwrap();
        let there = listed.iter().filter(|snapshot| snapshot["name"] == name.as_str()).count();
        assert!(there <= 1, "{listed:?}");
        assert_eq!(machine.sh(&format!("echo {index} > /root/state; cat /root/state")), format!("{index}\n"));
    }

    cli.ok(&["snapshot", "create", &machine.name, "whole"]);
    machine.sh("echo changed > /root/state");
    cli.ok(&["restore", &machine.name, "whole"]);
    assert_eq!(machine.sh("cat /root/state"), "6\n");
}

#[test]
fn killed_destruction_is_completed_by_the_next_command() {
    let Some(cli) = vm::cli() else { return };
    for delay in [0, 20, 60] {
        let machine = Machine::create(&cli, "kill", &[]);
        let id = id_of(&machine);
        let mut running = Running::start(cli.command(&["rm", "-f", &machine.name]));
        std::thread::sleep(std::time::Duration::from_millis(delay));
        running.kill();

        // Killed before it began, it is still there, whole.
        let ended = cli.run(&["rm", "-f", &machine.name]);

        assert!(ended.status == 0 || ended.stderr.contains("there is no workspace"), "{ended:?}");
        assert_eq!(vm::listed(&cli, &machine.name), None);
        assert_eq!(vm::leftovers(&cli, &id), Vec::<String>::new(), "after {delay} ms");
    }
}
