//! Prepares one machine, takes a snapshot, and runs each test in a fork of it, all at once. A test can ruin its machine
//! as it likes: no other one sees it.

use agentiso_core::{Config, EngineError, ForkSpec, Host, Workspace, WorkspaceSpec, types::SnapshotName};
use tokio::task::JoinSet;

/// What runs in each fork; a status other than 0 is a failed test.
const TESTS: [&str; 3] =
    ["test -f /srv/ready", "rm -rf /srv && ! test -d /srv", "grep -q prepared /srv/ready"];

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let host = Host::open(Config::from_env()?).await?;
    let prepared = host.create(WorkspaceSpec::new("debian")).await?;
    let failed = run_all(&host, &prepared).await;
    prepared.destroy().await?;
    match failed? {
        0 => Ok(()),
        failed => Err(format!("{failed} tests failed").into()),
    }
}

async fn run_all(host: &Host, prepared: &Workspace) -> Result<usize, EngineError> {
    prepared.exec("mkdir -p /srv && echo prepared > /srv/ready").await?;
    prepared.snapshot("prepared").await?;
    let snapshot = Some(SnapshotName::new("prepared")?);
    let count = u32::try_from(TESTS.len()).unwrap_or(u32::MAX);
    let forks = prepared.fork(ForkSpec { snapshot, count, ..ForkSpec::default() }).await?;
    for failure in &forks.failures {
        eprintln!("{} could not be forked: {}", failure.name, failure.error);
    }
    let mut running = JoinSet::new();
    for (worker, test) in forks.workers.into_iter().zip(TESTS) {
        let host = host.clone();
        running.spawn(async move {
            let workspace = host.workspace(&worker.workspace_id.to_string()).await?;
            let output = workspace.exec(test).await;
            workspace.destroy().await?;
            Ok::<_, EngineError>((test, output?))
        });
    }
    let mut failed = forks.failure_count;
    for outcome in running.join_all().await {
        let (test, output) = outcome?;
        println!("{} {test}", if output.success() { "ok    " } else { "FAILED" });
        failed += usize::from(!output.success());
    }
    Ok(failed)
}
