//! The engine as sessions may use it.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use super::Scene;
use crate::channel::client::RawPath;
use crate::session::{AuthError, AuthManager, Class, Clock, Session, SessionQuota, Sessions};
use crate::testkit::Fault;
use crate::types::{GuestPort, HostPort, Owner, SnapshotName, WorkspaceName};
use crate::{
    DiffSpec, EngineError, ForkSpec, Host, PoolSpec, PromoteSpec, RestoreSpec, WorkspaceSpec, WorkspaceState,
};

/// As much as the tests need, but not more.
const QUOTA: SessionQuota = SessionQuota { max_workspaces: 3, max_memory_mb: 16384, max_disk_gb: 100 };

#[derive(Debug)]
struct ManualClock(Mutex<SystemTime>);

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap()
    }
}

/// The sessions of a state folder, and a function that lets time pass for them.
fn sessions(host: &Host) -> (Sessions, impl Fn(u64)) {
    let clock = Arc::new(ManualClock(Mutex::new(SystemTime::now())));
    let auth = AuthManager::open(Arc::clone(host.store()), QUOTA).with_clock(clock.clone());
    let pass = move |seconds| *clock.0.lock().unwrap() += Duration::from_secs(seconds);
    (Sessions::new(host.clone(), auth), pass)
}

async fn two(sessions: &Sessions) -> (Session, Session) {
    (sessions.open("a").await.unwrap(), sessions.open("b").await.unwrap())
}

fn named(name: &str) -> WorkspaceSpec {
    WorkspaceSpec::new("test").name(name).unwrap()
}

fn forks(count: u32) -> ForkSpec {
    ForkSpec { count, ..ForkSpec::default() }
}

fn is_missing<T: std::fmt::Debug>(result: Result<T, EngineError>) -> bool {
    matches!(result, Err(EngineError::NoSuchWorkspace { .. }))
}

fn is_over_quota<T: std::fmt::Debug>(result: &Result<T, EngineError>) -> bool {
    matches!(result, Err(EngineError::Session(AuthError::QuotaExceeded { .. })))
}

async fn names(session: &Session) -> Vec<(String, bool)> {
    session.list().await.unwrap().into_iter().map(|seen| (seen.seen.name, seen.owned)).collect()
}

#[tokio::test]
async fn session_sees_its_own_and_orphans_and_nothing_else_is_there() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let (sessions, _) = sessions(&host);
    let (a, b) = two(&sessions).await;
    let own = a.create(named("own")).await.unwrap();
    let others = b.create(named("others")).await.unwrap();
    host.create(named("operators")).await.unwrap();
    host.create(named("orphan")).await.unwrap();
    let orphan = host.share("orphan").await.unwrap();

    assert_eq!(names(&a).await, [("own".to_owned(), true), ("orphan".to_owned(), false)]);
    let id = own.id().to_string();
    for given in ["own", &id, &id[..8], &id.to_uppercase()] {
        assert_eq!(a.workspace(given).await.unwrap().id(), own.id(), "{given}");
    }
    let id = others.id().to_string();
    for given in ["others", "operators", &id, &id[..8], "no-such"] {
        assert!(is_missing(a.workspace(given).await), "{given}");
        assert!(is_missing(a.info(given).await), "{given}");
        assert!(is_missing(a.tree(Some(given)).await), "{given}");
        assert!(is_missing(a.fork(given, forks(1)).await), "{given}");
        assert!(is_missing(a.promote(given, PromoteSpec::default()).await), "{given}");
        assert!(is_missing(a.adopt(given, false).await), "{given}");
    }
    let not_adopted = a.workspace("orphan").await;
    assert!(
        matches!(not_adopted, Err(EngineError::Session(AuthError::NotOwner { workspace, .. })) if workspace == orphan.id())
    );
    assert!(!a.info("orphan").await.unwrap().owned && a.info("own").await.unwrap().owned);
    let listed = host.list().await.unwrap();
    let owners: Vec<_> = listed.iter().map(|summary| summary.owner.to_string()).collect();
    assert_eq!(owners, ["a", "b", "operator", "nobody"]);
}

