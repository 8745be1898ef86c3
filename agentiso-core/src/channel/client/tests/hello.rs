use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use agentiso_guest::{
    PROTOCOL_GENERATION,
    hello::{Nonce, Verdict},
    message::{Reply, Request},
};
use tokio::time::{Instant, sleep};

use super::fake::{Agent, client, client_with_lanes, encoded, encoded_welcome};
use crate::channel::{ChannelError, client::*};

fn stale_nonce() -> Nonce {
    Nonce::from_bytes([7; 16])
}

/// Everything an earlier connection may have left in the channel.
fn stale_bytes() -> Vec<u8> {
    let mut bytes = b"\xff\0\0{\"welcome\":\"".to_vec();
    bytes.extend(encoded_welcome(stale_nonce(), Verdict::Accepted, PROTOCOL_GENERATION));
    bytes.extend(encoded(&Reply::Done, &[], stale_nonce()));
    bytes.extend(encoded(&Reply::Stdout { payload: 3 }, b"old", stale_nonce()));
    // A message that never ended.
    bytes.extend(1_000_000_u32.to_be_bytes());
    bytes.extend(b"{\"re\":\"error\"");
    bytes
}

fn is_no_answer(result: &Result<(), GuestError>) -> bool {
    matches!(result, Err(GuestError::Channel { source: ChannelError::NoAnswer { .. }, .. }))
}

#[tokio::test]
async fn what_comes_before_the_welcome_is_discarded() {
    let client = client(|_, mut agent| async move {
        let nonce = agent.hello().await;
        agent.raw(&stale_bytes()).await;
        agent.welcome(nonce).await;
        assert_eq!(agent.request().await, Request::Ping);
        agent.reply(Reply::Done).await;
    });

    client.ping().await.unwrap();
}

