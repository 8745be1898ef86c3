//! What an agent does when it is told that its machine is a copy, on a real machine that is none: its own connections then
//! stand for those of the machine it was copied from. `cargo xtask test` prepares the state folder; without one the tests
//! say so.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use agentiso_core::channel::client::{
    CollectOptions, Configure, ErrorCode, ExecEvent, ExecSpec, Exit, GuestClient, GuestError, TtySize,
    WriteOptions,
};
use agentiso_core::{Config, Host, Workspace, WorkspaceSpec};

/// What user processes are frozen for; no test freezes a machine twice.
const CAPTURE: uuid::Uuid = uuid::Uuid::from_u128(1);

/// A machine from the prepared state folder.
async fn machine() -> Option<(Host, Workspace, GuestClient)> {
    let home = std::env::var_os("AGENTISO_HOME").filter(|_| std::env::var_os("AGENTISO_TEST_SEED").is_some());
    let Some(home) = home else {
        println!("skipped: there is no state folder with an image; `cargo xtask test` makes one");
        return None;
    };
    let host = Host::open(Config::at(PathBuf::from(home))).await.unwrap();
    let mut spec = WorkspaceSpec::new("debian");
    spec.throwaway = true;
    let workspace = host.create(spec).await.unwrap();
    let guest = workspace.guest().await.unwrap();
    Some((host, workspace, guest))
}

async fn shell(guest: &GuestClient, line: &str) -> String {
    let output = guest.exec_collect(ExecSpec::shell(line), CollectOptions::default()).await.unwrap();
    assert!(output.success(), "{line}: {}", output.stderr_text());
    output.stdout_text().into_owned()
}

async fn write_program(guest: &GuestClient, path: &str, text: &str) {
    let options = WriteOptions { mode: Some(0o755), parents: true };
    guest.write_file(path, options, &mut text.as_bytes()).await.unwrap();
}

fn clone() -> Configure {
    Configure { clone: true, set_clock: true, ..Configure::default() }
}

/// Runs a line until it has printed "ready".
async fn ready(guest: &GuestClient, spec: ExecSpec) -> agentiso_core::channel::client::ExecStream {
    let mut stream = guest.exec(spec).await.unwrap();
    let mut printed = Vec::new();
    while !printed.windows(5).any(|window| window == b"ready") {
        if let Some(ExecEvent::Stdout(bytes)) = stream.next().await.unwrap() {
            printed.extend(bytes);
        }
    }
    stream
}

#[tokio::test]
async fn commands_become_jobs_and_every_lane_serves_again() {
    let Some((_host, workspace, guest)) = machine().await else { return };
    let until_go = "until test -e /tmp/go; do sleep 0.05; done";
    let spec = ExecSpec::shell(format!("echo ready; {until_go}; echo two; exit 3"));
    let running = ready(&guest, spec).await;
    let size = TtySize { columns: 80, rows: 25 };
    let on_terminal = ExecSpec::shell(format!("echo ready; {until_go}; tty")).tty(size);
    let _on_terminal = ready(&guest, on_terminal).await;

    guest.freeze(CAPTURE, Duration::from_secs(2)).await.unwrap();
    guest.configure(clone()).await.unwrap();
    let jobs = guest.job_list().await.unwrap();
    guest.thaw(CAPTURE).await.unwrap();
    shell(&guest, "touch /tmp/go").await;
    let mut reports = Vec::new();
    for job in &jobs {
        reports.push(guest.job_wait(job.id, Some(Duration::from_secs(60))).await.unwrap());
    }
    drop(running);
    // Every lane, those that the commands had too. A client of its own each time, which keeps no connection.
    for _ in 0..62 {
        workspace.guest().await.unwrap().ping().await.unwrap();
    }
    workspace.destroy().await.unwrap();

    assert_eq!(jobs.len(), 2);
    let by_exit = |exit| reports.iter().find(|report| report.job.exit == Some(exit)).unwrap();
    assert_eq!(by_exit(Exit::Code(3)).stdout, b"ready\ntwo\n");
    assert!(by_exit(Exit::Code(0)).stdout.starts_with(b"ready\r\n/dev/pts/"));
}

#[tokio::test]
async fn clock_that_is_wrong_is_right_after_configure() {
    let Some((_host, workspace, guest)) = machine().await else { return };
    shell(&guest, "date -s '2001-01-01 00:00:00'").await;

    let report = guest.configure(clone()).await.unwrap();
    let began = SystemTime::now();
    let seen: f64 = shell(&guest, "date +%s.%N").await.trim().parse().unwrap();
    let ended = SystemTime::now();
    workspace.destroy().await.unwrap();

    let tolerance = 0.1 + Duration::from_nanos(report.round_trip_ns).as_secs_f64() / 2.0;
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!(seen > seconds(began) - tolerance && seen < seconds(ended) + tolerance, "{report:?}");
}

#[tokio::test]
async fn hooks_run_while_user_processes_are_frozen_and_a_failing_one_is_named() {
    let Some((_host, workspace, guest)) = machine().await else { return };
    let folder = "/etc/agentiso/after-fork.d";
    let hook = "#!/bin/sh\necho \"$0 $AGENTISO_HOSTNAME $AGENTISO_WORKSPACE_ID $SECRET\" >>/root/log\n";
    for name in ["20-second", "10-first", "no hook"] {
        write_program(&guest, &format!("{folder}/{name}"), hook).await;
    }
    // What it leaves running is user work from then on.
    let leaves = "#!/bin/sh\nsleep 1000 >/dev/null 2>&1 &\n";
    write_program(&guest, &format!("{folder}/30-leaves"), leaves).await;
    guest.env_set([("SECRET".to_owned(), Some("x".to_owned()))].into()).await.unwrap();
    let mut configure = Configure { run_hooks: true, ..clone() };
    configure.hostname = Some("twin".to_owned());
    configure.machine_id = Some("0123456789abcdef0123456789abcdef".to_owned());

    guest.freeze(CAPTURE, Duration::from_secs(2)).await.unwrap();
    guest.configure(configure.clone()).await.unwrap();
    let log = guest.read_file("/root/log", 0, 4096).await.unwrap();
    guest.thaw(CAPTURE).await.unwrap();
    let group = shell(&guest, "cat /proc/$(pidof sleep)/cgroup").await;
    write_program(&guest, &format!("{folder}/15-fails"), "#!/bin/sh\necho oh no >&2\nexit 7\n").await;
    let failure = guest.configure(configure.clone()).await.unwrap_err();
    write_program(&guest, &format!("{folder}/15-fails"), "#!/bin/sh\nexec sleep 1000\n").await;
    let timeout = guest.configure(configure).await.unwrap_err();
    guest.ping().await.unwrap();
    workspace.destroy().await.unwrap();

    let expected = |name| format!("{folder}/{name} twin 0123456789abcdef0123456789abcdef \n");
    assert_eq!(String::from_utf8(log).unwrap(), expected("10-first") + &expected("20-second"));
    assert_eq!(group.trim(), "0::/user");
    let text = failure.to_string();
    assert!(text.contains("15-fails") && text.contains("status 7") && text.contains("oh no"), "{text}");
    assert!(
        matches!(&timeout, GuestError::Refused { code: ErrorCode::TimedOut, message, .. } if message.contains("15-fails")),
        "{timeout:?}"
    );
}
