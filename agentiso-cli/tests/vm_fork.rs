//! Forks of running machines and snapshots with memory.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod common;

use std::collections::BTreeSet;

use common::{
    Cli,
    vm::{self, Machine, Running},
};
use serde_json::Value;

/// Counts for ever, with an open file and a child process that does the same: each number once, in memory and on disk.
const COUNT: &str = r#"
import os, time
name = "child" if os.fork() == 0 else "parent"
log = open(f"/root/{name}.log", "a", buffering=1)
number = 0
while True:
    number += 1
    log.write(f"{number}\n")
    with open(f"/run/{name}.tmp", "w") as now:
        now.write(str(number))
    os.rename(f"/run/{name}.tmp", f"/run/{name}")
    time.sleep(0.02)
"#;

/// Checks a buffer of 64 MiB and changes it a little, over and over, while files are written and flushed.
const CHECK: &str = r#"
import os, threading, zlib
SIZE, PARTS = 64 << 20, 64
part = SIZE // PARTS
memory = bytearray(os.urandom(1 << 20) * PARTS)
sums = [zlib.crc32(memoryview(memory)[i * part:(i + 1) * part]) for i in range(PARTS)]
def write_files():
    number = 0
    while True:
        number += 1
        with open(f"/root/file-{number % 5}", "wb") as file:
            file.write(os.urandom(200_000))
            file.flush()
            os.fsync(file.fileno())
threading.Thread(target=write_files, daemon=True).start()
rounds = 0
while True:
    for i in range(PARTS):
        view = memoryview(memory)[i * part:(i + 1) * part]
        if zlib.crc32(view) != sums[i]:
            open("/run/corrupt", "w").write(f"part {i} in round {rounds}")
        at = (rounds * 4096 + i) % part
        view[at] = (view[at] + 1) % 256
        sums[i] = zlib.crc32(view)
    rounds += 1
    with open("/run/rounds.tmp", "w") as now:
        now.write(str(rounds))
    os.rename("/run/rounds.tmp", "/run/rounds")
"#;

/// Ends everything that writes and looks the file system over.
const FSCK: &str = "pkill -9 python3; while pgrep -x python3 > /dev/null; do sleep 0.1; done; sync
mount -o remount,ro / && e2fsck -fn /dev/vda";

/// How often what must hold every time is tried: more with AGENTISO_FORK_ROUNDS.
fn rounds(usual: usize) -> usize {
    std::env::var("AGENTISO_FORK_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Starts a Python program that nobody waits for.
#[track_caller]
fn start_python(machine: &Machine<'_>, program: &str, is_up: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("program.py");
    std::fs::write(&file, program).unwrap();
    machine.cli.ok(&["cp", file.to_str().unwrap(), &machine.path("/root/program.py")]);
    machine.sh("setsid python3 /root/program.py < /dev/null > /root/errors 2>&1 &");
    wait_in(machine, is_up);
}

/// Waits until a condition of the shell holds in the guest.
#[track_caller]
fn wait_in(machine: &Machine<'_>, condition: &str) {
    vm::wait_for(condition, || (machine.exec(&["sh", "-c", condition]).status == 0).then_some(()));
}

#[track_caller]
fn fork<'a>(machine: &Machine<'a>, options: &[&str]) -> Vec<Machine<'a>> {
    let report: Value =
        serde_json::from_str(&machine.cli.ok(&[&["fork", &machine.name, "--json"], options].concat()))
            .unwrap();
    let workers = report["workers"].as_array().unwrap().clone();
    workers.iter().map(|worker| Machine::named(machine.cli, worker["name"].as_str().unwrap())).collect()
}

#[track_caller]
fn numbers(machine: &Machine<'_>, file: &str) -> Vec<u64> {
    machine.sh(&format!("cat {file}")).lines().map(|line| line.parse().unwrap()).collect()
}

#[track_caller]
fn number(machine: &Machine<'_>, file: &str) -> u64 {
    machine.sh(&format!("cat {file}")).trim().parse().unwrap()
}

