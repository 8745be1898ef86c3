use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use agentiso_core::channel::client::*;
use tokio::{io::AsyncWriteExt, time::timeout};

use crate::agent::{Agent, SOON, wait_for};

async fn run(agent: &Agent, command: &str) -> ExecOutput {
    agent.client.exec_collect(ExecSpec::shell(command), CollectOptions::default()).await.unwrap()
}

/// Everything a stream still brings: both outputs and how the command ended.
async fn rest(stream: &mut ExecStream) -> (String, String, Option<Exit>) {
    let (mut stdout, mut stderr, mut exit) = (Vec::new(), Vec::new(), None);
    while let Some(event) = timeout(SOON, stream.next()).await.unwrap().unwrap() {
        match event {
            ExecEvent::Started { .. } => {}
            ExecEvent::Stdout(bytes) => stdout.extend(bytes),
            ExecEvent::Stderr(bytes) => stderr.extend(bytes),
            ExecEvent::Exited(how) => exit = Some(how),
        }
    }
    (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap(), exit)
}

/// Reads until standard output has brought this text.
async fn read_until(stream: &mut ExecStream, text: &str) {
    let mut seen = String::new();
    while !seen.contains(text) {
        let event = timeout(SOON, stream.next()).await.unwrap().unwrap();
        if let Some(ExecEvent::Stdout(bytes)) = event {
            seen.push_str(&String::from_utf8_lossy(&bytes));
        }
    }
}

#[tokio::test]
async fn agent_answers_pings_and_says_what_it_is() {
    let agent = Agent::start();

    for _ in 0..100 {
        agent.client.ping().await.unwrap();
    }
    let info = agent.client.info().await.unwrap();

    assert!(!info.kernel.is_empty() && info.memory_kib > 0, "{info:?}");
}

#[tokio::test]
async fn command_has_status_and_separate_streams() {
    let agent = Agent::start();

    let output = run(&agent, "echo out; echo err >&2; exit 3").await;

    assert_eq!((output.stdout_text(), output.stderr_text()), ("out\n".into(), "err\n".into()));
    assert_eq!(output.exit, Exit::Code(3));
    assert_eq!(run(&agent, "kill -9 $$").await.exit_code(), 137);
}

#[tokio::test]
async fn missing_and_unfit_programs_are_told_apart() {
    let agent = Agent::start();
    let unfit = agent.path("unfit");
    std::fs::write(&unfit, "text").unwrap();

    let collect =
        |program: &str| agent.client.exec_collect(ExecSpec::program([program]), CollectOptions::default());
    let missing = collect("/no/such/program").await.unwrap_err();
    let not_executable = collect(&unfit).await.unwrap_err();

    assert_eq!(missing.exit_status(), 127, "{missing}");
    assert_eq!(not_executable.exit_status(), 126, "{not_executable}");
}

#[tokio::test]
async fn input_comes_back_through_cat() {
    let agent = Agent::start();
    let input: Vec<u8> = (0..5_000_000_u32).map(|n| (n % 251) as u8).collect();
    let options = CollectOptions { max_output_bytes: usize::MAX, stdin: Some(input.clone()) };

    let output = agent.client.exec_collect(ExecSpec::program(["cat"]), options).await.unwrap();

    assert!(output.stdout == input, "{} bytes", output.stdout.len());
    assert!(output.success());
}

#[tokio::test]
async fn two_hundred_megabytes_are_read_to_the_end_and_cut() {
    let agent = Agent::start();

    let output = run(&agent, "head -c 200000000 /dev/zero").await;

    assert_eq!(output.stdout_bytes, 200_000_000);
    let note = b"[TRUNCATED: 200000000 bytes total, showing first 262144 bytes]";
    assert_eq!(output.stdout.len(), 262_144 + note.len());
    assert!(output.stdout.ends_with(note) && output.success());
}

#[tokio::test]
async fn timeout_kills_children_and_keeps_the_output() {
    let agent = Agent::start();
    let spec = ExecSpec::shell("echo so far; sleep 1000 & sleep 1000").timeout(Duration::from_millis(500));
    let began = Instant::now();

    let output = agent.client.exec_collect(spec, CollectOptions::default()).await.unwrap();

    assert_eq!((output.exit, output.stdout_text()), (Exit::TimedOut, "so far\n".into()));
    assert!(began.elapsed() < SOON);
}

