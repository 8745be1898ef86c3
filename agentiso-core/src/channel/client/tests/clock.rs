use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};

use agentiso_guest::message::{Configuration, Reply, Request};

use super::fake::{Agent, serving};
use crate::channel::client::*;

fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_nanos()).unwrap()
}

async fn answer(mut agent: Agent, offset_ns: i64) {
    let realtime_ns = u64::try_from(now_ns() + offset_ns).unwrap();
    agent.reply(Reply::Configured { realtime_ns, monotonic_ns: 1, elapsed_ns: 0 }).await;
}

fn set_clock() -> Configure {
    Configure { set_clock: true, hostname: Some("one".to_owned()), ..Configure::default() }
}

fn configuration_of(request: Request) -> Configuration {
    match request {
        Request::Configure(configuration) => *configuration,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn time_that_is_sent_is_that_of_its_sending() {
    let client = serving(|request, agent| async move {
        let sent = i64::try_from(configuration_of(request).time_ns.unwrap()).unwrap();
        assert!(now_ns() - sent < 1_000_000_000, "{sent}");
        answer(agent, 0).await;
    });

    let report = client.configure(set_clock()).await.unwrap();

    assert!(report.offset_ns.unsigned_abs() < 100_000_000, "{report:?}");
}

#[tokio::test]
async fn clock_that_is_wrong_is_set_again_and_nothing_else() {
    let offset = Arc::new(AtomicI64::new(-90_000_000_000));
    let client = serving(move |request, agent| {
        let offset = offset.swap(0, Ordering::SeqCst);
        let configuration = configuration_of(request);
        async move {
            assert_eq!(configuration.hostname.is_some(), offset != 0);
            assert!(configuration.time_ns.is_some());
            answer(agent, offset).await;
        }
    });

    let report = client.configure(set_clock()).await.unwrap();

    assert!(report.offset_ns.unsigned_abs() < 100_000_000, "{report:?}");
}

#[tokio::test]
async fn clock_that_stays_wrong_is_an_error_after_three_corrections() {
    let asked = Arc::new(AtomicU32::new(0));
    let counted = asked.clone();
    let client = serving(move |_, agent| {
        counted.fetch_add(1, Ordering::SeqCst);
        answer(agent, 3_600_000_000_000)
    });

    let error = client.configure(set_clock()).await.unwrap_err();

    assert!(matches!(error, GuestError::Clock { times: 4, .. }), "{error:?}");
    assert_eq!(asked.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn clock_that_is_not_to_be_set_may_be_wrong() {
    for lie in [0, u64::MAX] {
        let client = serving(move |request, mut agent| async move {
            assert_eq!(configuration_of(request).time_ns, None);
            agent.reply(Reply::Configured { realtime_ns: lie, monotonic_ns: lie, elapsed_ns: lie }).await;
        });

        let report = client.configure(Configure::default()).await.unwrap();

        assert!(report.offset_ns != 0);
    }
}

#[tokio::test]
async fn freeze_that_takes_too_long_is_told_from_other_refusals() {
    let client = serving(|_, mut agent| async move {
        let message = "not all".to_owned();
        agent.reply(Reply::Error { code: ErrorCode::TimedOut, message }).await;
    });

    let error = client.freeze(uuid::Uuid::from_u128(1), Duration::from_secs(2)).await.unwrap_err();

    assert!(matches!(error, GuestError::NotFrozen { .. }), "{error:?}");
    assert!(error.to_string().contains("run again"), "{error}");
}
