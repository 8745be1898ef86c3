use std::time::Duration;

use uuid::Uuid;

use super::{DAY, MILLISECOND, MINUTE, ManualClock, add_orphan, draft, durable, in_memory, register, store};
use crate::session::{AuthError, AuthManager, Claimant, FORCED_ADOPTION_IDLE, SessionQuota, SessionUsage};
use crate::types::Owner;

const ONE: SessionUsage = SessionUsage { workspace_count: 1, memory_mb: 512, disk_gb: 5 };

#[tokio::test]
async fn test_force_adopt_quota_exceeded_preserves_previous_owner() {
    let quota = SessionQuota { max_workspaces: 1, max_memory_mb: 1024, max_disk_gb: 10 };
    let auth = AuthManager::new(quota);
    let a = auth.register_session("session-a".to_string()).await.unwrap();
    let b = auth.register_session("session-b".to_string()).await.unwrap();
    let (of_a, of_b) = (Uuid::new_v4(), Uuid::new_v4());
    auth.register_workspace(&a, of_a, 512, 5).await.unwrap();
    auth.register_workspace(&b, of_b, 512, 5).await.unwrap();

    let adopted = auth.adopt_workspace(&b, &of_a, 512, 5, true).await;

    assert!(matches!(adopted, Err(AuthError::QuotaExceeded { .. })), "{adopted:?}");
    auth.check_ownership(&a, of_a).await.unwrap();
    let usage = auth.get_usage(&a).await.unwrap();
    assert_eq!((usage.workspace_count, usage.memory_mb, usage.disk_gb), (1, 512, 5));
}

#[tokio::test]
async fn workspace_is_taken_from_a_session_that_was_idle_for_a_minute_and_from_no_other() {
    assert_eq!(FORCED_ADOPTION_IDLE, MINUTE);
    let (auth, clock) = in_memory(SessionQuota::default());
    let (a, b) = (register(&auth, "a").await, register(&auth, "b").await);
    let workspace = Uuid::new_v4();
    auth.register_workspace(&a, workspace, 512, 5).await.unwrap();

    clock.advance(MINUTE - MILLISECOND);
    let early = auth.adopt_workspace(&b, &workspace, 512, 5, true).await.unwrap_err();
    assert!(matches!(early, AuthError::OwnerActive { wait: MILLISECOND, .. }), "{early:?}");
    assert_eq!(auth.get_usage(&a).await.unwrap(), ONE);
    clock.advance(MILLISECOND);
    auth.adopt_workspace(&b, &workspace, 512, 5, true).await.unwrap();

    assert_eq!(auth.get_usage(&a).await.unwrap(), SessionUsage::default());
    assert_eq!(auth.get_usage(&b).await.unwrap(), ONE);
    assert!(matches!(auth.check_ownership(&a, workspace).await, Err(AuthError::NotOwner { .. })));
    auth.check_ownership(&b, workspace).await.unwrap();
}

#[tokio::test]
async fn every_call_is_activity_even_one_that_is_refused() {
    let (auth, clock) = in_memory(SessionQuota { max_workspaces: 1, ..SessionQuota::default() });
    let (a, b) = (register(&auth, "a").await, register(&auth, "b").await);
    let workspace = Uuid::new_v4();
    auth.register_workspace(&a, workspace, 512, 5).await.unwrap();
    clock.advance(2 * MINUTE);

    let refused = auth.register_workspace(&a, Uuid::new_v4(), 512, 5).await;
    assert!(matches!(refused, Err(AuthError::QuotaExceeded { .. })), "{refused:?}");

    let taken = auth.adopt_workspace(&b, &workspace, 512, 5, true).await;
    assert!(matches!(taken, Err(AuthError::OwnerActive { wait: MINUTE, .. })), "{taken:?}");
}

#[tokio::test]
async fn clock_that_is_set_back_makes_nobody_idle() {
    let (auth, clock) = in_memory(SessionQuota::default());
    let (a, b) = (register(&auth, "a").await, register(&auth, "b").await);
    let workspace = Uuid::new_v4();
    auth.register_workspace(&a, workspace, 512, 5).await.unwrap();

    clock.set_back(DAY);

    let taken = auth.adopt_workspace(&b, &workspace, 512, 5, true).await;
    assert!(matches!(taken, Err(AuthError::OwnerActive { wait: MINUTE, .. })), "{taken:?}");
}