#[tokio::test]
async fn background_child_does_not_hold_the_reply() {
    let agent = Agent::start();
    let began = Instant::now();

    let output = run(&agent, "sleep 30 & echo done").await;

    assert_eq!(output.stdout_text(), "done\n");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[tokio::test]
async fn dropped_stream_hangs_the_command_up() {
    let agent = Agent::start();
    let told = agent.path("hung-up");
    let script = format!("trap 'echo > {told}; exit' HUP; echo ready; while :; do sleep 0.05; done");
    let mut stream = agent.client.exec(ExecSpec::shell(script)).await.unwrap();
    read_until(&mut stream, "ready\n").await;

    drop(stream);

    wait_for("the command heard SIGHUP", || std::path::Path::new(&told).exists());
}

#[tokio::test]
async fn signal_reaches_the_command() {
    let agent = Agent::start();
    let script = "trap 'echo got it; exit 9' USR1; echo ready; while :; do sleep 0.05; done";
    let mut stream = agent.client.exec(ExecSpec::shell(script)).await.unwrap();
    read_until(&mut stream, "ready\n").await;

    stream.input().signal(10).await.unwrap();

    // The shell tells on standard error that its `sleep` heard the signal too.
    let (stdout, _, exit) = rest(&mut stream).await;
    assert_eq!((&*stdout, exit), ("got it\n", Some(Exit::Code(9))));
}

#[tokio::test]
async fn terminal_has_its_size_and_takes_another() {
    let agent = Agent::start();
    let spec = ExecSpec::shell("stty size; read line; stty size; test -t 0 && test -t 1 && test -t 2")
        .stdin()
        .tty(TtySize { columns: 81, rows: 26 });
    let mut stream = agent.client.exec(spec).await.unwrap();
    read_until(&mut stream, "26 81").await;

    stream.input().resize(TtySize { columns: 100, rows: 40 }).await.unwrap();
    stream.input().write_all(b"\n").await.unwrap();
    stream.input().flush().await.unwrap();

    let (stdout, _, exit) = rest(&mut stream).await;
    assert!(stdout.contains("40 100"), "{stdout:?}");
    assert_eq!(exit, Some(Exit::Code(0)));
}

#[tokio::test]
async fn environment_and_folder_are_as_asked() {
    let agent = Agent::start();
    let vars = BTreeMap::from([("KEPT".to_owned(), Some("for all".to_owned()))]);
    agent.client.env_set(vars).await.unwrap();
    let spec = ExecSpec::shell("echo $KEPT $OWN; pwd").env("OWN", "for one").workdir("/usr");

    let set = agent.client.exec_collect(spec, CollectOptions::default()).await.unwrap();
    agent.client.env_clear().await.unwrap();
    let cleared = run(&agent, "echo $KEPT.").await;

    assert_eq!(set.stdout_text(), "for all for one\n/usr\n");
    assert_eq!(cleared.stdout_text(), ".\n");
}

#[tokio::test]
async fn variables_that_would_take_over_the_shell_are_refused() {
    let agent = Agent::start();
    for name in ["ENV", "BASH_ENV", "LD_PRELOAD", "BASH_FUNC_ls%%", "A=B", ""] {
        let spec = ExecSpec::shell("true").env(name, "x");

        let result = agent.client.exec_collect(spec, CollectOptions::default()).await;

        assert!(
            matches!(result, Err(GuestError::Refused { code: ErrorCode::Invalid, .. })),
            "{name}: {result:?}"
        );
    }
}

#[tokio::test]
async fn sixty_four_are_served_and_the_next_is_told() {
    let agent = Agent::start();
    let mut running = Vec::new();
    for _ in 0..64 {
        let mut stream = agent.client.exec(ExecSpec::program(["sleep", "1000"])).await.unwrap();
        assert!(matches!(stream.next().await, Ok(Some(ExecEvent::Started { .. }))));
        running.push(stream);
    }
    let hurried = agent.client.clone().with_connect_limit(Duration::from_millis(200));

    let busy = hurried.ping().await;
    running.pop();

    assert!(matches!(busy, Err(GuestError::AgentBusy { .. })), "{busy:?}");
    agent.client.ping().await.unwrap();
}

#[tokio::test]
async fn agent_that_was_killed_is_gone() {
    let agent = Agent::start();
    let client = agent.client.clone();
    let mut stream = client.exec(ExecSpec::program(["sleep", "1000"])).await.unwrap();
    assert!(matches!(stream.next().await, Ok(Some(ExecEvent::Started { .. }))));

    drop(agent);

    let lost = timeout(SOON, stream.next()).await.unwrap();
    assert!(!matches!(lost, Ok(Some(ExecEvent::Stdout(_)))), "{lost:?}");
    assert!(client.ping().await.is_err());
}
