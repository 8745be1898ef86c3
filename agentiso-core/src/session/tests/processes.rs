//! Several processes at once on the books of one state folder.

use std::process::{Command, Stdio};

use super::{ManualClock, add_orphan, draft, durable, register, store};
use crate::session::{AuthError, Claimant, Class, SessionQuota, SessionUsage, SystemClock};
use crate::types::{Owner, SessionId};

const QUOTA: SessionQuota = SessionQuota { max_workspaces: 7, max_memory_mb: 8192, max_disk_gb: 100 };

/// How many processes there are, and how many workspaces each wants.
const PROCESSES: usize = 4;
const WANTED: usize = 6;

/// Names the state folder to the processes that a test starts of its own program.
const FOLDER: &str = "AGENTISO_TEST_SESSION_FOLDER";

/// What each of the processes does: it makes and adopts as much as it may get.
#[tokio::test]
async fn grab_all_that_can_be_had() {
    // Without a folder it is no process of the test's, and there is nothing to be had.
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let store = std::sync::Arc::new(store(folder.as_ref()));
    let auth = crate::session::AuthManager::open(store.clone(), QUOTA);
    let a = SessionId::new("a").unwrap();
    let claimant = Claimant::Session { id: a.clone(), quota: QUOTA, clock: std::sync::Arc::new(SystemClock) };
    for _ in 0..WANTED {
        for made in [
            store.insert_claimed(vec![draft(512, 5), draft(512, 5)], None, &claimant, true).map(drop),
            store.insert_claimed(vec![draft(512, 5)], None, &claimant, true).map(drop),
        ] {
            assert!(matches!(made, Ok(()) | Err(AuthError::QuotaExceeded { .. })), "{made:?}");
        }
        let entered = auth.enter(&a, Class::Create).await;
        assert!(matches!(entered, Ok(()) | Err(AuthError::RateLimited { .. })), "{entered:?}");
        println!("entered {}", u8::from(entered.is_ok()));
    }
}

#[tokio::test]
async fn quota_and_rate_hold_for_all_processes_together() {
    let folder = tempfile::tempdir().unwrap();
    let auth = durable(folder.path(), QUOTA, ManualClock::at_present());
    let a = register(&auth, "a").await;
    let program = std::env::current_exe().unwrap();
    let processes: Vec<_> = (0..PROCESSES)
        .map(|_| {
            Command::new(&program)
                .args(["--exact", "--nocapture", "session::tests::processes::grab_all_that_can_be_had"])
                .env(FOLDER, folder.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();

    let outputs: Vec<_> = processes.into_iter().map(|one| one.wait_with_output().unwrap()).collect();

    assert!(outputs.iter().all(|output| output.status.success()), "{outputs:?}");
    let lines: String = outputs.iter().map(|output| String::from_utf8_lossy(&output.stdout)).collect();
    let entered = |word: &str| lines.matches(word).count();
    assert_eq!(entered("entered 0") + entered("entered 1"), PROCESSES * WANTED, "{lines}");
    // Three at once, and one more for each 12 s that it took.
    assert!((3..=5).contains(&entered("entered 1")), "{lines}");
    assert_eq!(auth.get_usage(&a).await.unwrap(), SessionUsage::of(7, 512, 5));
    assert_eq!(store(folder.path()).all().unwrap().len(), 7);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn orphan_that_many_adopt_at_once_gets_one_owner() {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let books = store(folder.path());
    let orphans: Vec<_> = (0..6).map(|_| add_orphan(&books, &clock)).collect();
    let adopters: Vec<_> = (0..4)
        .map(|number| {
            let (auth, orphans) = (durable(folder.path(), QUOTA, clock.clone()), orphans.clone());
            tokio::spawn(async move {
                let session = register(&auth, &format!("s{number}")).await;
                let mut adopted = 0;
                for orphan in orphans {
                    match auth.adopt_workspace(&session, orphan.as_uuid(), 0, 0, false).await {
                        Ok(()) => adopted += 1,
                        Err(AuthError::NotOwner { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                (adopted, auth.get_usage(&session).await.unwrap())
            })
        })
        .collect();

    let mut all = 0;
    for adopter in adopters {
        let (adopted, usage) = adopter.await.unwrap();
        assert_eq!(usage, SessionUsage::of(adopted, 512, 5));
        all += adopted;
    }

    assert_eq!(all, 6);
    for orphan in orphans {
        assert!(matches!(books.get(orphan).unwrap().unwrap().owner, Owner::Session(_)));
    }
}
