//! Commands: streams, ends, time limits, terminals, lost connections.

use std::time::{Duration, Instant};

use agentiso_guest::limits::{HANGUP_GRACE_MS, MAX_ARGUMENT_BYTES, MAX_ARGUMENTS};
use agentiso_guest::message::{Command, ErrorCode, Exit, Input, Reply, Request, TtySize};

use crate::client::{Agent, command, exec, wait_for};

/// Memory that the agent may have at any time, in KiB.
const MEMORY_LIMIT_KIB: u64 = 32 * 1024;

fn shell(line: &str) -> Command {
    command(&["/bin/sh", "-c", line])
}

fn limited(line: &str, timeout_ms: u64) -> Request {
    Request::Exec { command: shell(line), stdin: false, tty: None, timeout_ms: Some(timeout_ms) }
}

fn on_terminal(line: &str, columns: u16, rows: u16) -> Request {
    Request::Exec {
        command: shell(line),
        stdin: true,
        tty: Some(TtySize { columns, rows }),
        timeout_ms: None,
    }
}

/// Whether the process whose number a file holds is there and no zombie.
fn is_running(file: &str) -> bool {
    let pid = std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<u32>().ok());
    let stat = pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok());
    stat.is_some_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}

#[test]
fn streams_and_status_arrive_apart() {
    let agent = Agent::start();

    let answer = agent.shell("echo out; echo err >&2; exit 3");

    assert_eq!(answer.stdout, b"out\n");
    assert_eq!(answer.stderr, b"err\n");
    assert_eq!(answer.exit(), Exit::Code(3));
}

#[test]
fn end_by_a_signal_is_told() {
    let agent = Agent::start();

    assert_eq!(agent.shell("kill -TERM $$").exit(), Exit::Signal(15));
}

#[test]
fn two_hundred_megabytes_of_output_arrive_in_bounded_memory() {
    const BYTES: u64 = 200 * 1024 * 1024;
    let agent = Agent::start();
    let mut connection = agent.connect();
    connection.request(&exec(&["head", "-c", &BYTES.to_string(), "/dev/zero"]));
    let mut received = 0;

    let terminal = connection.stream(|frame| received += frame.payload.len() as u64);

    assert_eq!(received, BYTES);
    assert_eq!(terminal, Reply::Exited { exit: Exit::Code(0) });
    assert!(agent.resident_kib() < MEMORY_LIMIT_KIB, "{} KiB", agent.resident_kib());
}

#[test]
fn slow_reader_costs_no_memory_holds_nobody_up_and_loses_nothing() {
    const BYTES: usize = 8 * 1024 * 1024;
    let agent = Agent::start();
    let mut slow = agent.connect();
    slow.request(&exec(&["head", "-c", &BYTES.to_string(), "/dev/zero"]));

    for _ in 0..100 {
        assert!(agent.ask(&Request::Ping).is_done());
    }

    assert!(agent.resident_kib() < MEMORY_LIMIT_KIB, "{} KiB", agent.resident_kib());
    assert_eq!(slow.answer().stdout.len(), BYTES);
}

#[test]
fn standard_input_reaches_the_command_and_ends() {
    let agent = Agent::start();
    let mut connection = agent.connect();
    connection.request(&Request::Exec {
        command: command(&["cat"]),
        stdin: true,
        tty: None,
        timeout_ms: None,
    });
    let mut writer = connection.writer();

    let answer = std::thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..10 {
                writer.stdin(&[b'x'; 100_000]);
            }
            writer.input(&Input::StdinEnd, &[]);
        });
        connection.answer()
    });

    assert_eq!(answer.stdout.len(), 1_000_000);
    assert_eq!(answer.exit(), Exit::Code(0));
}

#[test]
fn command_without_standard_input_reads_its_end() {
    let agent = Agent::start();

    assert_eq!(agent.shell("cat; echo end").stdout, b"end\n");
}

#[test]
fn background_child_does_not_hold_the_reply_and_lives_on() {
    let agent = Agent::start();
    let (go, done) = (agent.text_path("go"), agent.text_path("done"));
    // More than a pipe holds: undrained the child would block, and die of SIGPIPE if the pipe were closed.
    let child = format!("until test -e {go}; do sleep 0.05; done; head -c 200000 /dev/zero && touch {done}");

    let answer = agent.shell(&format!("({child}) & echo started"));
    assert_eq!(answer.stdout, b"started\n");
    assert!(!agent.path("done").exists());
    std::fs::write(agent.path("go"), "").unwrap();

    wait_for("the child that outlives its command", || agent.path("done").exists());
}

