//! Workspaces from their creation to their removal.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod common;

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use common::{
    Ended,
    vm::{self, Machine},
};
use serde_json::Value;

#[test]
fn four_created_at_once_boot_in_parallel_and_hold_up_nobody() {
    let Some(cli) = vm::cli() else { return };
    let other = Machine::create(&cli, "busy", &[]);
    let names: Vec<String> = (0..4).map(|_| vm::unique("many")).collect();
    let machines: Vec<Machine<'_>> = names.iter().map(|name| Machine::named(&cli, name)).collect();

    let children: Vec<_> = names
        .iter()
        .map(|name| {
            let mut create = cli.command(&["create", "--json", "--memory", "256", name]);
            // From a template they would be there before anyone could look.
            create.env("AGENTISO_TEMPLATES", "off").spawn().unwrap()
        })
        .collect();
    vm::wait_for("all creations under way", || {
        names.iter().all(|name| vm::listed(&cli, name).is_some()).then_some(())
    });
    let states: Vec<Value> =
        names.iter().map(|name| vm::listed(&cli, name).unwrap()["state"].clone()).collect();
    let begin = Instant::now();
    cli.ok(&["ls"]);
    other.sh("true");
    let waited = begin.elapsed();
    let created: Vec<Ended> =
        children.into_iter().map(|child| Ended::from(child.wait_with_output().unwrap())).collect();

    assert!(states.iter().filter(|state| **state != "running").count() >= 2, "{states:?}");
    // No boot takes as little as that with four at once.
    assert!(waited < Duration::from_secs(4), "{waited:?}");
    for (ended, machine) in created.iter().zip(&machines) {
        assert_eq!(ended.status, 0, "{ended:?}");
        let result: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!((&result["name"], &result["state"]), (&machine.name.as_str().into(), &"running".into()));
        assert_eq!(machine.sh("hostname"), format!("{}\n", machine.name));
    }
}

#[test]
fn files_survive_a_stop_without_a_sync() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "stop", &[]);
    machine.sh("head -c 3000000 /dev/urandom > /root/data; sha256sum /root/data > /root/sum");

    cli.ok(&["stop", &machine.name]);
    let stopped = machine.info();
    let refused = machine.exec(&["true"]);
    cli.ok(&["start", &machine.name]);

    assert_eq!((&stopped["state"], &stopped["pid"]), (&"stopped".into(), &Value::Null));
    assert_eq!(refused.status, 125, "{refused:?}");
    assert_eq!(machine.sh("sha256sum -c /root/sum"), "/root/data: OK\n");
}

#[test]
fn sharing_shows_in_the_list_and_can_be_undone() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "share", &[]);
    let owner = || vm::listed(&cli, &machine.name).unwrap()["owner"].clone();
    assert_eq!(owner(), "operator");

    let shared: Value = serde_json::from_str(&cli.ok(&["share", "--json", &machine.name])).unwrap();
    assert_eq!(
        (&shared["name"], &shared["owner"]),
        (&machine.name.as_str().into(), &"nobody".into()),
        "{shared}"
    );
    assert_eq!(owner(), "nobody");
    // The operator uses it all the same.
    assert_eq!(machine.sh("echo used"), "used\n");

    assert_eq!(cli.ok(&["share", "--undo", &machine.name]), "");
    assert_eq!(owner(), "operator");
}

#[test]
fn names_with_underscores_and_dots_work_fully() {
    let Some(cli) = vm::cli() else { return };
    for (name, hostname) in [("my_project", "my-project"), ("a.b", "a-b")] {
        let machine = Machine::named(&cli, name);

        cli.ok(&["create", "--memory", "256", name]);

        assert_eq!(
            machine.sh("hostname; ip -4 -o addr show | grep -c 10.0.2.15"),
            format!("{hostname}\n1\n")
        );
        let id = machine.info()["workspace_id"].as_str().unwrap().to_owned();
        assert_eq!(cli.ok(&["exec", &id[..8], "--", "hostname"]), format!("{hostname}\n"));
        let taken = cli.run(&["create", name]);
        assert_eq!(taken.status, 1, "{taken:?}");
        assert!(taken.stderr.contains("exists already"), "{taken:?}");
        cli.ok(&["cp", "/etc/hostname", &machine.path("/root/x")]);
        cli.ok(&["snapshot", "create", name, "s.1_2"]);
        cli.ok(&["stop", name]);
        cli.ok(&["rm", name]);
        assert_eq!(vm::leftovers(&cli, &id), Vec::<String>::new());
    }
}

#[test]
fn snapshots_go_back_and_forks_begin_from_them() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "snap", &[]);
    machine.sh("echo one > /root/state");
    let printed = cli.ok(&["snapshot", "create", &machine.name, "first"]);
    machine.sh("echo two > /root/state");
    cli.ok(&["snapshot", "create", &machine.name, "second"]);

    let forks: Value = serde_json::from_str(&cli.ok(&[
        "fork",
        &machine.name,
        "--snapshot",
        "first",
        "--count",
        "2",
        "--name",
        &machine.name,
        "--json",
    ]))
    .unwrap();
    let workers: Vec<Machine<'_>> = forks["workers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|worker| Machine::named(&cli, worker["name"].as_str().unwrap()))
        .collect();
    let in_use = cli.run(&["snapshot", "rm", &machine.name, "first"]);
    let restored: Value =
        serde_json::from_str(&cli.ok(&["restore", &machine.name, "first", "--json"])).unwrap();
    let listed: Value = serde_json::from_str(&cli.ok(&["snapshot", "ls", &machine.name, "--json"])).unwrap();

    assert_eq!(printed, "first\n");
    assert_eq!((&forks["success_count"], &forks["failure_count"]), (&2.into(), &0.into()));
    for worker in &workers {
        assert_eq!(worker.sh("cat /root/state; hostname"), format!("one\n{}\n", worker.name));
    }
    assert_eq!(in_use.status, 1);
    assert!(in_use.stderr.contains(&workers[0].name), "{in_use:?}");
    assert_eq!(restored["removed_snapshots"], serde_json::json!(["second"]));
    assert_eq!(machine.sh("cat /root/state"), "one\n");
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["name"]), (1, &"first".into()));
}