#[tokio::test]
async fn beginning_of_an_id_is_compared_with_what_a_session_sees_only() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let (sessions, _) = sessions(&host);
    let (a, b) = two(&sessions).await;
    let own = a.create(named("own")).await.unwrap();
    let prefix = own.id().to_string()[..8].to_owned();
    // Named like the beginning of the other's id.
    let others = b.create(named(&prefix)).await.unwrap();

    assert_eq!(a.workspace(&prefix).await.unwrap().id(), own.id());
    assert_eq!(b.workspace(&prefix).await.unwrap().id(), others.id());
    assert_eq!(host.workspace(&prefix).await.unwrap().id(), others.id(), "a name goes first");
    host.share("own").await.unwrap_err();
}

#[tokio::test]
async fn creation_beyond_the_quota_makes_nothing_and_destruction_gives_back() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let (sessions, _) = sessions(&host);
    let (a, b) = two(&sessions).await;
    for name in ["1", "2", "3"] {
        a.create(named(name)).await.unwrap();
    }

    let fourth = a.create(named("4")).await;

    assert!(is_over_quota(&fourth), "{fourth:?}");
    assert_eq!(host.list().await.unwrap().len(), 3);
    b.create(named("4")).await.unwrap();
    a.workspace("1").await.unwrap().destroy().await.unwrap();
    assert_eq!(a.usage().await.unwrap().workspace_count, 2);
    a.create(named("1")).await.unwrap();
    host.create(named("5")).await.unwrap();
}

