use uuid::Uuid;

use super::{DAY, MILLISECOND, ManualClock, draft, durable, in_memory, register, store};
use crate::session::{
    AuthError, Claimant, FORCED_ADOPTION_IDLE, SESSION_LIFETIME, SessionQuota, SessionUsage,
};
use crate::types::Owner;

#[tokio::test]
async fn session_of_a_known_name_is_the_same_session() {
    let (auth, clock) = in_memory(SessionQuota::default());
    let first = register(&auth, "a").await;
    let workspace = Uuid::new_v4();
    auth.register_workspace(&first, workspace, 512, 5).await.unwrap();

    clock.advance(DAY - MILLISECOND);
    let second = register(&auth, "a").await;
    clock.advance(DAY - MILLISECOND);

    assert_eq!(first, second);
    auth.check_ownership(&second, workspace).await.unwrap();
}

#[tokio::test]
async fn session_ends_a_day_after_its_last_call_and_leaves_orphans() {
    assert_eq!(SESSION_LIFETIME, DAY);
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let auth = durable(folder.path(), SessionQuota::default(), clock.clone());
    let (a, b) = (register(&auth, "a").await, register(&auth, "b").await);
    let store = store(folder.path());
    let claimant = Claimant::Session { id: a.clone(), quota: auth.quota(), clock: clock.clone() };
    let id = store.insert_claimed(vec![draft(512, 5)], None, &claimant, false).unwrap()[0].id;

    clock.advance(DAY - MILLISECOND);
    auth.touch(&b).await.unwrap();
    assert_eq!(store.get(id).unwrap().unwrap().owner, Owner::Session(a.clone()));
    clock.advance(MILLISECOND);
    auth.touch(&b).await.unwrap();

    assert_eq!(store.get(id).unwrap().unwrap().owner, Owner::Nobody);
    let ended = auth.get_usage(&a).await;
    assert!(matches!(ended, Err(AuthError::UnknownSession { .. })), "{ended:?}");
    let made = store.insert_claimed(vec![draft(512, 5)], None, &claimant, false);
    assert!(matches!(made, Err(AuthError::UnknownSession { .. })), "{made:?}");
    let again = register(&auth, "a").await;
    assert_eq!(auth.get_usage(&again).await.unwrap(), SessionUsage::default());
    auth.adopt_workspace(&b, id.as_uuid(), 512, 5, false).await.unwrap();
}

#[tokio::test]
async fn clock_that_jumps_ahead_and_back_ends_sessions_once_and_destroys_nothing() {
    let (auth, clock) = in_memory(SessionQuota::default());
    let (a, b) = (register(&auth, "a").await, register(&auth, "b").await);
    let workspace = Uuid::new_v4();
    auth.register_workspace(&a, workspace, 512, 5).await.unwrap();

    clock.advance(DAY);
    let ended = auth.touch(&a).await;
    assert!(matches!(ended, Err(AuthError::UnknownSession { .. })), "{ended:?}");
    register(&auth, "a").await;
    clock.set_back(DAY);

    // What it owned is nobody's, and its own again for the asking; the time that was too late counts for nothing more.
    auth.adopt_workspace(&a, &workspace, 512, 5, false).await.unwrap();
    clock.advance(DAY - MILLISECOND);
    auth.check_ownership(&a, workspace).await.unwrap();
    register(&auth, "b").await;
    clock.advance(FORCED_ADOPTION_IDLE);
    auth.adopt_workspace(&b, &workspace, 512, 5, true).await.unwrap();
}

#[tokio::test]
async fn clock_that_is_set_back_keeps_sessions_and_what_they_own() {
    let (auth, clock) = in_memory(SessionQuota::default());
    let a = register(&auth, "a").await;
    let workspace = Uuid::new_v4();
    auth.register_workspace(&a, workspace, 512, 5).await.unwrap();

    clock.set_back(DAY);

    auth.check_ownership(&a, workspace).await.unwrap();
    assert_eq!(register(&auth, "a").await, a);
    assert_eq!(auth.get_usage(&a).await.unwrap(), SessionUsage::of(1, 512, 5));
    // From its last call on, by the clock as it is now.
    clock.advance(DAY);
    let b = register(&auth, "b").await;
    auth.adopt_workspace(&b, &workspace, 512, 5, false).await.unwrap();
}

#[tokio::test]
async fn name_of_another_owner_or_none_at_all_begins_no_session() {
    let (auth, _clock) = in_memory(SessionQuota::default());
    for name in ["operator", "nobody", "", "a b"] {
        let refused = auth.register_session(name.to_owned()).await;
        assert!(matches!(refused, Err(AuthError::InvalidSession(_))), "{refused:?}");
    }
}
