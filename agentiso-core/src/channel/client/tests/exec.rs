use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use agentiso_guest::message::{Input, Reply, Request};
use tokio::{
    io::AsyncWriteExt,
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use super::fake::{Agent, serving};
use crate::channel::client::*;

const SOON: Duration = Duration::from_secs(10);

async fn started(agent: &mut Agent) {
    agent.reply(Reply::Started { pid: 42 }).await;
}

async fn exited(agent: &mut Agent, exit: Exit) {
    agent.reply(Reply::Exited { exit }).await;
}

/// All of standard input until its end.
async fn stdin_to_end(agent: &mut Agent) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(frame) = agent.input().await {
        match frame.message {
            Input::StdinEnd => break,
            _ => all.extend(frame.payload),
        }
    }
    all
}

async fn next(stream: &mut ExecStream) -> ExecEvent {
    timeout(SOON, stream.next()).await.unwrap().unwrap().unwrap()
}

#[tokio::test]
async fn events_come_in_order_and_end() {
    let client = serving(|_, mut agent| async move {
        started(&mut agent).await;
        agent.stdout(b"out").await;
        agent.stderr(b"err").await;
        exited(&mut agent, Exit::Signal(9)).await;
        agent.stdout(b"never seen").await;
    });
    let mut stream = client.exec(ExecSpec::shell("x")).await.unwrap();

    assert_eq!(next(&mut stream).await, ExecEvent::Started { pid: 42 });
    assert_eq!(next(&mut stream).await, ExecEvent::Stdout(b"out".to_vec()));
    assert_eq!(next(&mut stream).await, ExecEvent::Stderr(b"err".to_vec()));
    assert_eq!(next(&mut stream).await, ExecEvent::Exited(Exit::Signal(9)));
    assert_eq!(stream.next().await.unwrap(), None);
}

#[tokio::test]
async fn request_says_what_was_asked_for() {
    let client = serving(|request, mut agent| async move {
        let expected = Request::Exec {
            command: Command {
                argv: vec!["/bin/sh".to_owned(), "-c".to_owned(), "a b".to_owned()],
                env: [("K".to_owned(), "V".to_owned())].into(),
                workdir: Some("/tmp".to_owned()),
            },
            stdin: true,
            tty: Some(TtySize { columns: 80, rows: 25 }),
            timeout_ms: Some(1),
        };
        let same = request == expected;
        exited(&mut agent, Exit::Code(u8::from(same))).await;
        agent.stay_silent().await;
    });
    let spec = ExecSpec::shell("a b")
        .env("K", "V")
        .workdir("/tmp")
        .stdin()
        .tty(TtySize { columns: 80, rows: 25 })
        .timeout(Duration::from_nanos(1));

    let mut stream = client.exec(spec).await.unwrap();

    assert_eq!(next(&mut stream).await, ExecEvent::Exited(Exit::Code(1)));
}

#[tokio::test]
async fn second_start_and_empty_output_are_refused() {
    let twice = serving(|_, mut agent| async move {
        started(&mut agent).await;
        started(&mut agent).await;
        agent.stay_silent().await;
    });
    let empty = serving(|_, mut agent| async move {
        started(&mut agent).await;
        agent.stdout(b"").await;
        agent.stay_silent().await;
    });

    for client in [twice, empty] {
        let mut stream = client.exec(ExecSpec::shell("x")).await.unwrap();
        next(&mut stream).await;

        let result = stream.next().await;

        assert!(matches!(result, Err(GuestError::Protocol { .. })), "{result:?}");
        assert_eq!(stream.next().await.unwrap(), None);
    }
}

#[tokio::test]
async fn missing_program_is_127() {
    let client = serving(|_, mut agent| async move {
        let message = "no such program: nope".to_owned();
        agent.reply(Reply::Error { code: ErrorCode::NotFound, message }).await;
    });

    let error =
        client.exec_collect(ExecSpec::program(["nope"]), CollectOptions::default()).await.unwrap_err();

    assert_eq!(error.exit_status(), 127);
    assert_eq!(error.to_string(), "could not run a command: no such program: nope");
}

#[test]
fn exit_statuses_are_those_of_a_shell() {
    assert_eq!(exit_status(Exit::Code(0)), 0);
    assert_eq!(exit_status(Exit::Code(255)), 255);
    assert_eq!(exit_status(Exit::Signal(9)), 137);
    assert_eq!(exit_status(Exit::Signal(255)), 255);
    assert_eq!(exit_status(Exit::TimedOut), 124);
}