#[test]
fn counting_python_goes_on_in_all_forks_and_a_restore_brings_its_number_back() {
    let Some(cli) = vm::cli() else { return };
    let parent = Machine::create(&cli, "count", &[]);
    start_python(&parent, COUNT, "test -s /run/parent && test -s /run/child");
    parent.sh("echo before > /root/note");
    cli.ok(&["snapshot", "create", &parent.name, "then"]);
    let at_snapshot = number(&parent, "/run/parent");

    let forks = fork(&parent, &["--count", "3"]);
    let at_fork = number(&parent, "/run/parent");

    assert_eq!(forks.len(), 3);
    for (place, machine) in forks.iter().chain([&parent]).enumerate() {
        for process in ["parent", "child"] {
            wait_in(machine, &format!("test $(cat /run/{process}) -gt {}", at_fork + 5));
            // Every number once: it went on from where it was, in all four.
            let counted = numbers(machine, &format!("/root/{process}.log"));
            let expected: Vec<u64> = (1..).take(counted.len()).collect();
            assert_eq!(counted, expected, "{process} of {}", machine.name);
        }
        assert_eq!(machine.sh("hostname"), format!("{}\n", machine.name));
        machine.sh(&format!("echo {place} > /root/note; echo {place} > /run/note"));
    }
    for (place, machine) in forks.iter().chain([&parent]).enumerate() {
        assert_eq!(machine.sh("cat /root/note /run/note"), format!("{place}\n{place}\n"));
    }

    cli.ok(&["restore", &parent.name, "then"]);
    let restored = number(&parent, "/run/parent");
    assert_eq!(parent.sh("cat /root/note; ls /run/note 2>/dev/null | wc -l"), "before\n0\n");
    assert!(restored < at_fork + 200 && restored + 200 > at_snapshot, "{at_snapshot} {at_fork} {restored}");
    let counted = numbers(&parent, "/root/parent.log");
    assert_eq!(counted, (1..).take(counted.len()).collect::<Vec<u64>>());
    // From the same snapshot as often as one likes, and forks too.
    cli.ok(&["restore", &parent.name, "then"]);
    let [from_snapshot] = &fork(&parent, &["--snapshot", "then"])[..] else { panic!("one fork") };
    wait_in(from_snapshot, &format!("test $(cat /run/child) -gt {restored}"));
}

/// `options` for the machine; forks of it, and forks of those, must be without a fault.
fn forks_under_load(options: &[&str], booted_cold: bool) {
    let Some(cli) = vm::cli() else { return };
    // Twice the buffer and its maker do not fit in what other tests are content with.
    let parent = Machine::named(&cli, &vm::unique("load"));
    cli.ok(&[&["create", "--memory", "512", "--disk", "4"], options, &[&parent.name]].concat());
    if booted_cold {
        cli.ok(&["stop", &parent.name]);
        cli.ok(&["start", &parent.name]);
    }
    start_python(&parent, CHECK, "test -s /run/rounds");
    for round in 0..rounds(1) {
        let [child] = &fork(&parent, &[])[..] else { panic!("one fork") };
        let [grandchild] = &fork(child, &[])[..] else { panic!("one fork") };
        for machine in [&parent, child, grandchild] {
            let before = number(machine, "/run/rounds");
            wait_in(machine, &format!("test $(cat /run/rounds) -gt {}", before + 1));
            let corrupt = machine.sh("cat /run/corrupt /root/errors 2>/dev/null || true");
            assert_eq!(corrupt, "", "{} in round {round}", machine.name);
        }
        for machine in [child, grandchild] {
            machine.sh(FSCK);
        }
    }
}

#[test]
fn forks_under_load_are_sound_with_one_cpu() {
    forks_under_load(&["--cpus", "1"], false);
}

#[test]
fn forks_under_load_are_sound_with_two_cpus() {
    forks_under_load(&["--cpus", "2"], false);
}

#[test]
fn forks_under_load_are_sound_with_four_cpus() {
    forks_under_load(&["--cpus", "4"], false);
}

#[test]
fn forks_of_a_machine_that_was_booted_are_sound() {
    forks_under_load(&["--cpus", "2"], true);
}

#[test]
fn clones_have_nothing_in_common_that_must_differ() {
    let Some(cli) = vm::cli() else { return };
    let parent = Machine::create(&cli, "clone", &[]);
    parent.sh("cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom > /dev/null");
    cli.ok(&["snapshot", "create", &parent.name, "s"]);
    let told = "cat /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | od -An -tx1; cat /etc/machine-id; hostname";
    let wanted = rounds(1) * 8;
    let (mut seen, mut clones) = (BTreeSet::new(), 0);
    while clones < wanted {
        let prefix = format!("{}-{clones}", parent.name);
        for clone in fork(&parent, &["--snapshot", "s", "--count", "8", "--name", &prefix]) {
            let clock = clone.sh("date +%s.%N").trim().parse::<f64>().unwrap();
            let now =
                std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
            // The command's own way takes its time on a busy host; that a clock was never set shows all the same.
            assert!((now - clock).abs() < 3.0, "{}: {clock} at {now}", clone.name);
            for line in clone.sh(told).lines() {
                assert!(seen.insert(line.to_owned()), "{} has {line} in common with another", clone.name);
            }
            clones += 1;
        }
    }
    assert_eq!(seen.len(), clones * 4);
}