#[tokio::test]
async fn a_megabyte_of_garbage_before_the_welcome_is_discarded() {
    let client = client(|_, mut agent| async move {
        let nonce = agent.hello().await;
        agent.raw(&stale_bytes().repeat(5000)).await;
        agent.welcome(nonce).await;
        agent.request().await;
        agent.reply(Reply::Done).await;
    });

    client.ping().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn welcome_for_another_nonce_is_never_taken() {
    let client = client(|_, mut agent| async move {
        agent.hello().await;
        agent.welcome(stale_nonce()).await;
        agent.reply(Reply::Done).await;
        agent.stay_silent().await;
    });

    let result = client.ping().await;

    assert!(is_no_answer(&result), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn silent_agent_is_given_up_at_the_connect_limit() {
    for limit in [CONNECT_LIMIT, Duration::from_secs(60), Duration::from_millis(20)] {
        let client = client(|_, agent| agent.stay_silent()).with_connect_limit(limit);
        let began = Instant::now();

        let result = client.ping().await;

        assert!(is_no_answer(&result), "{result:?}");
        let took = began.elapsed();
        assert!(took >= limit && took < limit + Duration::from_secs(1), "{took:?} for {limit:?}");
    }
}

#[tokio::test]
async fn endless_garbage_is_given_up_at_the_connect_limit() {
    let client = client(|_, mut agent| async move { while agent.raw(&[b'x'; 8192]).await {} })
        .with_connect_limit(Duration::from_millis(200));

    let result = client.ping().await;

    assert!(is_no_answer(&result), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn welcome_of_one_byte_a_second_is_given_up_at_the_connect_limit() {
    let client = client(|_, mut agent| async move {
        let nonce = agent.hello().await;
        for byte in encoded_welcome(nonce, Verdict::Accepted, PROTOCOL_GENERATION) {
            agent.raw(&[byte]).await;
            sleep(Duration::from_secs(1)).await;
        }
    });

    let result = client.ping().await;

    assert!(is_no_answer(&result), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn hello_is_sent_again_every_half_second_with_the_same_nonce() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let script_seen = seen.clone();
    let client = client_with_lanes(1, move |_, mut agent| {
        let seen = script_seen.clone();
        async move {
            let began = Instant::now();
            for _ in 0..5 {
                let nonce = agent.hello().await;
                seen.lock().unwrap().push((nonce, began.elapsed()));
            }
            let nonce = agent.hello().await;
            agent.welcome(nonce).await;
            assert_eq!(agent.request().await, Request::EnvClear);
            agent.reply(Reply::Done).await;
        }
    });

    client.env_clear().await.unwrap();

    let seen = seen.lock().unwrap();
    let times: Vec<_> = seen.iter().map(|(_, at)| at.as_millis()).collect();
    assert!(seen.iter().all(|(nonce, _)| *nonce == seen[0].0));
    for (index, time) in times.iter().enumerate() {
        assert!(time.abs_diff(index as u128 * 500) < 50, "{times:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn silent_lane_is_left_for_another() {
    let client = client(|number, mut agent| async move {
        if number == 0 {
            return agent.stay_silent().await;
        }
        agent.accept().await;
        agent.request().await;
        agent.reply(Reply::Done).await;
    });
    let began = Instant::now();

    client.ping().await.unwrap();

    assert!(began.elapsed() >= Duration::from_millis(1500), "{:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_millis(1700), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn only_lane_is_kept_however_long_it_is_silent() {
    let client = client_with_lanes(1, |_, mut agent| async move {
        sleep(Duration::from_millis(4200)).await;
        let mut nonce = agent.hello().await;
        while agent.waiting_bytes(Duration::from_millis(1)).await > 0 {
            nonce = agent.hello().await;
        }
        agent.welcome(nonce).await;
        agent.request().await;
        agent.reply(Reply::Done).await;
    });

    client.env_clear().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn guest_that_needs_two_seconds_to_answer_is_not_abandoned_for_ever() {
    // Each lane answers 2 s after it was connected: none is left too early for good.
    let client = client(|_, mut agent| async move {
        let nonce = agent.hello().await;
        sleep(Duration::from_secs(2)).await;
        agent.welcome(nonce).await;
        agent.stay_silent().await;
    });

    let result = client.exec(ExecSpec::shell("true")).await;

    assert!(result.is_ok(), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn read_only_request_goes_out_with_the_hello() {
    let client = client(|_, mut agent| async move {
        let nonce = agent.hello().await;
        // The welcome waits for the request: a client that waited for the welcome would be stuck.
        assert_eq!(agent.request().await, Request::Ping);
        agent.welcome(nonce).await;
        agent.reply(Reply::Done).await;
    });
    let began = Instant::now();

    client.ping().await.unwrap();

    assert!(began.elapsed() < Duration::from_millis(400), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn read_only_request_that_was_lost_with_its_hello_is_sent_again() {
    let client = client_with_lanes(1, |_, mut agent| async move {
        let lost = agent.hello().await;
        agent.request().await;
        let nonce = agent.hello().await;
        assert_ne!(nonce, lost);
        // What the first would have been answered must not be taken for the answer.
        agent.raw(&encoded_welcome(lost, Verdict::Accepted, PROTOCOL_GENERATION)).await;
        agent.raw(&encoded(&Reply::Jobs { jobs: Vec::new() }, &[], lost)).await;
        agent.welcome(nonce).await;
        assert_eq!(agent.request().await, Request::Ping);
        agent.reply(Reply::Done).await;
    });

    client.ping().await.unwrap();
}

/// Says nothing for 1.2 s, then welcomes the first hello and serves the request behind it; counts the requests that come.
async fn answer_late(mut agent: Agent, requests: Arc<AtomicUsize>) {
    sleep(Duration::from_millis(1200)).await;
    agent.accept().await;
    agent.request().await;
    requests.fetch_add(1, Ordering::SeqCst);
    for _ in 0..2 {
        // The same hello again, which an agent passes over.
        agent.hello().await;
        assert!(!agent.is_announced());
    }
    agent.reply(Reply::Started { pid: 7 }).await;
    agent.reply(Reply::Exited { exit: Exit::Code(0) }).await;
    assert!(agent.is_closed().await, "more than one request was sent");
}

#[tokio::test(start_paused = true)]
async fn command_is_sent_once_however_often_the_hello_was() {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    let client = client(move |_, agent| answer_late(agent, counted.clone()));

    let output = client.exec_collect(ExecSpec::shell("true"), CollectOptions::default()).await.unwrap();

    assert_eq!(output.exit, Exit::Code(0));
    assert_eq!(requests.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn command_goes_out_with_a_hello_that_says_so() {
    let client = client(|_, mut agent| async move {
        let nonce = agent.hello().await;
        assert!(agent.is_announced());
        // The welcome waits for the request: a client that waited for the welcome would be stuck.
        assert!(matches!(agent.request().await, Request::Exec { .. }));
        agent.welcome(nonce).await;
        agent.reply(Reply::Started { pid: 7 }).await;
        agent.reply(Reply::Exited { exit: Exit::Code(3) }).await;
    });
    let began = Instant::now();

    let output = client.exec_collect(ExecSpec::shell("exit 3"), CollectOptions::default()).await.unwrap();

    assert_eq!(output.exit, Exit::Code(3));
    assert!(began.elapsed() < Duration::from_millis(400), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn command_that_was_lost_with_its_hello_is_sent_after_the_welcome() {
    let client = client_with_lanes(1, |_, mut agent| async move {
        let lost = agent.hello().await;
        agent.request().await;
        let nonce = agent.hello().await;
        assert_eq!(nonce, lost);
        assert_eq!(agent.waiting_bytes(Duration::from_millis(100)).await, 0);
        agent.welcome(nonce).await;
        assert!(matches!(agent.request().await, Request::Exec { .. }));
        agent.reply(Reply::Started { pid: 7 }).await;
        agent.reply(Reply::Exited { exit: Exit::Code(0) }).await;
    });

    let output = client.exec_collect(ExecSpec::shell("true"), CollectOptions::default()).await.unwrap();

    assert_eq!(output.exit, Exit::Code(0));
}

#[tokio::test(start_paused = true)]
async fn silent_lane_with_a_command_is_left_only_when_the_agent_says_it_was_not_begun() {
    for is_begun in [false, true] {
        let commands = Arc::new(AtomicUsize::new(0));
        let counted = commands.clone();
        let client = client(move |number, mut agent| {
            let commands = counted.clone();
            async move {
                if number == 0 {
                    return agent.stay_silent().await;
                }
                agent.accept().await;
                match agent.request().await {
                    Request::Void { .. } if is_begun => {
                        let message = "begun".to_owned();
                        agent.reply(Reply::Error { code: ErrorCode::Conflict, message }).await;
                    }
                    Request::Void { .. } => drop(agent.reply(Reply::Done).await),
                    _ => {
                        commands.fetch_add(1, Ordering::SeqCst);
                        agent.reply(Reply::Started { pid: 7 }).await;
                        agent.reply(Reply::Exited { exit: Exit::Code(0) }).await;
                    }
                }
            }
        });

        let result = client.exec_collect(ExecSpec::shell("true"), CollectOptions::default()).await;

        assert_eq!(commands.load(Ordering::SeqCst), usize::from(!is_begun));
        assert_eq!(matches!(result, Err(GuestError::Timeout { .. })), is_begun, "{result:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn command_whose_connection_ends_before_the_welcome_is_not_sent_again_unless_it_is_void() {
    let client = client(|number, mut agent| async move {
        if number == 0 {
            agent.hello().await;
            return drop(agent);
        }
        agent.accept().await;
        assert!(matches!(agent.request().await, Request::Void { .. }));
        agent.reply(Reply::Error { code: ErrorCode::Conflict, message: "begun".to_owned() }).await;
    });

    let result = client.exec_collect(ExecSpec::shell("true"), CollectOptions::default()).await;

    assert!(matches!(result, Err(GuestError::Disconnected { .. })), "{result:?}");
}

#[tokio::test]
async fn more_welcomes_than_hellos_are_refused() {
    let client = client(|_, mut agent| async move {
        let nonce = agent.hello().await;
        agent.welcome(nonce).await;
        agent.welcome(nonce).await;
        agent.stay_silent().await;
    });

    let result = client.ping().await;

    assert!(matches!(result, Err(GuestError::Protocol { .. })), "{result:?}");
}

#[tokio::test]
async fn other_generation_is_an_error_that_says_what_to_do() {
    for (verdict, generation) in [(Verdict::WrongGeneration, 9), (Verdict::Accepted, 9)] {
        let client = client(move |_, mut agent| async move {
            let nonce = agent.hello().await;
            agent.welcome_with(nonce, verdict, generation).await;
            agent.stay_silent().await;
        });

        let error = client.ping().await.unwrap_err();

        assert!(matches!(error, GuestError::Generation { theirs: 9, .. }), "{error:?}");
        assert!(error.to_string().contains("stop and start the workspace"), "{error}");
        assert!(!error.to_string().contains('\x1b'), "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn busy_agent_is_asked_again_until_it_is_free() {
    let client = client(|number, mut agent| async move {
        let nonce = agent.hello().await;
        if number < 3 {
            return agent.welcome_with(nonce, Verdict::Busy, PROTOCOL_GENERATION).await;
        }
        agent.welcome(nonce).await;
        agent.request().await;
        agent.reply(Reply::Done).await;
    });

    client.thaw(uuid::Uuid::from_u128(1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn agent_that_stays_busy_is_an_error_at_the_connect_limit() {
    let client = client(|_, mut agent| async move {
        let nonce = agent.hello().await;
        agent.welcome_with(nonce, Verdict::Busy, PROTOCOL_GENERATION).await;
    });
    let began = Instant::now();

    let result = client.thaw(uuid::Uuid::from_u128(1)).await;

    assert!(matches!(result, Err(GuestError::AgentBusy { .. })), "{result:?}");
    assert!(began.elapsed() >= CONNECT_LIMIT && began.elapsed() < CONNECT_LIMIT * 2);
}

#[tokio::test]
async fn malformed_welcome_is_an_error() {
    let client = client(|_, mut agent| async move {
        let nonce = agent.hello().await;
        let text = format!("{{\"welcome\":\"{}\",\"generation\":true}}", nonce.to_hex());
        agent.raw(&u32::try_from(text.len()).unwrap().to_be_bytes()).await;
        agent.raw(text.as_bytes()).await;
        agent.stay_silent().await;
    });

    let result = client.ping().await;

    assert!(matches!(result, Err(GuestError::Hello { .. })), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn connection_closed_before_the_welcome_is_made_again() {
    let client = client(|number, mut agent| async move {
        if number < 4 {
            return drop(agent);
        }
        agent.accept().await;
        agent.request().await;
        agent.reply(Reply::Done).await;
    });

    client.thaw(uuid::Uuid::from_u128(1)).await.unwrap();
}

#[tokio::test]
async fn error_of_the_channel_is_passed_on() {
    let client = client_with_lanes(0, |_, agent| agent.stay_silent());

    let result = client.ping().await;

    assert!(
        matches!(result, Err(GuestError::Channel { source: ChannelError::Busy { .. }, .. })),
        "{result:?}"
    );
}