#[tokio::test]
async fn dropped_stream_closes_the_connection() {
    let (closed, is_closed) = oneshot::channel();
    let closed = std::sync::Mutex::new(Some(closed));
    let client = serving(move |_, mut agent| {
        let closed = closed.lock().unwrap().take().unwrap();
        async move {
            started(&mut agent).await;
            closed.send(agent.is_closed().await).unwrap();
        }
    });
    let mut stream = client.exec(ExecSpec::shell("sleep 1000")).await.unwrap();
    next(&mut stream).await;

    drop(stream);

    assert!(timeout(SOON, is_closed).await.unwrap().unwrap());
}

#[tokio::test]
async fn dropped_events_close_the_connection_and_wake_whoever_writes() {
    let client = serving(|_, mut agent| async move {
        started(&mut agent).await;
        std::future::pending::<()>().await;
    });
    let (mut input, events) = client.exec(ExecSpec::shell("sleep 1000").stdin()).await.unwrap().split();
    let writing = tokio::spawn(async move { input.write_all(&vec![0; 1 << 20]).await });
    sleep(Duration::from_millis(20)).await;
    assert!(!writing.is_finished());

    drop(events);

    let error = timeout(SOON, writing).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn output_that_is_not_taken_stays_in_the_guest() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let client = serving(move |_, mut agent| {
        let sent = counted.clone();
        async move {
            started(&mut agent).await;
            while agent.stdout(&[b'x'; 50_000]).await {
                sent.fetch_add(50_000, Ordering::SeqCst);
            }
        }
    });
    let mut stream = client.exec(ExecSpec::shell("yes")).await.unwrap();
    next(&mut stream).await;

    sleep(Duration::from_millis(100)).await;
    let before = sent.load(Ordering::SeqCst);
    assert!(before <= 200_000, "{before}");

    next(&mut stream).await;
    next(&mut stream).await;
    next(&mut stream).await;
    sleep(Duration::from_millis(100)).await;
    let after = sent.load(Ordering::SeqCst);
    assert!(after > before && after <= 400_000, "{before} then {after}");
}

#[tokio::test]
async fn collected_output_is_cut_and_counted() {
    let client = serving(|_, mut agent| async move {
        started(&mut agent).await;
        for _ in 0..200 {
            agent.stdout(&[b'o'; 1 << 20]).await;
        }
        agent.stderr(b"short").await;
        exited(&mut agent, Exit::Code(0)).await;
    });

    let output = client.exec_collect(ExecSpec::shell("yes"), CollectOptions::default()).await.unwrap();

    let note = "[TRUNCATED: 209715200 bytes total, showing first 262144 bytes]";
    assert_eq!(output.stdout_text(), format!("{}{note}", "o".repeat(262_144)));
    assert_eq!(output.stdout_bytes, 209_715_200);
    assert_eq!(output.stderr_text(), "short");
    assert!(output.success());
}

#[tokio::test]
async fn collected_command_gets_its_input() {
    let client = serving(|request, mut agent| async move {
        assert!(matches!(request, Request::Exec { stdin: true, .. }));
        started(&mut agent).await;
        let input = stdin_to_end(&mut agent).await;
        for chunk in input.chunks(100_000) {
            agent.stdout(chunk).await;
        }
        exited(&mut agent, Exit::Code(0)).await;
        agent.stay_silent().await;
    });
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let options = CollectOptions { max_output_bytes: usize::MAX, stdin: Some(bytes.clone()) };

    let output = client.exec_collect(ExecSpec::program(["cat"]), options).await.unwrap();

    assert!(output.stdout == bytes, "{} bytes", output.stdout.len());
}

#[tokio::test]
async fn command_that_ignores_its_input_still_ends() {
    let client = serving(|_, mut agent| async move {
        started(&mut agent).await;
        exited(&mut agent, Exit::Code(5)).await;
        std::future::pending::<()>().await;
    });
    let options = CollectOptions { stdin: Some(vec![0; 1 << 20]), ..CollectOptions::default() };

    let output = timeout(SOON, client.exec_collect(ExecSpec::shell("x"), options)).await.unwrap().unwrap();

    assert_eq!(output.exit_code(), 5);
}

#[tokio::test]
async fn command_that_timed_out_keeps_its_output() {
    let client = serving(|request, mut agent| async move {
        assert!(matches!(request, Request::Exec { timeout_ms: Some(120_000), .. }));
        started(&mut agent).await;
        agent.stdout(b"so far").await;
        exited(&mut agent, Exit::TimedOut).await;
    });

    let output = client.exec_collect(ExecSpec::shell("x"), CollectOptions::default()).await.unwrap();

    assert_eq!((output.exit_code(), &*output.stdout), (124, &b"so far"[..]));
}

