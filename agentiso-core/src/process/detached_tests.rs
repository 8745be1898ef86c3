use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use super::*;
use crate::{process::landlock::program_folders, types::ProcessRef};

/// A user id for what a test starts: given exactly when the tests run as root.
fn uid() -> Option<MachineUid> {
    rustix::process::geteuid().is_root().then_some(MachineUid(MachineUid::FIRST + 77))
}

fn program(path: &str, words: &[&str]) -> Detached {
    let mut detached = Detached::new(path);
    detached.args(words.iter().copied()).uid(uid()).files(rules());
    detached
}

fn rules() -> FileRules {
    let rules = FileRules::nothing().read("/proc").read("/dev/null");
    program_folders(Path::new("/usr/bin/x")).into_iter().fold(rules, FileRules::read_execute)
}

/// Starts it and reads what it prints, to the end.
fn output_of(mut detached: Detached) -> String {
    let (read, write) = std::io::pipe().unwrap();
    detached.stdout(write.try_clone().unwrap().into()).stderr(write.into());
    let started = detached.start().unwrap();
    let mut text = String::new();
    { read }.read_to_string(&mut text).unwrap();
    drop(started);
    text
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap().trim()
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within 10 s");
        std::thread::yield_now();
    }
}

#[test]
fn started_program_has_no_rights() {
    let status = output_of(program("/bin/cat", &["/proc/self/status"]));

    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(field(&status, set), "0000000000000000", "{set}");
    }
    assert_eq!(field(&status, "NoNewPrivs"), "1");
    assert_eq!(field(&status, "Seccomp"), "2");
    assert_eq!(field(&status, "Umask"), "0077");
    assert_eq!(field(&status, "SigBlk"), "0000000000000000");
    assert_eq!(field(&status, "SigIgn"), "0000000000000000");
    let expected = uid().map_or(rustix::process::getuid().as_raw(), |uid| uid.0);
    assert_eq!(field(&status, "Uid"), [expected.to_string().as_str(); 4].join("\t"));
}

#[test]
fn started_by_root_has_its_own_user_and_an_empty_bounding_set() {
    if uid().is_none() {
        println!("skipped: needs root");
        return;
    }
    let status = output_of(program("/bin/cat", &["/proc/self/status"]));

    assert_eq!(field(&status, "CapBnd"), "0000000000000000");
    assert_eq!(field(&status, "Groups"), "");
    assert_eq!(field(&status, "Gid"), field(&status, "Uid"));
}

