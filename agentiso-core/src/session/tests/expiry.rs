use uuid::Uuid;

use super::{DAY, MILLISECOND, ManualClock, draft, durable, in_memory, register, store};
use crate::session::{AuthError, Claimant, SESSION_LIFETIME, SessionQuota, SessionUsage};
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
async fn name_of_another_owner_or_none_at_all_begins_no_session() {
    let (auth, _clock) = in_memory(SessionQuota::default());
    for name in ["operator", "nobody", "", "a b"] {
        let refused = auth.register_session(name.to_owned()).await;
        assert!(matches!(refused, Err(AuthError::InvalidSession(_))), "{refused:?}");
    }
}