/// Each refusal is given although all that are checked later would refuse too.
#[tokio::test]
async fn checks_of_an_adoption_come_in_their_order() {
    let quota = SessionQuota { max_workspaces: 1, ..SessionQuota::default() };
    let (auth, clock) = in_memory(quota);
    let (a, b) = (register(&auth, "a").await, register(&auth, "b").await);
    let (of_a, of_b) = (Uuid::new_v4(), Uuid::new_v4());
    auth.register_workspace(&a, of_a, 512, 5).await.unwrap();
    auth.register_workspace(&b, of_b, 512, 5).await.unwrap();
    let (other, _) = in_memory(quota);
    let stranger = register(&other, "stranger").await;

    let unknown = auth.adopt_workspace(&stranger, &of_a, 512, 5, false).await;
    assert!(matches!(unknown, Err(AuthError::UnknownSession { .. })), "{unknown:?}");
    for force in [false, true] {
        auth.adopt_workspace(&b, &of_b, 512, 5, force).await.unwrap();
    }
    let not_forced = auth.adopt_workspace(&b, &of_a, 512, 5, false).await;
    assert!(matches!(not_forced, Err(AuthError::NotOwner { .. })), "{not_forced:?}");
    let too_much = auth.adopt_workspace(&b, &of_a, 512, 5, true).await;
    assert!(matches!(too_much, Err(AuthError::QuotaExceeded { .. })), "{too_much:?}");
    auth.unregister_workspace(&b, of_b).await.unwrap();
    let active = auth.adopt_workspace(&b, &of_a, 512, 5, true).await;
    assert!(matches!(active, Err(AuthError::OwnerActive { .. })), "{active:?}");
    clock.advance(MINUTE);
    auth.adopt_workspace(&b, &of_a, 512, 5, true).await.unwrap();
}

#[tokio::test]
async fn workspace_of_the_operator_is_taken_by_nobody_and_adopted_once_it_is_shared() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let auth = durable(folder.path(), SessionQuota::default(), clock.clone());
    let (store, now) = (store(folder.path()), Claimant::now(&*clock));
    let made = store.insert_claimed(vec![draft(512, 5)], None, &Claimant::Operator, false).unwrap();
    let (id, a) = (made[0].id, register(&auth, "a").await);

    let registered = auth.register_workspace(&a, *id.as_uuid(), 512, 5).await;
    assert!(matches!(registered, Err(AuthError::NotOwner { .. })), "{registered:?}");
    let forced = auth.adopt_workspace(&a, id.as_uuid(), 512, 5, true).await;
    assert!(matches!(forced, Err(AuthError::OperatorOwned { .. })), "{forced:?}");
    store.give_orphan(now, id, &Owner::Nobody).unwrap();
    auth.adopt_workspace(&a, id.as_uuid(), 512, 5, false).await.unwrap();

    assert_eq!(store.get(id).unwrap().unwrap().owner, Owner::Session(a.clone()));
    let back = store.give_orphan(now, id, &Owner::Operator);
    assert!(matches!(back, Err(AuthError::SessionOwned { session, .. }) if session == a));
}

#[tokio::test]
async fn workspace_that_no_record_knows_is_not_adopted_from_a_state_folder() {
    let folder = tempfile::tempdir().unwrap();
    let auth = durable(folder.path(), SessionQuota::default(), ManualClock::new());
    let a = register(&auth, "a").await;

    let adopted = auth.adopt_workspace(&a, &Uuid::new_v4(), 512, 5, false).await;

    assert!(matches!(adopted, Err(AuthError::UnknownWorkspace { .. })), "{adopted:?}");
    assert_eq!(auth.get_usage(&a).await.unwrap(), SessionUsage::default());
}

#[tokio::test]
async fn size_that_the_records_know_counts_and_not_the_one_that_is_given() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let auth = durable(folder.path(), SessionQuota::default(), clock.clone());
    let orphan = add_orphan(&store(folder.path()), &clock);
    let a = register(&auth, "a").await;

    auth.adopt_workspace(&a, orphan.as_uuid(), 0, 0, false).await.unwrap();

    assert_eq!(auth.get_usage(&a).await.unwrap(), ONE);
}

#[test]
fn refusals_say_what_to_do_and_how_long_to_wait() {
    let workspace = Uuid::new_v4().into();
    let active = AuthError::OwnerActive { workspace, wait: Duration::from_millis(12_345) };

    assert!(active.to_string().ends_with("active less than 60s ago"), "{active}");
    assert!(active.next_step().unwrap().contains("after 12.4 s"), "{:?}", active.next_step());
}
