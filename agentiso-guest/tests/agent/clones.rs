//! A machine whose memory is a copy: what was connected is gone, what ran goes on.
//!
//! A copy cannot be made of an agent that runs as a service, so these tests do what it comes to: the agent is told that it
//! is a clone, before or after it has seen its connections go.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use agentiso_guest::frame::encode;
use agentiso_guest::hello::Nonce;
use agentiso_guest::message::{Configuration, ErrorCode, Exit, Input, Job, Reply, Request, TtySize};

use crate::client::{Agent, Connection, command, exec, fresh_nonce, hello_bytes, wait_for};

const CAPTURE: Nonce = Nonce::from_bytes([1; 16]);
const FREEZE: Request = Request::Freeze { capture: CAPTURE, timeout_ms: 5000 };
const THAW: Request = Request::Thaw { capture: CAPTURE };

/// Tells the agent that it is a copy, and nothing else.
fn become_clone(agent: &Agent) {
    let clone = Configuration { clone: true, ..Configuration::default() };
    let answer = agent.ask(&Request::Configure(Box::new(clone)));
    assert!(matches!(answer.terminal, Some(Reply::Configured { .. })), "{:?}", answer.terminal);
}

/// Freezes user processes; `false` where that is not possible.
fn freeze(agent: &Agent) -> bool {
    let answer = agent.ask(&FREEZE);
    if matches!(answer.terminal, Some(Reply::Error { code: ErrorCode::NotPermitted, .. })) {
        eprintln!("skipped: no cgroup v2 that may be written to");
        return false;
    }
    assert!(answer.is_done());
    true
}

fn jobs(agent: &Agent) -> Vec<Job> {
    match agent.ask(&Request::JobList).terminal {
        Some(Reply::Jobs { jobs }) => jobs,
        other => panic!("not a list: {other:?}"),
    }
}

fn wait_for_job(agent: &Agent, job: u64) -> (Vec<u8>, Vec<u8>, Job) {
    let answer = agent.ask(&Request::JobWait { job, timeout_ms: Some(30_000) });
    match answer.terminal {
        Some(Reply::Job { job }) => (answer.stdout, answer.stderr, job),
        other => panic!("not a job: {other:?}"),
    }
}

fn running(agent: &Agent, line: &str, stdin: bool, tty: Option<TtySize>) -> Connection {
    let mut connection = agent.connect();
    let command = command(&["/bin/sh", "-c", line]);
    connection.request(&Request::Exec { command, stdin, tty, timeout_ms: None });
    connection.read_until("ready");
    connection
}

#[test]
fn command_of_a_lost_connection_goes_on_as_a_job_in_a_clone() {
    let agent = Agent::start();
    let go = agent.text_path("go");
    let line =
        format!("echo ready; echo err >&2; until test -e {go}; do sleep 0.02; done; echo after; exit 5");
    let mut connection = running(&agent, &line, false, None);
    connection.read_until("err");

    become_clone(&agent);
    let listed = jobs(&agent);
    std::fs::write(agent.path("go"), "").unwrap();
    let (stdout, stderr, job) = wait_for_job(&agent, listed[0].id);

    assert_eq!(listed.len(), 1);
    assert!(listed[0].exit.is_none() && listed[0].command.starts_with("/bin/sh -c"));
    assert_eq!((stdout.as_slice(), stderr.as_slice()), (&b"ready\nafter\n"[..], &b"err\n"[..]));
    assert_eq!(job.exit, Some(Exit::Code(5)));
    assert_eq!(job.stdout_bytes, 12);
    assert!(connection.next::<Reply>().is_none(), "its connection is closed");
}

#[test]
fn command_on_a_terminal_goes_on_with_its_terminal() {
    let agent = Agent::start();
    let go = agent.text_path("go");
    let line = format!("echo ready; until test -e {go}; do sleep 0.02; done; tty; echo after");
    let size = TtySize { columns: 80, rows: 25 };
    let connection = running(&agent, &line, true, Some(size));

    become_clone(&agent);
    drop(connection);
    std::fs::write(agent.path("go"), "").unwrap();
    let (stdout, _, job) = wait_for_job(&agent, jobs(&agent)[0].id);

    let text = String::from_utf8(stdout).unwrap();
    assert!(text.contains("/dev/pts/") && text.ends_with("after\r\n"), "{text:?}");
    assert_eq!(job.exit, Some(Exit::Code(0)));
}

#[test]
fn input_that_was_sent_still_arrives_and_then_ends() {
    let agent = Agent::start();
    let go = agent.text_path("go");
    let line = format!("trap 'echo caught' USR1; echo ready; until test -e {go}; do sleep 0.02; done; wc -c");
    let mut connection = running(&agent, &line, true, None);
    // More than a pipe holds, so that the rest waits in the agent. That it has come there shows in what comes behind it.
    connection.stdin(&[b'x'; 200_000]);
    connection.input(&Input::Signal { signal: 10 }, &[]);
    connection.read_until("caught");

    become_clone(&agent);
    std::fs::write(agent.path("go"), "").unwrap();
    let (stdout, _, job) = wait_for_job(&agent, jobs(&agent)[0].id);

    assert_eq!(String::from_utf8(stdout).unwrap(), "ready\ncaught\n200000\n");
    assert_eq!(job.exit, Some(Exit::Code(0)));
}