#[tokio::test]
async fn failed_creation_gives_back_what_it_had_reserved() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let (sessions, _) = sessions(&host);
    let (a, _) = two(&sessions).await;
    for method in ["storage.create_disk", "hypervisor.launch"] {
        scene.fakes.faults().arm(method, 1, Fault::Fail);
        a.create(named("w")).await.unwrap_err();
        assert_eq!(a.usage().await.unwrap().workspace_count, 0, "{method}");
    }
    assert_eq!(scene.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn machine_of_a_pool_counts_for_the_session_that_takes_it() {
    let scene = Scene::with_templates().await;
    let host = scene.open().await;
    let pool = host
        .pool(PoolSpec { image: "test".to_owned(), resources: crate::types::Resources::default(), size: 1 })
        .await
        .unwrap();
    let quota = SessionQuota { max_workspaces: 1, ..QUOTA };
    let a = host.sessions(quota).open("a").await.unwrap();
    pool.filled().await.unwrap();

    let taken = a.create(named("w")).await.unwrap();
    assert!(taken.is_from_pool());
    assert_eq!(host.list().await.unwrap()[0].owner, Owner::Session(a.id().clone()));
    assert_eq!(a.usage().await.unwrap().workspace_count, 1);
    pool.filled().await.unwrap();
    let second = a.create(named("x")).await;

    assert!(is_over_quota(&second), "{second:?}");
    assert_eq!(pool.ready(), 1, "what waits was not spent on it");
    pool.close().await;
}

#[tokio::test]
async fn forks_beyond_the_quota_are_refused_before_the_parent_stands_still() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let (sessions, _) = sessions(&host);
    let (a, _) = two(&sessions).await;
    let parent = a.create(named("p")).await.unwrap();
    let captures = scene.fakes.faults().count("hypervisor.capture");

    let three = a.fork("p", forks(3)).await;

    assert!(is_over_quota(&three), "{three:?}");
    assert_eq!(scene.fakes.faults().count("hypervisor.capture"), captures);
    assert_eq!(host.list().await.unwrap().len(), 1);
    let two = a.fork("p", forks(2)).await.unwrap();
    assert_eq!((two.success_count, two.failure_count), (2, 0));
    assert!(names(&a).await.iter().all(|(_, owned)| *owned));
    parent.destroy().await.unwrap();
    for fork in two.workers {
        a.workspace(&fork.name).await.unwrap().destroy().await.unwrap();
    }
    assert_eq!(scene.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn forks_that_fail_give_back_and_those_of_a_failed_snapshot_all_do() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let (sessions, _) = sessions(&host);
    let (a, _) = two(&sessions).await;
    let parent = a.create(named("p")).await.unwrap();

    scene.fakes.faults().arm("storage.create_disk", 1, Fault::Fail);
    let report = a.fork("p", forks(2)).await.unwrap();
    assert_eq!((report.success_count, report.failure_count), (1, 1));
    assert_eq!(report.failures[0].name, "p-1");
    assert_eq!(a.usage().await.unwrap().workspace_count, 2);

    scene.fakes.faults().arm("storage.begin_snapshot", 1, Fault::Fail);
    a.fork("p", forks(1)).await.unwrap_err();
    assert_eq!(a.usage().await.unwrap().workspace_count, 2);
    assert_eq!(parent.info().await.unwrap().summary.state, WorkspaceState::Running);

    a.workspace(&report.workers[0].name).await.unwrap().destroy().await.unwrap();
    parent.destroy().await.unwrap();
    assert_eq!(scene.leftovers().await, Vec::<String>::new());
}

async fn environment(workspace: &crate::Workspace) -> String {
    workspace.exec("env").await.unwrap().stdout_text().to_string()
}

async fn set_secret(workspace: &crate::Workspace) {
    let vars = [("TOKEN".to_owned(), Some("secret".to_owned()))].into();
    workspace.guest().await.unwrap().env_set(vars).await.unwrap();
    assert!(environment(workspace).await.contains("TOKEN=secret"));
}

#[tokio::test]
async fn adoption_clears_the_environment_of_the_machine_and_of_its_memory_snapshots() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let (sessions, pass) = sessions(&host);
    let (a, b) = two(&sessions).await;
    let workspace = a.create(named("w")).await.unwrap();
    set_secret(&workspace).await;
    workspace.snapshot("s").await.unwrap();
    pass(60);

    let adopted = b.adopt(&workspace.id().to_string(), true).await.unwrap();
    // At once, before anybody has used it.
    let forked = b.fork("w", forks(1)).await.unwrap();

    let fork = b.workspace(&forked.workers[0].name).await.unwrap();
    assert!(!environment(&fork).await.contains("TOKEN"), "a fork of the machine");
    assert!(!environment(&adopted).await.contains("TOKEN"), "the machine");
    let of_snapshot = ForkSpec { snapshot: Some(SnapshotName::new("s").unwrap()), ..forks(1) };
    let forked = b.fork("w", of_snapshot).await.unwrap();
    let fork = b.workspace(&forked.workers[0].name).await.unwrap();
    assert!(!environment(&fork).await.contains("TOKEN"), "a fork of the snapshot");
    adopted
        .restore_with(RestoreSpec { name: SnapshotName::new("s").unwrap(), disk_only: false })
        .await
        .unwrap();
    assert!(!environment(&adopted).await.contains("TOKEN"), "the snapshot");

    // What the new owner sets stays, in snapshots too.
    set_secret(&adopted).await;
    adopted.snapshot("t").await.unwrap();
    adopted.restore("t").await.unwrap();
    assert!(environment(&adopted).await.contains("TOKEN=secret"));
}

#[tokio::test]
async fn machine_whose_environment_cannot_be_cleared_is_not_used() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let (sessions, _) = sessions(&host);
    let (a, _) = two(&sessions).await;
    let workspace = host.create(named("w")).await.unwrap();
    set_secret(&workspace).await;
    host.share("w").await.unwrap();
    assert!(environment(&workspace).await.contains("TOKEN"), "to share it is not to lose it");
    let adopted = a.adopt("w", false).await.unwrap();

    scene.fakes.faults().arm("agent.env_clear", 1, Fault::Fail);
    let refused = adopted.exec("env").await;

    assert!(refused.unwrap_err().to_string().contains("clear the environment of workspace w"));
    assert!(!environment(&adopted).await.contains("TOKEN"));
}