#[test]
fn killed_fork_leaves_the_parent_running_and_nothing_else() {
    let Some(cli) = vm::cli() else { return };
    let parent = Machine::create(&cli, "kfork", &[]);
    let names = || -> BTreeSet<String> {
        let all: Vec<Value> = serde_json::from_str(&cli.ok(&["ls", "--json"])).unwrap();
        let names = all.iter().map(|one| one["name"].as_str().unwrap().to_owned());
        names.filter(|name| name.starts_with(&parent.name)).collect()
    };
    for (round, delay) in [0, 10, 20, 30, 45, 60, 80, 110, 150, 250, 400].into_iter().enumerate() {
        let mut running = Running::start(cli.command(&["fork", &parent.name, "--count", "2"]));
        std::thread::sleep(std::time::Duration::from_millis(delay));
        running.kill();
        cli.ok(&["ls"]);

        assert_eq!(parent.sh(&format!("echo {round} > /root/round; cat /root/round")), format!("{round}\n"));
        // Whole ones stay; what was not finished goes.
        for name in names().into_iter().filter(|name| *name != parent.name) {
            let fork = Machine::named(&cli, &name);
            vm::wait_for("a fork that is whole or gone", || {
                let state = vm::listed(&cli, &name)?["state"].clone();
                (state == "running").then_some(())
            });
            fork.sh("true");
        }
        // Other tests' captures come and go; those seen now do.
        for image in unfinished_images(&cli) {
            vm::wait_for("the end of an unfinished image", || {
                cli.ok(&["ls"]);
                (!image.exists()).then_some(())
            });
        }
    }
}

fn unfinished_images(cli: &Cli) -> Vec<std::path::PathBuf> {
    let images = std::fs::read_dir(cli.home().join("memory/images")).unwrap();
    images
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "partial"))
        .collect()
}

#[test]
fn memory_of_another_qemu_is_refused_and_its_disk_restored() {
    memory_of_another_host_is_refused("qemu", "8.2.0", "QEMU 8.2.0");
}

#[test]
fn memory_of_another_cpu_is_refused_and_its_disk_restored() {
    memory_of_another_host_is_refused("cpu", "Some Other CPU (0123)", "Some Other CPU (0123)");
}

/// As if the snapshot had come from a host where this part of the machine's shape is another.
fn memory_of_another_host_is_refused(part: &str, other: &str, told: &str) {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "other", &[]);
    machine.sh("echo kept > /root/note");
    let taken: Value =
        serde_json::from_str(&cli.ok(&["snapshot", "create", &machine.name, "s", "--json"])).unwrap();
    assert_eq!(taken["memory"], true);
    machine.sh("echo changed > /root/note");
    let id = taken["snapshot_id"].as_str().unwrap();
    let manifest = cli.home().join("memory/images").join(id).join("image.json");
    let mut image: Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    assert!(image["shape"][part].is_string(), "{image}");
    image["shape"][part] = other.into();
    std::fs::write(&manifest, image.to_string()).unwrap();

    let refused = cli.run(&["restore", &machine.name, "s"]);

    assert_eq!(refused.status, 1);
    assert!(refused.stderr.contains(told) && refused.stderr.contains("--disk-only"), "{refused:?}");
    assert_eq!(machine.sh("cat /root/note"), "changed\n");
    cli.ok(&["restore", &machine.name, "s", "--disk-only"]);
    assert_eq!(machine.sh("cat /root/note"), "kept\n");
    let disk: Value =
        serde_json::from_str(&cli.ok(&["snapshot", "create", &machine.name, "d", "--disk-only", "--json"]))
            .unwrap();
    assert_eq!(disk["memory"], false);
}

/// A state folder's memory belongs to its user alone.
#[test]
fn memory_files_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "private", &[]);
    cli.ok(&["snapshot", "create", &machine.name, "s"]);
    private(&cli);

    fn private(cli: &Cli) {
        let folder = cli.home().join("memory");
        assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o077, 0);
        for image in std::fs::read_dir(folder.join("images")).unwrap() {
            let image = image.unwrap();
            assert_eq!(image.metadata().unwrap().permissions().mode() & 0o077, 0);
        }
    }
}
