//! `exec`: statuses, large streams, many at once.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod common;

use std::{
    io::{Read, Write},
    process::Stdio,
    time::Instant,
};

use common::{
    Ended,
    vm::{self, Machine, Running},
};
use sha2::{Digest, Sha256};

/// More memory than the program needs to pass on any number of bytes.
const MEMORY_BOUND_KIB: u64 = 64 * 1024;

/// The most memory a process has had so far, in KiB.
fn peak_memory(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn statuses_are_those_of_shells() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "exec", &[]);
    for (words, status) in [
        (vec!["true"], 0),
        (vec!["sh", "-c", "exit 77"], 77),
        (vec!["no-such-program"], 127),
        (vec!["/etc/passwd"], 126),
        (vec!["sh", "-c", "kill -9 $$"], 137),
        (vec!["sh", "-c", "kill -TERM $$"], 143),
    ] {
        assert_eq!(machine.exec(&words).status, status, "{words:?}");
    }
    let timed_out =
        cli.run(&["exec", "--timeout", "1", &machine.name, "--", "sh", "-c", "echo begun; sleep 60"]);
    assert_eq!((timed_out.status, timed_out.stdout.as_str()), (124, "begun\n"), "{timed_out:?}");
}

#[test]
fn words_environment_and_folder_arrive_as_given() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "exec", &[]);

    let words = cli.ok(&["exec", &machine.name, "--", "printf", "[%s]", "a b", "$HOME", "*", "", "--json"]);
    let env =
        cli.ok(&["exec", "-e", "X=1 2", "-w", "/tmp", &machine.name, "--", "sh", "-c", "echo \"$X\"; pwd"]);
    let json = cli.run(&["--json", "exec", &machine.name, "--", "sh", "-c", "echo o; echo e >&2; exit 9"]);

    assert_eq!(words, "[a b][$HOME][*][][--json]");
    assert_eq!(env, "1 2\n/tmp\n");
    let result: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(json.status, 9);
    assert_eq!(
        result,
        serde_json::json!({ "exit_code": 9, "stdout": "o\n", "stderr": "e\n", "timed_out": false })
    );
}

#[test]
fn standard_input_is_sent_to_its_end() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "exec", &[]);
    let input: Vec<u8> =
        (0..20_000_000_u32).map(|index| index.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let mut child =
        cli.command(&["exec", "-i", &machine.name, "--", "sha256sum"]).stdin(Stdio::piped()).spawn().unwrap();

    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&input).unwrap();
    drop(stdin);
    let ended = Ended::from(child.wait_with_output().unwrap());

    assert_eq!(ended.stdout, format!("{:x}  -\n", Sha256::digest(&input)), "{ended:?}");
}

#[test]
fn two_hundred_megabytes_arrive_intact_in_little_memory() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "exec", &[]);
    let script = "yes 0123456789abcdef | head -c 200000000";
    let sum = machine.sh(&format!("{script} | sha256sum | cut -d' ' -f1"));
    let mut running = Running::start(cli.command(&["exec", &machine.name, "--", "sh", "-c", script]));

    let (mut digest, mut total, mut peak) = (Sha256::new(), 0, 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = running.stdout().read(&mut buffer).unwrap();
        if count == 0 {
            break;
        }
        digest.update(&buffer[..count]);
        total += count;
        peak = peak_memory(running.pid()).unwrap_or(peak);
    }
    let ended = running.end();

    assert_eq!((ended.status, total), (0, 200_000_000), "{ended:?}");
    assert_eq!(format!("{:x}\n", digest.finalize()), sum);
    assert!((1..MEMORY_BOUND_KIB).contains(&peak), "{peak} KiB");
}

#[test]
fn twenty_commands_run_at_once() {
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "exec", &[]);
    let begin = Instant::now();

    let children: Vec<_> = (0..20)
        .map(|index| {
            let script = format!("sleep 5; echo {index}; exit {index}");
            cli.command(&["exec", &machine.name, "--", "sh", "-c", &script]).spawn().unwrap()
        })
        .collect();
    let ended: Vec<Ended> =
        children.into_iter().map(|child| Ended::from(child.wait_with_output().unwrap())).collect();

    for (index, ended) in (0..).zip(&ended) {
        let expected = format!("{index}\n");
        assert_eq!((ended.status, &ended.stdout), (index, &expected), "{}", ended.stderr);
    }
    // One after the other they would take 100 s.
    assert!(begin.elapsed().as_secs() < 60, "{:?}", begin.elapsed());
}

/// The kernel of a busy guest may tell its agent that a host has come long after that host's first words. Here it does so
/// always: its workers run when nothing else does, which is never for a second at a time. The hogs pause by the clock:
/// however busy this host is, no worker waits for the five seconds that connecting may take.
#[test]
fn commands_run_where_the_guest_learns_late_that_a_host_has_come() {
    const DELAY_WORKERS: &str = r#"
        for process in /proc/[0-9]*; do
            read name < $process/comm
            # Those of high priority write to disks.
            case $name in
                kworker/*H*) ;;
                kworker/*) chrt --idle --pid 0 ${process#/proc/};;
            esac
        done
        (
            renice -n -20 -p $(sh -c 'echo $PPID')
            for hog in 1 2 3 4 5 6 7 8; do
                nice -n 20 sh -c 'while :; do :; done' &
                hogs="$hogs $!"
            done
            for pause in $(seq 40); do
                sleep 1.2
                kill -STOP $hogs
                sleep 0.4
                kill -CONT $hogs
            done
            kill -KILL $hogs
        ) > /dev/null 2>&1 < /dev/null &
    "#;
    let Some(cli) = vm::cli() else { return };
    let machine = Machine::create(&cli, "exec", &[]);
    cli.ok(&["exec", &machine.name, "--", "sh", "-c", DELAY_WORKERS]);

    for _ in 0..4 {
        let children: Vec<_> = (0..8)
            .map(|index| {
                let script = format!("echo x >> /root/runs; echo {index}; exit {index}");
                cli.command(&["exec", &machine.name, "--", "sh", "-c", &script]).spawn().unwrap()
            })
            .collect();
        for (index, child) in (0..).zip(children) {
            let ended = Ended::from(child.wait_with_output().unwrap());
            assert_eq!((ended.status, ended.stdout), (index, format!("{index}\n")), "{}", ended.stderr);
        }
    }

    let runs = cli.ok(&["exec", &machine.name, "--", "cat", "/root/runs"]);
    assert_eq!(runs.lines().count(), 32, "each ran once");
}
