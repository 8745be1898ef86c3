//! kill -9 in the middle of what has to do with a machine's memory: the next command finds whole machines, and nothing is
//! left over.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod common;

use std::{path::PathBuf, time::Duration};

use common::{
    Cli,
    vm::{self, Machine, Running},
};
use serde_json::Value;

/// Starts a command and kills it after so many milliseconds, as a crash would.
fn kill_after(cli: &Cli, words: &[&str], delay: u64) {
    let mut running = Running::start(cli.command(words));
    std::thread::sleep(Duration::from_millis(delay));
    running.kill();
}

/// Processes of a workspace's machine, and its files in the folder of running machines.
fn all_but_logs(cli: &Cli, id: &str) -> Vec<String> {
    let run = cli.home().join("run").join(id);
    let files = std::fs::read_dir(&run).into_iter().flatten().flatten();
    let names = files.map(|file| file.file_name().into_string().unwrap());
    let processes =
        vm::leftovers(cli, id).into_iter().filter(|leftover| leftover != &run.display().to_string());
    names.filter(|name| !["console.log", "stderr.log"].contains(&name.as_str())).chain(processes).collect()
}

/// The names of the workspaces that begin with this.
fn names(cli: &Cli, prefix: &str) -> Vec<String> {
    let all: Vec<Value> = serde_json::from_str(&cli.ok(&["ls", "--json"])).unwrap();
    let names = all.iter().map(|one| one["name"].as_str().unwrap().to_owned());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// Waits until no memory is half kept. Other tests' captures come and go; those seen now do.
#[track_caller]
fn wait_for_whole_images(cli: &Cli) {
    let images = std::fs::read_dir(cli.home().join("memory/images")).unwrap();
    let partial = images
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "partial"));
    for image in partial.collect::<Vec<PathBuf>>() {
        vm::wait_for("the end of an unfinished image", || {
            cli.ok(&["ls"]);
            (!image.exists()).then_some(())
        });
    }
}

#[test]
fn killed_restore_can_be_done_again() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "krestore", &[]);
    machine.sh("echo then > /root/state; echo then > /run/state");
    cli.ok(&["snapshot", "create", &machine.name, "then"]);
    let id = vm::listed(&cli, &machine.name).unwrap()["workspace_id"].as_str().unwrap().to_owned();

    for (round, delay) in [0, 10, 25, 50, 80, 120, 180, 260, 400].into_iter().enumerate() {
        machine.sh("echo now > /root/state; echo now > /run/state");
        kill_after(&cli, &["restore", &machine.name, "then"], delay);

        // Another test's command may be the one that is just putting it right.
        let state = vm::wait_for("a machine that runs or is stopped", || {
            let state = vm::listed(&cli, &machine.name)?["state"].as_str()?.to_owned();
            ["running", "stopped"].contains(&state.as_str()).then_some(state)
        });
        if state == "stopped" {
            // Its machine is gone, and all of it but its logs.
            assert_eq!(all_but_logs(&cli, &id), Vec::<String>::new(), "round {round}");
        }
        cli.ok(&["restore", &machine.name, "then"]);
        assert_eq!(machine.sh("cat /root/state /run/state"), "then\nthen\n", "round {round}");
    }
    wait_for_whole_images(&cli);
}

#[test]
fn killed_template_making_is_begun_anew() {
    let Some(cli) = vm::cli() else { return };
    // A size that no other test has: its template is not there yet.
    let size = ["--memory", "253", "--cpus", "1", "--disk", "4"];
    for delay in [20, 200, 700, 1500, 2500, 3500] {
        kill_after(&cli, &[&["image", "warm", "debian"][..], &size].concat(), delay);
        cli.ok(&["ls"]);
    }

    let machine = Machine::named(&cli, &vm::unique("ktemplate"));
    cli.ok(&[&["create"][..], &size, &[&machine.name]].concat());

    assert_eq!(machine.sh("hostname"), format!("{}\n", machine.name));
    wait_for_whole_images(&cli);
}

#[test]
fn killed_promotion_leaves_exactly_one_machine_with_the_name() {
    let Some(cli) = vm::cli() else { return };
    for delay in [0, 5, 10, 20, 40, 80, 160, 320] {
        let parent = Machine::create(&cli, "kpromote", &[]);
        cli.ok(&["port", "add", &parent.name, "8000"]);
        let child = Machine::named(&cli, &format!("{}-child", parent.name));
        let old = Machine::named(&cli, &format!("{}-old", parent.name));
        cli.ok(&["fork", &parent.name, "--name", &child.name]);
        child.sh("echo child > /root/who");
        parent.sh("echo parent > /root/who");

        kill_after(&cli, &["promote", &child.name], delay);

        let found = names(&cli, &parent.name);
        let promoted = !found.contains(&child.name);
        let other = if promoted { &old } else { &child };
        let mut expected = vec![parent.name.clone(), other.name.clone()];
        expected.sort();
        let mut sorted = found.clone();
        sorted.sort();
        assert_eq!(sorted, expected, "after {delay} ms");
        // Cut off before the name went over, it can be done again.
        if !promoted {
            cli.ok(&["promote", &child.name]);
        }
        assert_eq!(vm::listed(&cli, &parent.name).unwrap()["state"], "running", "after {delay} ms");
        assert_eq!(vm::listed(&cli, &old.name).unwrap()["state"], "stopped", "after {delay} ms");
        assert_eq!(parent.sh("hostname; cat /root/who"), format!("{}\nchild\n", parent.name));
        let forwards = parent.info()["port_forwards"].as_array().unwrap().len();
        assert_eq!(forwards, 1, "after {delay} ms");
    }
}