#[test]
fn paused_machine_stands_still_until_resumed() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "pause", &[]);

    cli.ok(&["pause", &machine.name]);
    let state = machine.info()["state"].clone();
    let refused = machine.exec(&["true"]);
    cli.ok(&["resume", &machine.name]);

    assert_eq!(state, "paused");
    assert_eq!(refused.status, 125, "{refused:?}");
    assert_eq!(machine.sh("echo on"), "on\n");
}

#[test]
fn running_workspace_is_removed_only_by_force() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "rm", &[]);
    let id = machine.info()["workspace_id"].as_str().unwrap().to_owned();

    let refused = cli.run(&["rm", &machine.name]);
    let partly = cli.run(&["--json", "rm", "-f", "nobody", &machine.name]);

    assert_eq!(refused.status, 1);
    assert!(refused.stderr.contains("rm -f"), "{refused:?}");
    let result: Value = serde_json::from_str(&partly.stdout).unwrap();
    assert_eq!(partly.status, 1);
    assert_eq!(
        (&result["removed"][0]["name"], &result["failures"][0]["name"]),
        (&machine.name.as_str().into(), &"nobody".into())
    );
    assert_eq!(vm::listed(&cli, &machine.name), None);
    assert_eq!(vm::leftovers(&cli, &id), Vec::<String>::new());
}

#[test]
fn forwarded_port_reaches_the_machine_until_removed() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "port", &[]);
    machine.sh("mkdir /srv/w; echo served > /srv/w/index.html; cd /srv/w; python3 -m http.server 8000 >/dev/null 2>&1 &");

    let printed = cli.ok(&["port", "add", &machine.name, "8000"]);
    let address = printed.split(' ').next().unwrap().to_owned();
    let answer = vm::wait_for("an answer of the server", || {
        let mut stream = TcpStream::connect(&address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.contains("served").then_some(answer)
    });
    let taken = cli.run(&["port", "add", &machine.name, "8000"]);
    cli.ok(&["port", "rm", &machine.name, "8000"]);

    assert!(printed.ends_with(" -> 8000\n"), "{printed}");
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    assert_eq!(taken.status, 1, "{taken:?}");
    assert!(TcpStream::connect(&address).is_err());
    assert_eq!(cli.ok(&["port", "ls", &machine.name, "--json"]), "[]\n");
}

#[test]
fn policy_is_shown_and_changed_in_part() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "policy", &[]);

    let before = cli.ok(&["policy", &machine.name]);
    let changed = cli.ok(&["policy", &machine.name, "--internet", "on"]);
    let after: Value = serde_json::from_str(&cli.ok(&["policy", &machine.name, "--json"])).unwrap();

    assert_eq!((before.as_str(), changed.as_str()), ("internet off\n", "internet on\n"));
    assert_eq!((&after["allow_internet"], &after["allow_inter_vm"]), (&true.into(), &false.into()));
}

#[test]
fn what_is_said_on_the_console_is_in_the_logs() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "logs", &[]);

    machine.sh("echo said aloud > /dev/console");
    vm::wait_for("the words in the log", || {
        cli.ok(&["logs", &machine.name]).contains("said aloud").then_some(())
    });
    let last = cli.ok(&["logs", "-n", "1", &machine.name]);
    let both: Value =
        serde_json::from_str(&cli.ok(&["logs", "--type", "all", "--json", &machine.name])).unwrap();

    assert_eq!(last.lines().count(), 1, "{last}");
    assert!(both["console"].as_str().unwrap().contains("said aloud") && both["stderr"].is_string(), "{both}");
}

#[test]
fn image_without_a_shell_boots_and_says_so() {
    let Some(cli) = vm::cli() else { return };
    let image = vm::unique("bare");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bare.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&file).unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_size(6);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, "etc/motd", &b"hello\n"[..]).unwrap();
    tar.into_inner().unwrap();

    let printed = cli.ok(&["image", "import", "--disk", "2", &image, file.to_str().unwrap()]);
    let too_small = cli.run(&["create", "--json", "--image", &image, "--disk", "1"]);
    let machine = Machine::create(&cli, "bare", &["--image", &image]);
    let shell = machine.exec(&["/bin/sh", "-c", "true"]);
    let copied = cli.ok(&["cp", &machine.path("/etc/motd"), "-"]);
    let in_use = cli.run(&["image", "rm", &image]);
    drop(machine);
    cli.ok(&["image", "rm", &image]);

    assert_eq!(printed, format!("{image}\n"));
    assert_eq!(too_small.status, 1);
    assert!(too_small.error()["next_step"].as_str().unwrap().contains("2 GiB"), "{too_small:?}");
    assert_eq!(shell.status, 127);
    assert!(shell.stderr.contains("/bin/sh"), "{shell:?}");
    assert!(copied.contains("hello"), "{copied}");
    assert_eq!(in_use.status, 1, "{in_use:?}");
}
