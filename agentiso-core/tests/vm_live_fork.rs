//! Forks of machines in which commands are running, with real machines. `cargo xtask test` prepares the state folder;
//! without one the tests say so.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use agentiso_core::channel::client::{ExecEvent, ExecSpec, ExecStream, WriteOptions};
use agentiso_core::{Config, ForkSpec, Host, PoolSpec, Workspace, WorkspaceSpec, types::Resources};

/// How long a fork may take on a busy host.
const PATIENCE: Duration = Duration::from_secs(120);

async fn open() -> Option<Host> {
    let home = std::env::var_os("AGENTISO_HOME").filter(|_| std::env::var_os("AGENTISO_TEST_SEED").is_some());
    let Some(home) = home else {
        println!("skipped: there is no state folder with an image; `cargo xtask test` makes one");
        return None;
    };
    Some(Host::open(Config::at(PathBuf::from(home))).await.unwrap())
}

async fn throwaway(host: &Host) -> Workspace {
    let mut spec = WorkspaceSpec::new("debian");
    spec.throwaway = true;
    host.create(spec).await.unwrap()
}

/// Forks, and makes the forks go with this process too.
async fn fork(host: &Host, parent: &Workspace, count: u32) -> Vec<Workspace> {
    let report = parent.fork(ForkSpec { count, ..ForkSpec::default() }).await.unwrap();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    let mut forks = Vec::new();
    for worker in report.workers {
        forks.push(host.workspace(&worker.name).await.unwrap());
    }
    forks
}

async fn sh(workspace: &Workspace, line: &str) -> String {
    let output = workspace.exec(line).await.unwrap();
    assert!(output.success(), "{line}: {}", output.stderr_text());
    output.stdout_text().into_owned()
}

/// Reads whole lines until one satisfies the condition.
async fn lines_until(stream: &mut ExecStream, rest: &mut String, done: impl Fn(&str) -> bool) -> Vec<String> {
    let deadline = Instant::now() + PATIENCE;
    let mut lines = Vec::new();
    loop {
        while let Some((line, after)) = rest.split_once('\n') {
            let (line, after) = (line.to_owned(), after.to_owned());
            *rest = after;
            let last = done(&line);
            lines.push(line);
            if last {
                return lines;
            }
        }
        assert!(Instant::now() < deadline, "{lines:?}");
        if let ExecEvent::Stdout(bytes) = stream.next().await.unwrap().unwrap() {
            rest.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }
}

#[tokio::test]
async fn stream_stays_with_the_parent_and_the_command_is_a_job_in_the_fork() {
    let Some(host) = open().await else { return };
    let parent = throwaway(&host).await;
    let guest = parent.guest().await.unwrap();
    let counting = "n=0; while [ $n -lt 100000 ]; do n=$((n+1)); echo $n; sleep 0.02; done";
    let mut stream = guest.exec(ExecSpec::shell(counting)).await.unwrap();
    let mut rest = String::new();
    let mut seen = lines_until(&mut stream, &mut rest, |line| line == "20").await;
    // Nobody reads what this one prints: its port is choked when the machine is captured.
    let _unread = guest.exec(ExecSpec::shell("yes")).await.unwrap();

    let forks = fork(&host, &parent, 2).await;

    let target = seen.len() + 60;
    seen.extend(lines_until(&mut stream, &mut rest, |line| line.parse::<usize>().unwrap() >= target).await);
    let expected: Vec<String> = (1..=seen.len()).map(|number| number.to_string()).collect();
    assert_eq!(seen, expected, "the parent's stream has lost or gained something");
    for fork in &forks {
        let guest = fork.guest().await.unwrap();
        let jobs = guest.job_list().await.unwrap();
        let job = jobs.iter().find(|job| job.command.contains("while")).unwrap_or_else(|| panic!("{jobs:?}"));
        assert_eq!(job.exit, None);
        // It goes on counting from where it was: what is kept of its output has every number once.
        let first = guest.job_poll(job.id).await.unwrap();
        let deadline = Instant::now() + PATIENCE;
        let later = loop {
            let later = guest.job_poll(job.id).await.unwrap();
            if later.stdout.len() > first.stdout.len() + 20 {
                break later;
            }
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let text = String::from_utf8(later.stdout).unwrap();
        let numbers: Vec<u64> = text.lines().filter_map(|line| line.parse().ok()).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{text}");
        assert!(numbers.last().unwrap() > &20, "{text}");
        guest.job_signal(job.id, 9).await.unwrap();
        let ended = guest.job_wait(job.id, Some(PATIENCE)).await.unwrap();
        assert!(ended.job.exit.is_some());
        // Every lane answers, the choked one too.
        for _ in 0..32 {
            fork.guest().await.unwrap().with_connect_limit(PATIENCE).ping().await.unwrap();
        }
    }
    for workspace in forks.into_iter().chain([parent]) {
        workspace.destroy().await.unwrap();
    }
    host.close().await;
}

#[tokio::test]
async fn hooks_run_in_forks_before_anything_else_and_a_failing_one_ends_the_fork() {
    let Some(host) = open().await else { return };
    let parent = throwaway(&host).await;
    let guest = parent.guest().await.unwrap();
    let options = || WriteOptions { mode: Some(0o755), parents: true };
    let hook = "#!/bin/sh\necho $AGENTISO_HOSTNAME > /root/hook\ntest ! -e /root/fail || { echo no licence >&2; exit 3; }\n";
    guest.write_file("/etc/agentiso/after-fork.d/10-mark", options(), &mut hook.as_bytes()).await.unwrap();
    sh(&parent, "(while true; do date +%s%N > /run/alive; cp /root/hook /run/seen 2>/dev/null; done) > /dev/null 2>&1 &").await;

    let forks = fork(&host, &parent, 1).await;
    let marked = sh(&forks[0], "cat /root/hook").await;
    assert_eq!(marked, format!("{}\n", forks[0].name()));
    sh(&parent, "touch /root/fail; test ! -e /root/hook").await;
    let report = parent.fork(ForkSpec::default()).await.unwrap();

    assert_eq!((report.success_count, report.failure_count), (0, 1));
    let error = &report.failures[0].error;
    assert!(error.contains("10-mark") && error.contains("no licence"), "{error}");
    assert!(!host.list().await.unwrap().iter().any(|one| one.name == report.failures[0].name));
    sh(&parent, "true").await;
    for workspace in forks.into_iter().chain([parent]) {
        workspace.destroy().await.unwrap();
    }
    host.close().await;
}

#[tokio::test]
async fn workspaces_from_a_pool_have_their_own_name_and_time() {
    let Some(host) = open().await else { return };
    let spec = PoolSpec { image: "debian".into(), resources: Resources::default(), size: 1 };
    let pool = host.pool(spec).await.unwrap();
    pool.filled().await.unwrap();
    // Long enough for a clock that was not set to show.
    tokio::time::sleep(Duration::from_secs(2)).await;

    let workspace = throwaway(&host).await;

    assert_eq!(sh(&workspace, "hostname").await, format!("{}\n", workspace.name()));
    let told: f64 = sh(&workspace, "date +%s.%N").await.trim().parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - told).abs() < 1.5, "{told} at {now}");
    pool.close().await;
    workspace.destroy().await.unwrap();
    host.close().await;
}