#[tokio::test]
async fn force_needs_the_full_id_and_an_idle_owner() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let (sessions, pass) = sessions(&host);
    let (a, b) = two(&sessions).await;
    let workspace = a.create(named("w")).await.unwrap();
    let id = workspace.id().to_string();
    pass(59);
    for given in ["w", &id[..8], &id[..35]] {
        assert!(is_missing(b.adopt(given, true).await), "{given}");
    }
    assert!(is_missing(b.adopt(&id, false).await));

    let active = b.adopt(&id, true).await;
    assert!(matches!(active, Err(EngineError::Session(AuthError::OwnerActive { .. }))), "{active:?}");
    let call = a.enter(Class::Other).await.unwrap();
    pass(59);
    b.adopt(&id, true).await.unwrap_err();
    drop(call);
    pass(1);
    b.adopt(&id, true).await.unwrap();

    assert!(is_missing(a.workspace("w").await));
    b.workspace("w").await.unwrap();
    let operators = host.create(named("o")).await.unwrap().id().to_string();
    let refused = b.adopt(&operators, true).await;
    assert!(matches!(refused, Err(EngineError::Session(AuthError::OperatorOwned { .. }))), "{refused:?}");
    assert!(is_missing(b.adopt("o", true).await));
}

#[tokio::test]
async fn all_orphans_are_adopted_as_far_as_the_quota_goes_and_nobody_elses() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let (sessions, pass) = sessions(&host);
    let (a, b) = two(&sessions).await;
    a.create(named("1")).await.unwrap();
    a.create(named("2")).await.unwrap();
    pass(24 * 60 * 60 - 1);
    let _call = b.enter(Class::Other).await.unwrap();
    b.create(named("b")).await.unwrap();
    host.create(named("3")).await.unwrap();
    host.create(named("o")).await.unwrap();
    assert!(b.adopt_orphans().await.unwrap().adopted.is_empty());
    host.share("3").await.unwrap();
    pass(1);

    let adoption = b.adopt_orphans().await.unwrap();

    let adopted: Vec<_> = adoption.adopted.iter().map(crate::Workspace::name).collect();
    assert_eq!(adopted, ["1", "2"]);
    assert!(matches!(
        &adoption.left[..],
        [(left, EngineError::Session(AuthError::QuotaExceeded { .. }))] if left.name() == "3"
    ));
    // Its client is still there: it begins anew.
    let _call = a.enter(Class::Other).await.unwrap();
    assert_eq!(names(&a).await, [("3".to_owned(), false)]);
}

#[tokio::test]
async fn promotion_needs_the_parent_and_what_is_dropped_to_be_the_sessions() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let (sessions, _) = sessions(&host);
    let (a, b) = two(&sessions).await;
    let parent = host.create(named("p")).await.unwrap();
    let child = parent.fork(ForkSpec { name: Some(WorkspaceName::new("c").unwrap()), ..forks(1) }).await;
    assert_eq!(child.unwrap().success_count, 1);
    host.share("c").await.unwrap();
    a.adopt("c", false).await.unwrap();

    let refused = a.promote("c", PromoteSpec::default()).await;
    assert!(matches!(refused, Err(EngineError::Parameters { .. })), "{refused:?}");
    assert!(a.info("c").await.unwrap().seen.forked_from.is_none(), "the parent is none of its business");
    let tree = a.tree(None).await.unwrap();
    assert_eq!((tree.len(), tree[0].name.as_str()), (1, "c"));
    host.share("p").await.unwrap();
    a.adopt("p", false).await.unwrap();
    assert!(a.info("c").await.unwrap().seen.forked_from.is_some());
    assert_eq!(a.tree(None).await.unwrap()[0].forks[0].name, "c");
    parent.fork(ForkSpec { name: Some(WorkspaceName::new("x").unwrap()), ..forks(1) }).await.unwrap();
    let drop_others = PromoteSpec { drop_others: true };
    assert!(a.promote("c", drop_others).await.is_err(), "x is the operator's");
    assert!(is_missing(b.promote("c", drop_others).await));

    let report = a.promote("c", PromoteSpec::default()).await.unwrap();

    assert_eq!(report.promoted.name, "p");
    assert_eq!(a.usage().await.unwrap().workspace_count, 2);
}

