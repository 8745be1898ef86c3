use std::time::Duration;

use super::{MILLISECOND, MINUTE, ManualClock, durable, in_memory, register};
use crate::session::{AuthError, AuthManager, CEILING_FACTOR, Class, SessionQuota};
use crate::types::SessionId;

/// Calls until one is refused.
async fn exhaust(auth: &AuthManager, session: &SessionId, class: Class) -> (u32, AuthError) {
    let mut calls = 0;
    loop {
        match auth.enter(session, class).await {
            Ok(()) => calls += 1,
            Err(error) => return (calls, error),
        }
    }
}

fn wait_of(error: &AuthError) -> Duration {
    match error {
        AuthError::RateLimited { wait, .. } => *wait,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn each_class_has_its_burst_then_its_rate_and_leaves_the_others_theirs() {
    for class in Class::ALL {
        let (auth, clock) = in_memory(SessionQuota::default());
        let a = register(&auth, "a").await;
        let limit = class.limit();

        let (calls, refused) = exhaust(&auth, &a, class).await;

        assert_eq!(calls, limit.burst, "{class}");
        clock.advance(wait_of(&refused) - MILLISECOND);
        assert_eq!(wait_of(&auth.enter(&a, class).await.unwrap_err()), MILLISECOND, "{class}");
        clock.advance(MILLISECOND);
        auth.enter(&a, class).await.unwrap();
        assert!(auth.enter(&a, class).await.is_err(), "{class}: one came back, not two");
        for other in Class::ALL.into_iter().filter(|other| *other != class) {
            auth.enter(&a, other).await.unwrap();
        }
    }
}

#[tokio::test]
async fn in_the_long_run_the_rate_holds() {
    for class in Class::ALL {
        let (auth, clock) = in_memory(SessionQuota::default());
        let a = register(&auth, "a").await;
        exhaust(&auth, &a, class).await;
        let mut calls = 0;
        for _ in 0..60 {
            clock.advance(MINUTE / 60);
            calls += exhaust(&auth, &a, class).await.0;
        }
        assert_eq!(calls, class.limit().per_minute, "{class}");
    }
}

#[tokio::test]
async fn allowance_is_the_sessions_and_not_each_process_s() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let one = durable(folder.path(), SessionQuota::default(), clock.clone());
    let two = durable(folder.path(), SessionQuota::default(), clock);
    let (a, b) = (register(&one, "a").await, register(&two, "b").await);

    one.enter(&a, Class::Create).await.unwrap();
    two.enter(&a, Class::Create).await.unwrap();
    one.enter(&a, Class::Create).await.unwrap();

    let refused = two.enter(&a, Class::Create).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "too many calls of the kind create by this session: at most 3 at once and 5 a minute"
    );
    assert_eq!(refused.next_step().as_deref(), Some("wait 12.0 s and call again"));
    one.enter(&b, Class::Create).await.unwrap();
}

#[tokio::test]
async fn ever_new_sessions_do_not_get_beyond_the_ceiling() {
    let (auth, clock) = in_memory(SessionQuota::default());
    let class = Class::Create;
    let mut calls = 0;
    for number in 0..=CEILING_FACTOR {
        let session = register(&auth, &format!("s{number}")).await;
        let (entered, refused) = exhaust(&auth, &session, class).await;
        calls += entered;
        let is_ceiling = matches!(refused, AuthError::RateLimited { everybody: true, .. });
        assert_eq!(is_ceiling, number == CEILING_FACTOR, "{refused}");
    }
    assert_eq!(calls, class.ceiling().burst);

    // Who was refused for all has lost nothing of its own.
    clock.advance(MINUTE);
    let last = register(&auth, &format!("s{CEILING_FACTOR}")).await;
    assert_eq!(exhaust(&auth, &last, class).await.0, class.limit().burst);
}

#[tokio::test]
async fn refused_calls_cost_no_token() {
    let (auth, clock) = in_memory(SessionQuota::default());
    let a = register(&auth, "a").await;
    let (_, first) = exhaust(&auth, &a, Class::Exec).await;
    for _ in 0..20 {
        assert_eq!(wait_of(&auth.enter(&a, Class::Exec).await.unwrap_err()), wait_of(&first));
    }
    clock.advance(wait_of(&first));
    auth.enter(&a, Class::Exec).await.unwrap();
}

#[tokio::test]
async fn call_of_a_session_that_never_began_is_refused() {
    let (auth, _clock) = in_memory(SessionQuota::default());
    let stranger = SessionId::new("stranger").unwrap();
    let entered = auth.enter(&stranger, Class::Other).await;
    assert!(matches!(entered, Err(AuthError::UnknownSession { .. })), "{entered:?}");
}