#[test]
fn only_the_newest_output_is_kept_and_all_of_it_is_counted() {
    let agent = Agent::start();
    let go = agent.text_path("go");
    let line =
        format!("head -c 400000 /dev/zero; echo ready; until test -e {go}; do sleep 0.02; done; echo end");
    let _connection = running(&agent, &line, false, None);

    become_clone(&agent);
    std::fs::write(agent.path("go"), "").unwrap();
    let (stdout, _, job) = wait_for_job(&agent, jobs(&agent)[0].id);

    assert_eq!(stdout.len(), 256 * 1024);
    assert!(stdout.ends_with(b"\0ready\nend\n"));
    assert_eq!(job.stdout_bytes, 400_010);
}

#[test]
fn time_limit_of_a_command_still_holds_for_the_job() {
    let agent = Agent::start();
    let mut connection = agent.connect();
    let command = command(&["/bin/sh", "-c", "echo ready; sleep 1000"]);
    connection.request(&Request::Exec { command, stdin: false, tty: None, timeout_ms: Some(1000) });
    connection.read_until("ready");

    become_clone(&agent);
    let (_, _, job) = wait_for_job(&agent, jobs(&agent)[0].id);

    assert_eq!(job.exit, Some(Exit::TimedOut));
}

#[test]
fn jobs_that_were_there_go_on_under_their_numbers_and_new_ones_get_others() {
    let agent = Agent::start();
    let start = |line: &str| agent.ask(&Request::JobStart { command: command(&["/bin/sh", "-c", line]) });
    start("exec sleep 1000");
    let _connection = running(&agent, "echo ready; exec sleep 1000", false, None);

    become_clone(&agent);
    start("exec sleep 1000");
    let ids: Vec<_> = jobs(&agent).iter().map(|job| job.id).collect();

    assert_eq!(ids, [1, 2, 3]);
    assert!(agent.ask(&Request::JobSignal { job: 2, signal: 9 }).is_done());
    assert_eq!(wait_for_job(&agent, 2).2.exit, Some(Exit::Signal(9)));
    become_clone(&agent);
    assert_eq!(jobs(&agent).len(), 3, "a clone of a clone has the same jobs");
}

#[test]
fn file_that_was_being_written_in_a_clone_is_not_changed() {
    let agent = Agent::start();
    std::fs::write(agent.path("file"), "old").unwrap();
    let mut connection = agent.connect();
    connection.request(&Request::FileWrite { path: agent.text_path("file"), mode: None, parents: false });
    connection.input(&Input::Data { payload: 3 }, b"new");

    become_clone(&agent);

    assert!(connection.next::<Reply>().is_none());
    assert_eq!(std::fs::read(agent.path("file")).unwrap(), b"old");
    let left = std::fs::read_dir(agent.path("")).unwrap().count();
    assert_eq!(left, 2, "the file and the socket");
}

#[test]
fn half_a_message_of_before_meets_nothing_of_after() {
    let agent = Agent::start();
    let mut half = agent.connect();
    half.request(&Request::FileWrite { path: agent.text_path("file"), mode: None, parents: false });
    let mut bytes = Vec::new();
    encode(&mut bytes, &Input::Data { payload: 1000 }, &[b'h'; 1000], half.nonce).unwrap();
    half.socket.write_all(&bytes[..500]).unwrap();
    // And one that the agent is in the middle of writing, as nobody reads.
    let mut stuck = agent.connect();
    stuck.request(&exec(&["/bin/sh", "-c", "yes"]));
    stuck.read_until("y");

    become_clone(&agent);
    // A new connection on the same channel, as a restored machine's first client has it.
    let again = half.socket.write_all(&hello_bytes(fresh_nonce(), agentiso_guest::PROTOCOL_GENERATION));

    assert!(again.is_err() || half.next::<Reply>().is_none(), "nothing of before answers");
    assert!(agent.ask(&Request::Ping).is_done());
    assert!(!agent.path("file").exists());
    assert_eq!(jobs(&agent).len(), 1);
}

#[test]
fn configuring_connection_itself_goes_on() {
    let agent = Agent::start();
    let _other = running(&agent, "echo ready; exec sleep 1000", false, None);
    let (mut connection, _) = Connection::greet(UnixStream::connect(agent.socket()).unwrap());
    let clone = Configuration { clone: true, ..Configuration::default() };
    connection.request(&Request::Configure(Box::new(clone)));
    assert!(matches!(connection.answer().terminal, Some(Reply::Configured { .. })));

    let (mut connection, _) = Connection::greet(connection.socket);
    connection.request(&Request::Ping);

    assert!(connection.answer().is_done());
}

