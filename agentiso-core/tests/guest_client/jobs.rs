use std::time::Duration;

use agentiso_core::channel::client::*;

use crate::agent::{Agent, SOON};

fn shell(text: &str) -> Command {
    ExecSpec::shell(text).command
}

#[tokio::test]
async fn job_is_polled_while_it_runs_and_waited_for() {
    let agent = Agent::start();
    let go = agent.path("go");
    let script = format!("echo begun; while [ ! -e {go} ]; do sleep 0.05; done; echo over >&2; exit 4");
    let job = agent.client.job_start(shell(&script)).await.unwrap();

    let mut running = agent.client.job_poll(job.id).await.unwrap();
    while running.stdout.is_empty() {
        running = agent.client.job_poll(job.id).await.unwrap();
    }
    let early = agent.client.job_wait(job.id, Some(Duration::from_millis(50))).await.unwrap();
    std::fs::write(&go, "").unwrap();
    let ended = agent.client.job_wait(job.id, Some(SOON)).await.unwrap();

    assert_eq!((running.job.exit, &*running.stdout), (None, &b"begun\n"[..]));
    assert_eq!(early.job.exit, None);
    assert_eq!(ended.job.exit, Some(Exit::Code(4)));
    assert_eq!((ended.stdout, ended.stderr), (b"begun\n".to_vec(), b"over\n".to_vec()));
}

#[tokio::test]
async fn jobs_are_listed_and_signalled() {
    let agent = Agent::start();
    let first = agent.client.job_start(shell("sleep 1000")).await.unwrap();
    let second = agent.client.job_start(shell("sleep 1000")).await.unwrap();

    agent.client.job_signal(second.id, 9).await.unwrap();

    let ended = agent.client.job_wait(second.id, Some(SOON)).await.unwrap();
    assert_eq!(ended.job.exit, Some(Exit::Signal(9)));
    let listed: Vec<_> =
        agent.client.job_list().await.unwrap().iter().map(|job| (job.id, job.exit)).collect();
    assert_eq!(listed, [(first.id, None), (second.id, Some(Exit::Signal(9)))]);
    agent.client.job_signal(first.id, 9).await.unwrap();
}

#[tokio::test]
async fn attached_job_streams_from_what_was_kept_to_its_end() {
    let agent = Agent::start();
    let go = agent.path("go");
    let script = format!("echo kept; while [ ! -e {go} ]; do sleep 0.05; done; echo live; exit 2");
    let job = agent.client.job_start(shell(&script)).await.unwrap();
    let mut stream = agent.client.job_attach(job.id).await.unwrap();
    let mut stdout = Vec::new();
    let mut exit = None;

    while let Some(event) = tokio::time::timeout(SOON, stream.next()).await.unwrap().unwrap() {
        match event {
            ExecEvent::Stdout(bytes) => {
                stdout.extend(bytes);
                std::fs::write(&go, "").unwrap();
            }
            ExecEvent::Exited(how) => exit = Some(how),
            ExecEvent::Started { .. } | ExecEvent::Stderr(_) => {}
        }
    }

    assert_eq!((stdout, exit), (b"kept\nlive\n".to_vec(), Some(Exit::Code(2))));
}

#[tokio::test]
async fn job_that_is_not_there_is_not_found() {
    let agent = Agent::start();

    let results = [
        agent.client.job_poll(7).await.err(),
        agent.client.job_wait(7, None).await.err(),
        agent.client.job_signal(7, 9).await.err(),
        agent.client.job_attach(7).await.unwrap().next().await.err(),
    ];

    for error in results {
        assert!(matches!(error, Some(GuestError::Refused { code: ErrorCode::NotFound, .. })), "{error:?}");
    }
}