#[tokio::test(start_paused = true)]
async fn guest_that_never_ends_a_command_is_given_up_five_seconds_later() {
    let client = serving(|_, mut agent| async move {
        started(&mut agent).await;
        agent.stdout(b"so far").await;
        agent.stay_silent().await;
    });
    let began = Instant::now();

    let output = client.exec_collect(ExecSpec::shell("x"), CollectOptions::default()).await.unwrap();

    assert_eq!((output.exit, &*output.stdout), (Exit::TimedOut, &b"so far"[..]));
    assert_eq!(began.elapsed().as_secs(), 125);
}

#[tokio::test(start_paused = true)]
async fn guest_that_never_starts_a_command_is_an_error() {
    let client = serving(|_, agent| agent.stay_silent());
    let spec = ExecSpec::shell("x").timeout(Duration::from_secs(3));

    let result = client.exec_collect(spec, CollectOptions::default()).await;

    assert!(matches!(result, Err(GuestError::Timeout { after, .. }) if after.as_secs() == 8), "{result:?}");
}

#[tokio::test]
async fn signals_sizes_and_input_arrive_in_order() {
    let client = serving(|_, mut agent| async move {
        started(&mut agent).await;
        let mut seen = Vec::new();
        while let Some(frame) = agent.input().await {
            seen.push((frame.message, frame.payload));
            if frame.message == Input::StdinEnd {
                break;
            }
        }
        let size = TtySize { columns: 100, rows: 30 };
        assert_eq!(
            seen,
            [
                (Input::Stdin { payload: 2 }, b"hi".to_vec()),
                (Input::Signal { signal: 2 }, Vec::new()),
                (Input::Resize { size }, Vec::new()),
                (Input::StdinEnd, Vec::new()),
            ]
        );
        exited(&mut agent, Exit::Code(0)).await;
    });
    let mut stream = client.exec(ExecSpec::shell("x").stdin()).await.unwrap();
    next(&mut stream).await;

    let input = stream.input();
    input.write_all(b"hi").await.unwrap();
    input.signal(2).await.unwrap();
    input.resize(TtySize { columns: 100, rows: 30 }).await.unwrap();
    input.shutdown().await.unwrap();
    input.shutdown().await.unwrap();

    assert_eq!(next(&mut stream).await, ExecEvent::Exited(Exit::Code(0)));
}

#[tokio::test]
async fn input_that_was_not_asked_for_is_refused() {
    let client = serving(|_, agent| agent.stay_silent());
    let mut stream = client.exec(ExecSpec::shell("x")).await.unwrap();

    let error = stream.input().write_all(b"hi").await.unwrap_err();

    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    stream.input().signal(15).await.unwrap();
}

#[tokio::test]
async fn cancelled_writes_never_cut_a_message_short() {
    const PIECE: usize = 50_000;
    let client = serving(|_, mut agent| async move {
        started(&mut agent).await;
        let mut pieces = 0;
        // Slowly, so that most writes are cancelled in the middle. An unsound message fails in `input`.
        while let Some(frame) = agent.input().await {
            sleep(Duration::from_millis(2)).await;
            match frame.message {
                Input::StdinEnd => break,
                Input::Signal { .. } => {}
                _ => pieces += frame.payload.iter().filter(|byte| **byte == b'#').count(),
            }
        }
        agent.stdout(pieces.to_string().as_bytes()).await;
        exited(&mut agent, Exit::Code(0)).await;
    });
    let mut stream = client.exec(ExecSpec::shell("x").stdin()).await.unwrap();
    next(&mut stream).await;
    let mut piece = vec![b'.'; PIECE];
    piece[0] = b'#';

    let mut taken = 0;
    let mut cancelled = 0;
    for _ in 0..200 {
        let writing = pin!(stream.input().write(&piece));
        match timeout(Duration::from_micros(300), writing).await {
            Ok(written) => taken += usize::from(written.unwrap() == PIECE),
            Err(_elapsed) => cancelled += 1,
        }
        let _ = timeout(Duration::from_micros(100), stream.input().signal(1)).await;
    }
    stream.input().shutdown().await.unwrap();

    assert!(taken > 0 && cancelled > 0, "{taken} taken, {cancelled} cancelled");
    assert_eq!(next(&mut stream).await, ExecEvent::Stdout(taken.to_string().into_bytes()));
}

#[tokio::test]
async fn attached_job_streams_and_outlives_the_stream() {
    let client = serving(|request, mut agent| async move {
        assert_eq!(request, Request::JobAttach { job: 3 });
        agent.stdout(b"kept").await;
        exited(&mut agent, Exit::Code(0)).await;
    });
    let mut stream = client.job_attach(3).await.unwrap();

    assert_eq!(next(&mut stream).await, ExecEvent::Stdout(b"kept".to_vec()));
    assert_eq!(next(&mut stream).await, ExecEvent::Exited(Exit::Code(0)));
}
