//! Background jobs.

use agentiso_guest::limits::{JOB_OUTPUT_BYTES, MAX_FINISHED_JOBS};
use agentiso_guest::message::{ErrorCode, Exit, Input, Job, Reply, Request};

use crate::client::{Agent, Answer, command, wait_for};

fn start(agent: &Agent, line: &str) -> u64 {
    job(&agent.ask(&Request::JobStart { command: command(&["/bin/sh", "-c", line]) })).id
}

fn job(answer: &Answer) -> Job {
    match &answer.terminal {
        Some(Reply::Job { job }) => job.clone(),
        other => panic!("not a job: {other:?}"),
    }
}

fn poll(agent: &Agent, job: u64) -> Answer {
    agent.ask(&Request::JobPoll { job })
}

fn wait(agent: &Agent, job: u64) -> Answer {
    agent.ask(&Request::JobWait { job, timeout_ms: Some(30_000) })
}

#[test]
fn poll_shows_output_before_the_end() {
    let agent = Agent::start();
    let id = start(&agent, "echo out; echo err >&2; exec sleep 1000");

    wait_for("output", || {
        let answer = poll(&agent, id);
        (answer.stdout.as_slice(), answer.stderr.as_slice()) == (b"out\n", b"err\n")
    });

    assert_eq!(job(&poll(&agent, id)).exit, None);
    assert!(agent.ask(&Request::JobSignal { job: id, signal: 9 }).is_done());
    assert_eq!(job(&wait(&agent, id)).exit, Some(Exit::Signal(9)));
}

#[test]
fn wait_ends_with_the_job_and_all_it_printed() {
    let agent = Agent::start();
    let id = start(&agent, "sleep 0.2; seq 1 2000; exit 5");

    let answer = wait(&agent, id);

    assert_eq!(job(&answer).exit, Some(Exit::Code(5)));
    assert!(answer.text().ends_with("\n1999\n2000\n"));
    assert_eq!(job(&answer).stdout_bytes, answer.stdout.len() as u64);
}

#[test]
fn wait_that_takes_too_long_says_still_running() {
    let agent = Agent::start();
    let id = start(&agent, "exec sleep 1000");

    let answer = agent.ask(&Request::JobWait { job: id, timeout_ms: Some(50) });

    assert_eq!(job(&answer).exit, None);
}

#[test]
fn only_the_newest_output_is_kept() {
    let agent = Agent::start();
    let id = start(&agent, "head -c 1000000 /dev/zero; printf end");

    let answer = wait(&agent, id);

    assert_eq!(job(&answer).stdout_bytes, 1_000_003);
    assert_eq!(answer.stdout.len(), JOB_OUTPUT_BYTES);
    assert!(answer.stdout.ends_with(b"\0end"));
}

#[test]
fn attach_streams_from_what_is_kept_to_the_end() {
    let agent = Agent::start();
    let id = start(
        &agent,
        "echo first; trap 'echo caught; exit 4' USR1; echo ready; while :; do sleep 0.05; done",
    );
    wait_for("output", || poll(&agent, id).text().contains("ready"));
    let mut connection = agent.connect();
    connection.request(&Request::JobAttach { job: id });
    connection.read_until("first\nready\n");

    connection.input(&Input::Signal { signal: 10 }, &[]);

    connection.read_until("caught");
    assert_eq!(connection.answer().exit(), Exit::Code(4));
}

#[test]
fn lost_attachment_leaves_the_job_alone() {
    let agent = Agent::start();
    let go = agent.text_path("go");
    let id = start(&agent, &format!("echo ready; until test -e {go}; do sleep 0.05; done; echo alive"));
    let mut connection = agent.connect();
    connection.request(&Request::JobAttach { job: id });
    connection.read_until("ready");

    drop(connection);
    std::fs::write(agent.path("go"), "").unwrap();

    let answer = wait(&agent, id);
    assert_eq!(job(&answer).exit, Some(Exit::Code(0)));
    assert_eq!(answer.text(), "ready\nalive\n");
}

#[test]
fn attach_to_an_ended_job_shows_what_is_kept() {
    let agent = Agent::start();
    let id = start(&agent, "echo done; exit 2");
    wait(&agent, id);

    let answer = agent.ask(&Request::JobAttach { job: id });

    assert_eq!(answer.text(), "done\n");
    assert_eq!(answer.exit(), Exit::Code(2));
}

#[test]
fn list_shows_jobs_in_the_order_of_their_start() {
    let agent = Agent::start();
    let ids: Vec<u64> = (0..3).map(|_| start(&agent, "true")).collect();

    let answer = agent.ask(&Request::JobList);

    let Some(Reply::Jobs { jobs }) = answer.terminal else { panic!("not a list") };
    assert_eq!(ids, [1, 2, 3]);
    assert_eq!(jobs.iter().map(|job| job.id).collect::<Vec<_>>(), ids);
    assert_eq!(jobs[0].command, "/bin/sh -c true");
}

#[test]
fn finished_jobs_beyond_the_limit_are_forgotten_and_their_numbers_not_used_again() {
    let agent = Agent::start();
    let count = MAX_FINISHED_JOBS as u64 + 3;
    for expected in 1..=count {
        let id = start(&agent, "true");
        assert_eq!(id, expected);
        wait(&agent, id);
    }

    assert_eq!(poll(&agent, 1).error().0, ErrorCode::NotFound);
    assert_eq!(job(&poll(&agent, count)).exit, Some(Exit::Code(0)));
}

#[test]
fn wrong_signals_and_jobs_are_refused() {
    let agent = Agent::start();
    let id = start(&agent, "true");
    wait(&agent, id);
    let signal = |job, signal| agent.ask(&Request::JobSignal { job, signal }).error().0;

    assert_eq!(poll(&agent, 99).error().0, ErrorCode::NotFound);
    assert_eq!(signal(99, 9), ErrorCode::NotFound);
    assert_eq!(signal(id, 0), ErrorCode::Invalid);
    assert_eq!(signal(id, 65), ErrorCode::Invalid);
    assert_eq!(signal(id, 9), ErrorCode::Conflict);
}