#[tokio::test]
async fn comparison_takes_own_workspaces_only() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let (sessions, _) = sessions(&host);
    let (a, b) = two(&sessions).await;
    a.create(named("1")).await.unwrap().exec("echo x > /f").await.unwrap();
    a.create(named("2")).await.unwrap();
    b.create(named("b")).await.unwrap();
    let spec = |from: &str, to: &str| DiffSpec {
        from: from.parse().unwrap(),
        to: to.parse().unwrap(),
        path: RawPath::new("/"),
    };

    assert!(is_missing(a.diff(spec("1", "b")).await.map(drop)));
    assert!(is_missing(a.diff(spec("b", "1")).await.map(drop)));
    let mut differences = a.diff(spec("2", "1")).await.unwrap();
    assert_eq!(differences.next().await.unwrap().unwrap().path, RawPath::new("/f"));
}

#[tokio::test]
async fn errors_do_not_name_what_a_session_does_not_see() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let (sessions, _) = sessions(&host);
    let (a, b) = two(&sessions).await;
    let port = HostPort::new(30_081).unwrap();
    let mut others = named("others");
    others.forwards.insert(GuestPort::new(80).unwrap(), Some(port));
    b.create(others).await.unwrap();
    let mut own = named("own");
    own.forwards.insert(GuestPort::new(80).unwrap(), Some(port));

    let refused = a.create(own).await.unwrap_err().report();
    assert!(refused.contains("30081") && !refused.contains("others"), "{refused}");

    let workspace = a.create(named("w")).await.unwrap();
    workspace.snapshot("s").await.unwrap();
    let of_snapshot = |name| ForkSpec {
        snapshot: Some(SnapshotName::new("s").unwrap()),
        name: Some(WorkspaceName::new(name).unwrap()),
        ..forks(1)
    };
    workspace.fork(of_snapshot("operators")).await.unwrap();
    a.fork("w", of_snapshot("mine")).await.unwrap();
    let in_use = workspace.delete_snapshot("s").await.unwrap_err();
    let told = a.conceal(in_use).await.report();
    assert!(told.contains("mine") && told.contains("1 of other owners"), "{told}");
    assert!(!told.contains("operators"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn session_is_active_as_long_as_its_call() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let (sessions, pass) = sessions(&host);
    let (a, b) = two(&sessions).await;
    let id = a.create(named("w")).await.unwrap().id().to_string();
    let call = a.enter(Class::Exec).await.unwrap();

    pass(3600);
    tokio::time::sleep(Duration::from_secs(21)).await;
    // No time passes by itself here while what notes the activity is under way.
    let active = b.adopt(&id, true).await;
    assert!(matches!(active, Err(EngineError::Session(AuthError::OwnerActive { .. }))), "{active:?}");
    drop(call);
    pass(60);
    b.adopt(&id, true).await.unwrap();
}

#[tokio::test]
async fn sessions_outlive_the_process_and_the_next_opener_ends_old_ones() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let a = host.sessions(QUOTA).open("a").await.unwrap();
    a.create(named("w")).await.unwrap();
    drop((a, host));

    let host = scene.open().await;
    let again = host.sessions(QUOTA).open("a").await.unwrap();
    assert_eq!(again.workspace("w").await.unwrap().exec("hostname").await.unwrap().stdout_text(), "w\n");
    let day_ago = SystemTime::now() - Duration::from_secs(24 * 60 * 60);
    let clock = Arc::new(ManualClock(Mutex::new(day_ago)));
    let auth = AuthManager::open(Arc::clone(host.store()), QUOTA).with_clock(clock);
    auth.register_session("a".to_owned()).await.unwrap();
    drop((again, host));

    assert_eq!(scene.open().await.list().await.unwrap()[0].owner, Owner::Nobody);
}

#[tokio::test]
async fn sharing_is_undone_until_a_session_has_adopted() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let (sessions, _) = sessions(&host);
    let (a, _) = two(&sessions).await;
    host.create(named("w")).await.unwrap();
    for _ in 0..2 {
        host.share("w").await.unwrap();
    }
    assert_eq!(names(&a).await, [("w".to_owned(), false)]);
    for _ in 0..2 {
        host.unshare("w").await.unwrap();
    }
    assert_eq!(names(&a).await, []);
    host.share("w").await.unwrap();
    a.adopt("w", false).await.unwrap();

    for refused in [host.share("w").await, host.unshare("w").await] {
        assert!(matches!(refused, Err(EngineError::Session(AuthError::SessionOwned { .. }))), "{refused:?}");
    }
    assert!(is_missing(host.share("no-such").await));
}
