use uuid::Uuid;

use super::{ManualClock, add_orphan, draft, durable, in_memory, register, store};
use crate::session::{AuthError, Claimant, QuotaResource, SessionQuota, SessionUsage};

const QUOTA: SessionQuota = SessionQuota { max_workspaces: 3, max_memory_mb: 3000, max_disk_gb: 30 };

/// What each resource's quota lets through in addition to two workspaces of 1000 MiB and 10 GiB: N-1, N, N+1.
const CASES: [(u64, u64, Option<QuotaResource>); 5] = [
    (999, 9, None),
    (1000, 10, None),
    (1001, 10, Some(QuotaResource::Memory)),
    (1000, 9, None),
    (1000, 11, Some(QuotaResource::Disk)),
];

fn refused(result: Result<(), AuthError>) -> Option<QuotaResource> {
    match result {
        Ok(()) => None,
        Err(AuthError::QuotaExceeded { resource, .. }) => Some(resource),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn default_quota_is_the_documented_one() {
    let SessionQuota { max_workspaces, max_memory_mb, max_disk_gb } = SessionQuota::default();
    assert_eq!((max_workspaces, max_memory_mb, max_disk_gb), (10, 16384, 100));
}

#[tokio::test]
async fn each_resource_is_given_up_to_its_quota_and_not_beyond() {
    for (memory_mb, disk_gb, expected) in CASES {
        for adopt in [false, true] {
            let (auth, _clock) = in_memory(QUOTA);
            let a = register(&auth, "a").await;
            for _ in 0..2 {
                auth.register_workspace(&a, Uuid::new_v4(), 1000, 10).await.unwrap();
            }
            let third = Uuid::new_v4();

            let given = match adopt {
                false => auth.register_workspace(&a, third, memory_mb, disk_gb).await,
                true => auth.adopt_workspace(&a, &third, memory_mb, disk_gb, false).await,
            };

            assert_eq!(refused(given), expected, "{memory_mb} {disk_gb} {adopt}");
            let count = if expected.is_none() { 3 } else { 2 };
            assert_eq!(auth.get_usage(&a).await.unwrap().workspace_count, count);
        }
    }
}

#[tokio::test]
async fn one_workspace_too_many_is_refused_and_says_so() {
    let (auth, _clock) = in_memory(QUOTA);
    let a = register(&auth, "a").await;
    for _ in 0..3 {
        auth.register_workspace(&a, Uuid::new_v4(), 1, 1).await.unwrap();
    }

    let fourth = auth.register_workspace(&a, Uuid::new_v4(), 1, 1).await.unwrap_err();

    assert_eq!(
        fourth.to_string(),
        "the quota of 3 workspaces would be exceeded: the session has 3 and asked for 1 more"
    );
    assert_eq!(auth.get_usage(&a).await.unwrap(), SessionUsage::of(3, 1, 1));
}

#[tokio::test]
async fn records_of_several_workspaces_are_made_all_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let auth = durable(folder.path(), QUOTA, clock.clone());
    let a = register(&auth, "a").await;
    let store = store(folder.path());
    let claimant = Claimant::Session { id: a.clone(), quota: QUOTA, clock };
    let make = |count: usize| {
        let drafts = (0..count).map(|_| draft(1000, 10)).collect();
        store.insert_claimed(drafts, None, &claimant, true).map(drop)
    };

    assert_eq!(refused(make(4)), Some(QuotaResource::Workspaces));
    assert_eq!((store.all().unwrap().len(), auth.get_usage(&a).await.unwrap().workspace_count), (0, 0));
    assert_eq!(refused(make(2)), None);
    assert_eq!(refused(make(2)), Some(QuotaResource::Workspaces));
    assert_eq!(refused(make(1)), None);
    assert_eq!(refused(make(1)), Some(QuotaResource::Workspaces));

    assert_eq!(store.all().unwrap().len(), 3);
    assert_eq!(auth.get_usage(&a).await.unwrap(), SessionUsage::of(3, 1000, 10));
}

#[tokio::test]
async fn name_that_is_taken_makes_no_record_and_counts_for_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let auth = durable(folder.path(), QUOTA, clock.clone());
    let a = register(&auth, "a").await;
    let store = store(folder.path());
    let taken = store.insert(draft(512, 5), false).unwrap().name;
    let claimant = Claimant::Session { id: a.clone(), quota: QUOTA, clock };
    let mut drafts = vec![draft(512, 5), draft(512, 5)];
    drafts[1].name = taken;

    let made = store.insert_claimed(drafts, None, &claimant, false);

    assert!(matches!(made, Err(AuthError::Records(_))), "{made:?}");
    assert_eq!((store.all().unwrap().len(), auth.get_usage(&a).await.unwrap()), (1, SessionUsage::default()));
}

#[tokio::test]
async fn workspace_that_goes_is_given_back() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let auth = durable(folder.path(), QUOTA, clock.clone());
    let a = register(&auth, "a").await;
    let store = store(folder.path());
    let orphan = add_orphan(&store, &clock);
    auth.adopt_workspace(&a, orphan.as_uuid(), 0, 0, false).await.unwrap();

    store.remove(orphan).unwrap();

    assert_eq!(auth.get_usage(&a).await.unwrap(), SessionUsage::default());
}