#[test]
fn time_limit_kills_the_whole_group_and_keeps_the_output() {
    let agent = Agent::start();
    let (parent, child) = (agent.text_path("parent"), agent.text_path("child"));

    let answer = agent.ask(&limited(
        &format!("echo before; echo $$ > {parent}; sleep 1000 & echo $! > {child}; wait"),
        500,
    ));

    assert_eq!(answer.stdout, b"before\n");
    assert_eq!(answer.exit(), Exit::TimedOut);
    wait_for("the end of the parent", || !is_running(&parent));
    wait_for("the end of the child", || !is_running(&child));
}

#[test]
fn time_limit_holds_although_the_host_does_not_read() {
    let agent = Agent::start();
    let pid = agent.text_path("pid");
    let mut connection = agent.connect();

    connection.request(&limited(&format!("echo $$ > {pid}; exec cat /dev/zero"), 300));

    wait_for("the command's start", || is_running(&pid));
    wait_for("the command's end", || !is_running(&pid));
    assert_eq!(connection.answer().exit(), Exit::TimedOut);
}

#[test]
fn signal_reaches_the_process_group() {
    let agent = Agent::start();
    let mut connection = agent.connect();
    let line = "trap 'echo caught; exit 7' USR1; echo ready; while :; do sleep 0.05; done";
    connection.request(&exec(&["/bin/sh", "-c", line]));
    connection.read_until("ready");

    connection.input(&Input::Signal { signal: 10 }, &[]);

    connection.read_until("caught");
    assert_eq!(connection.answer().exit(), Exit::Code(7));
}

#[test]
fn lost_connection_hangs_up_then_kills() {
    let agent = Agent::start();
    let (polite, stubborn) = (agent.text_path("polite"), agent.text_path("stubborn"));
    let mut connection = agent.connect();
    let line = format!(
        "(trap '' HUP; sh -c 'echo $$ > {stubborn}; exec sleep 1000') & sh -c 'echo $$ > {polite}; exec sleep 1000'"
    );
    connection.request(&exec(&["/bin/sh", "-c", &line]));
    wait_for("both", || is_running(&stubborn) && is_running(&polite));
    let begin = Instant::now();

    drop(connection);

    wait_for("the end of the polite one", || !is_running(&polite));
    assert!(begin.elapsed() < Duration::from_millis(HANGUP_GRACE_MS), "{:?}", begin.elapsed());
    wait_for("the end of the stubborn one", || !is_running(&stubborn));
    assert!(begin.elapsed() >= Duration::from_millis(HANGUP_GRACE_MS), "{:?}", begin.elapsed());
}

#[test]
fn terminal_is_one_with_the_size_told() {
    let agent = Agent::start();
    let mut connection = agent.connect();
    connection.request(&on_terminal("test -t 0 && test -t 2 && stty size && exec sh", 91, 27));

    connection.read_until("27 91");
    connection.input(&Input::Resize { size: TtySize { columns: 33, rows: 12 } }, &[]);
    connection.stdin(b"stty size; echo $TERM\n");
    let seen = connection.read_until("xterm-256color");
    assert!(seen.contains("12 33"), "{seen}");
    connection.input(&Input::StdinEnd, &[]);

    assert_eq!(connection.answer().exit(), Exit::Code(0));
}

#[test]
fn interrupt_character_of_a_terminal_interrupts() {
    let agent = Agent::start();
    let mut connection = agent.connect();
    connection.request(&on_terminal("echo ready; exec sleep 1000", 80, 24));
    connection.read_until("ready");

    connection.stdin(b"\x03");

    assert_eq!(connection.answer().exit(), Exit::Signal(2));
}

#[test]
fn missing_program_says_so() {
    let agent = Agent::start();

    for program in ["no-such-program", "/no/such/program"] {
        let answer = agent.ask(&exec(&[program]));
        assert_eq!(answer.error().0, ErrorCode::NotFound);
        assert!(answer.error().1.contains(program), "{}", answer.error().1);
    }
}