#[test]
fn configured_tells_the_clocks() {
    let agent = Agent::start();
    let before = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap();

    let answer = agent.ask(&Request::Configure(Box::default()));

    let Some(Reply::Configured { realtime_ns, monotonic_ns, elapsed_ns }) = answer.terminal else {
        panic!("{answer:?}")
    };
    assert!(u128::from(realtime_ns) >= before.as_nanos());
    assert!(monotonic_ns > 0 && elapsed_ns < 10_000_000_000);
}

#[test]
fn connection_lost_while_frozen_becomes_a_job_if_the_host_says_clone() {
    let agent = Agent::start();
    let go = agent.text_path("go");
    let line = format!("trap '' TERM; echo ready; until test -e {go}; do sleep 0.02; done; echo after");
    let connection = running(&agent, &line, false, None);
    if !freeze(&agent) {
        return;
    }

    drop(connection);
    // The agent sees it go, and does not hang the command up.
    wait_for("the lost connection to be noticed", || agent.open_files() < 40);
    become_clone(&agent);
    let listed = jobs(&agent);
    assert!(agent.ask(&THAW).is_done());
    std::fs::write(agent.path("go"), "").unwrap();

    assert_eq!(listed.len(), 1);
    let (stdout, _, job) = wait_for_job(&agent, listed[0].id);
    assert_eq!((stdout.as_slice(), job.exit), (&b"ready\nafter\n"[..], Some(Exit::Code(0))));
}

#[test]
fn connection_lost_while_frozen_is_hung_up_after_a_thaw_without_a_clone() {
    let agent = Agent::start();
    let hung = agent.text_path("hung");
    let line = format!("trap 'echo > {hung}; exit' HUP; echo ready; while :; do sleep 0.02; done");
    let connection = running(&agent, &line, false, None);
    if !freeze(&agent) {
        return;
    }

    drop(connection);
    assert!(agent.ask(&THAW).is_done());

    wait_for("the hang-up", || agent.path("hung").exists());
    assert!(jobs(&agent).is_empty());
}

#[test]
fn stream_goes_on_without_a_byte_lost_after_freeze_and_thaw() {
    let agent = Agent::start();
    let mut connection = agent.connect();
    connection.request(&exec(&["/bin/sh", "-c", "seq 1 100000"]));
    if !freeze(&agent) {
        return;
    }
    assert!(agent.ask(&THAW).is_done());

    let answer = connection.answer();

    let expected: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    assert_eq!(answer.exit(), Exit::Code(0));
    assert!(answer.stdout == expected.as_bytes());
}

#[test]
fn command_that_comes_while_frozen_runs_after_the_thaw_and_never_in_a_clone() {
    let agent = Agent::start();
    if !freeze(&agent) {
        return;
    }
    let mut stale = agent.connect();
    stale.request(&exec(&["touch", &agent.text_path("stale")]));
    assert!(agent.ask(&Request::Ping).is_done());
    become_clone(&agent);
    let mut waiting = agent.connect();
    waiting.request(&exec(&["touch", &agent.text_path("waiting")]));

    assert!(agent.ask(&THAW).is_done());

    assert_eq!(waiting.answer().exit(), Exit::Code(0));
    assert!(stale.next::<Reply>().is_none());
    assert!(agent.path("waiting").exists() && !agent.path("stale").exists());
}

#[test]
fn freezing_and_thawing_twice_has_no_effect() {
    let agent = Agent::start();
    if !freeze(&agent) {
        return;
    }
    let began = Instant::now();

    assert!(agent.ask(&FREEZE).is_done());
    assert!(agent.ask(&THAW).is_done());
    assert!(agent.ask(&THAW).is_done());

    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(agent.shell("true").exit(), Exit::Code(0));
}

/// As of a host process that was killed after it had sent the request: the next one thaws first.
#[test]
fn freeze_that_comes_after_its_thaw_is_refused() {
    let agent = Agent::start();
    if !freeze(&agent) {
        return;
    }
    let later = |first| Request::Freeze { capture: Nonce::from_bytes([first; 16]), timeout_ms: 5000 };

    assert!(agent.ask(&THAW).is_done());
    let late = agent.ask(&FREEZE);
    let unfrozen = agent.shell("true");
    assert!(agent.ask(&later(2)).is_done());
    let late_again = agent.ask(&FREEZE);
    let frozen = agent.shell("true");
    assert!(agent.ask(&Request::Thaw { capture: Nonce::from_bytes([2; 16]) }).is_done());

    assert_eq!(late.error().0, ErrorCode::Conflict);
    assert_eq!(unfrozen.exit(), Exit::Code(0));
    assert_eq!(late_again.error().0, ErrorCode::Conflict);
    assert_eq!(frozen.error().0, ErrorCode::Conflict, "the late one thawed what is not its own");
    assert_eq!(agent.shell("true").exit(), Exit::Code(0));
}