#[test]
fn only_passed_descriptors_arrive() {
    // Not marked close-on-exec: it would be inherited by an ordinary child.
    let leak = File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    let mut detached = program("/bin/ls", &["/proc/self/fd"]);
    let numbers = [(); 2].map(|()| detached.pass(File::open("/dev/null").unwrap().into()));

    let listed = output_of(detached);

    assert_eq!(numbers, [3, 4]);
    // 5 is the folder that ls reads.
    assert_eq!(listed.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3", "4", "5"]);
}

#[test]
fn passed_descriptors_keep_their_order() {
    let (first_read, first_write) = std::io::pipe().unwrap();
    let (second_read, second_write) = std::io::pipe().unwrap();
    let mut detached = program("/bin/sh", &["-c", "echo one >&3; echo two >&4"]);
    detached.pass(first_write.into());
    detached.pass(second_write.into());

    output_of(detached);

    let texts = [first_read, second_read].map(|mut pipe| {
        let mut text = String::new();
        pipe.read_to_string(&mut text).unwrap();
        text
    });
    assert_eq!(texts, ["one\n", "two\n"]);
}

#[test]
fn environment_is_what_was_given() {
    let mut detached = program("/bin/cat", &["/proc/self/environ"]);
    detached.env("LANG", "C");

    assert_eq!(output_of(detached), "LANG=C\0");
}

#[test]
fn limits_are_in_force() {
    let mut detached = program("/bin/sh", &["-c", "ulimit -c; ulimit -n; cat /proc/self/oom_score_adj; pwd"]);
    detached.open_files(99);

    assert_eq!(output_of(detached), "0\n99\n300\n/\n");
}

#[test]
fn it_leads_a_session_of_its_own() {
    let printed = output_of(program("/bin/sh", &["-c", "cut -d' ' -f6 /proc/$$/stat; echo $$"]));

    let lines: Vec<_> = printed.lines().collect();
    assert_eq!(lines[0], lines[1]);
}

#[test]
fn files_outside_its_rules_are_refused() {
    if super::super::landlock::version() == 0 {
        println!("skipped: this kernel has no Landlock");
        return;
    }
    let printed = output_of(program("/bin/cat", &["/etc/hostname", "/etc/passwd"]));

    assert_eq!(printed.matches("Permission denied").count(), 2, "{printed}");
}

#[test]
fn sockets_outside_its_rules_are_refused() {
    let udp = "echo > /dev/udp/127.0.0.1/9";

    let refused = output_of(program("/bin/bash", &["-c", udp]));
    let mut detached = program("/bin/bash", &["-c", &format!("{udp}; echo $?")]);
    detached.sockets(Sockets::Internet);
    let allowed = output_of(detached);

    assert!(refused.contains("Operation not permitted"), "{refused}");
    assert_eq!(allowed, "0\n");
}

#[test]
fn program_that_cannot_be_executed_names_the_step() {
    let file = tempfile::NamedTempFile::new().unwrap();

    let error = program(file.path().to_str().unwrap(), &[]).start().unwrap_err();

    assert!(
        matches!(&error, SpawnError::Child { step: Step::Execute, source, .. }
            if source.kind() == io::ErrorKind::PermissionDenied),
        "{error:?}"
    );
}

#[test]
fn missing_program_is_not_found() {
    let error = program("/nowhere/program", &[]).start().unwrap_err();

    assert!(
        matches!(&error, SpawnError::Prepare { source, .. } if source.kind() == io::ErrorKind::NotFound),
        "{error:?}"
    );
}

#[test]
fn root_without_a_user_id_is_refused() {
    let mut detached = program("/bin/true", &[]);
    detached.uid(if uid().is_some() { None } else { Some(MachineUid(MachineUid::FIRST)) });

    assert!(matches!(detached.start(), Err(SpawnError::Identity { .. })));
}

#[test]
fn dropped_one_is_killed_and_collected() {
    let started = program("/bin/sleep", &["600"]).start().unwrap();
    let process = started.process().clone();
    assert!(process.is_alive());

    drop(started);

    wait_until("killed and collected", || ProcessRef::of(process.pid).unwrap().as_ref() != Some(&process));
}

#[test]
fn kept_one_lives_and_is_collected_when_it_ends() {
    let (read, write) = std::io::pipe().unwrap();
    let mut detached = program("/bin/sh", &["-c", "read line <&3"]);
    detached.pass(read.into());
    let process = detached.start().unwrap().keep();
    assert!(process.is_alive());

    drop(write);

    wait_until("ended and collected", || ProcessRef::of(process.pid).unwrap().as_ref() != Some(&process));
}

#[test]
fn children_of_others_are_left_to_them() {
    let mut other = Command::new("/bin/sh").args(["-c", "exit 7"]).stdin(Stdio::null()).spawn().unwrap();

    output_of(program("/bin/true", &[]));

    assert_eq!(other.wait().unwrap().code(), Some(7));
}

#[test]
fn named_process_is_found_by_its_state_folder_only() {
    let workspace = crate::types::WorkspaceId::random();
    let state = uuid::Uuid::new_v4().simple().to_string();
    let name = crate::process::start_name(&state, workspace);
    let (read, _write) = std::io::pipe().unwrap();
    let mut detached = program("/bin/sh", &["-c", "read line <&3", &name]);
    detached.pass(read.into());
    let started = detached.start().unwrap();

    let found = crate::process::named(&state).unwrap();
    let elsewhere = crate::process::named(&state[1..]).unwrap();

    assert_eq!(found.len(), 1);
    assert_eq!((&found[0].process, found[0].workspace), (started.process(), workspace));
    assert!(elsewhere.is_empty());
}

#[test]
fn program_starts_whether_or_not_the_kernel_knows_who_may_read_it() {
    for any in [false, true] {
        let mut detached = program("/bin/echo", &["on"]);
        detached.any_reader(any);

        assert_eq!(output_of(detached), "on\n", "{any}");
    }
}