#[test]
fn script_whose_interpreter_is_missing_says_so() {
    let agent = Agent::start();
    let script = agent.text_path("script");
    agent.shell(&format!("printf '#!/no/such\\n' > {script}; chmod 755 {script}"));

    let answer = agent.ask(&exec(&[&script]));

    assert_eq!(answer.error().0, ErrorCode::NotFound);
    assert!(answer.error().1.contains("interpreter"), "{}", answer.error().1);
}

#[test]
fn script_without_an_interpreter_line_runs_in_the_shell() {
    let agent = Agent::start();
    let script = agent.text_path("script");
    agent.shell(&format!("echo 'echo \"<$1>\"' > {script}; chmod 755 {script}"));

    assert_eq!(agent.ask(&exec(&[&script, "a b"])).stdout, b"<a b>\n");
}

#[test]
fn file_that_is_no_program_is_not_permitted() {
    let agent = Agent::start();

    assert_eq!(agent.ask(&exec(&["/etc/passwd"])).error().0, ErrorCode::NotPermitted);
    assert_eq!(agent.ask(&exec(&["/etc"])).error().0, ErrorCode::NotPermitted);
}

#[test]
fn wrong_commands_are_refused() {
    let agent = Agent::start();
    let in_folder = |workdir: &str| Request::Exec {
        command: Command { workdir: Some(workdir.to_owned()), ..command(&["true"]) },
        stdin: false,
        tty: None,
        timeout_ms: None,
    };

    assert_eq!(agent.ask(&exec(&[])).error().0, ErrorCode::Invalid);
    assert_eq!(agent.ask(&exec(&[""])).error().0, ErrorCode::Invalid);
    assert_eq!(agent.ask(&exec(&["echo", "a\0b"])).error().0, ErrorCode::Invalid);
    assert_eq!(agent.ask(&in_folder("tmp")).error().0, ErrorCode::Invalid);
    assert_eq!(agent.ask(&in_folder("/no/such")).error().0, ErrorCode::NotFound);
}

#[test]
fn arguments_are_limited_in_number_and_length() {
    let agent = Agent::start();
    let many = |count: usize| exec(&["true"].into_iter().cycle().take(count).collect::<Vec<_>>());
    let long = "x".repeat(MAX_ARGUMENT_BYTES);

    assert_eq!(agent.ask(&many(MAX_ARGUMENTS)).exit(), Exit::Code(0));
    assert_eq!(agent.ask(&many(MAX_ARGUMENTS + 1)).error().0, ErrorCode::Exhausted);
    assert_eq!(agent.ask(&exec(&["true", &long])).error().0, ErrorCode::Exhausted);
}

#[test]
fn command_has_no_descriptor_of_the_agent_and_default_signals() {
    let agent = Agent::start();

    let answer = agent.shell("ls /proc/self/fd; grep -E '^Sig(Blk|Ign)' /proc/self/status | tr -d '\\t'");

    // 3 is the listing's own.
    assert_eq!(answer.text(), "0\n1\n2\n3\nSigBlk:0000000000000000\nSigIgn:0000000000000000\n");
}

#[test]
fn many_commands_leave_no_descriptor_and_no_zombie_behind() {
    let agent = Agent::start();
    agent.shell("true");
    let before = agent.open_files();

    for _ in 0..50 {
        assert_eq!(agent.shell("true").exit(), Exit::Code(0));
    }

    wait_for("the agent to close what it opened", || agent.open_files() <= before + 4);
    assert_eq!(agent.shell("ps -o stat= --ppid $PPID | grep -c Z").text().trim(), "0");
}

#[test]
fn twenty_commands_run_at_once() {
    let agent = Agent::start();
    let agent = &agent;
    let gate = agent.text_path("gate");
    let line = |number| {
        format!("echo x >> {gate}; until test $(wc -l < {gate}) -ge 20; do sleep 0.05; done; echo {number}")
    };

    // None ends before all run.
    let outputs: Vec<String> = std::thread::scope(|scope| {
        let runs: Vec<_> =
            (0..20).map(line).map(|line| scope.spawn(move || agent.shell(&line).text())).collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });

    assert_eq!(outputs, (0..20).map(|number| format!("{number}\n")).collect::<Vec<_>>());
}
