use super::recovery::{Victim, called};
use super::tree::fork;
use super::{Scene, create, eventually};
use crate::session::SessionQuota;
use crate::testkit::{Fault, METHODS};
use crate::types::{GuestPort, HostPort, ProcessRef};
use crate::{EngineError, Host, PromoteReport, PromoteSpec, Workspace, WorkspaceState};

const KEEP: PromoteSpec = PromoteSpec { drop_others: false };
const DROP: PromoteSpec = PromoteSpec { drop_others: true };

fn port() -> HostPort {
    HostPort::new(30_080).unwrap()
}

fn guest_port() -> GuestPort {
    GuestPort::new(80).unwrap()
}

/// `p` with a forward and two forks, `c` and `other`.
async fn family(scene: &Scene) -> (Host, Workspace) {
    let host = scene.open().await;
    let parent = create(&host, "p").await;
    parent.exec("echo p > /who").await.unwrap();
    parent.snapshot("s").await.unwrap();
    parent.add_forward(guest_port(), Some(port())).await.unwrap();
    let child = fork(&host, &parent, "c").await;
    child.exec("echo c > /who").await.unwrap();
    fork(&host, &parent, "other").await;
    (host, child)
}

async fn names(host: &Host) -> Vec<String> {
    let mut names: Vec<_> = host.list().await.unwrap().into_iter().map(|summary| summary.name).collect();
    names.sort();
    names
}

async fn state(host: &Host, name: &str) -> WorkspaceState {
    host.workspace(name).await.unwrap().info().await.unwrap().summary.state
}

#[tokio::test]
async fn child_takes_the_parents_place() {
    let scene = Scene::new().await;
    let (host, child) = family(&scene).await;

    let report = child.promote(KEEP).await.unwrap();

    assert_eq!((report.promoted.name.as_str(), report.old_name.as_str()), ("p", "c"));
    assert_eq!(report.parent.as_ref().unwrap().name, "p-old");
    assert_eq!((report.warnings.len(), report.dropped.len(), report.failures.len()), (0, 0, 0));
    assert_eq!(names(&host).await, ["other", "p", "p-old"]);
    let promoted = host.workspace("p").await.unwrap();
    assert_eq!(promoted.id(), child.id());
    assert_eq!(promoted.exec("cat /who; hostname").await.unwrap().stdout_text(), "c\np\n");
    assert_eq!(promoted.forwards().await.unwrap(), report.port_forwards);
    assert_eq!(
        (report.port_forwards[0].guest_port, report.port_forwards[0].host_port),
        (guest_port(), port())
    );
    assert!(scene.fakes.is_listening(port()));
    let old = host.workspace("p-old").await.unwrap();
    assert_eq!(state(&host, "p-old").await, WorkspaceState::Stopped);
    assert!(old.forwards().await.unwrap().is_empty());
    old.start().await.unwrap();
    assert_eq!(old.exec("cat /who").await.unwrap().stdout_text(), "p\n");
    assert_eq!(state(&host, "other").await, WorkspaceState::Running);
}

#[tokio::test]
async fn taken_old_names_are_counted_on() {
    let scene = Scene::new().await;
    let (host, child) = family(&scene).await;
    create(&host, "p-old").await;
    let long = "x".repeat(128);
    let parent = create(&host, &long).await;
    parent.snapshot("s").await.unwrap();
    let long_child = fork(&host, &parent, "y").await;

    let first = child.promote(KEEP).await.unwrap();
    let second = host.workspace("other").await.unwrap().promote(KEEP).await.unwrap();
    let third = long_child.promote(KEEP).await.unwrap();

    assert_eq!(first.parent.unwrap().name, "p-old-2");
    assert_eq!(
        (second.promoted.name.as_str(), second.parent.unwrap().name.as_str()),
        ("p-old-2", "p-old-2-old")
    );
    assert_eq!(third.promoted.name, long);
    assert_eq!(third.parent.unwrap().name, format!("{}-old", &long[..124]));
}

#[tokio::test]
async fn drop_destroys_the_parent_and_its_other_forks_alone() {
    let scene = Scene::new().await;
    let (host, child) = family(&scene).await;
    let other = host.workspace("other").await.unwrap();
    other.snapshot("s").await.unwrap();
    fork(&host, &other, "grandchild").await;

    let report = child.promote(DROP).await.unwrap();

    assert_eq!(report.dropped, ["other", "p-old"]);
    assert_eq!(report.parent, None);
    assert_eq!(names(&host).await, ["grandchild", "p"]);
    let promoted = host.workspace("p").await.unwrap();
    assert_eq!(promoted.exec("cat /who").await.unwrap().stdout_text(), "c\n");
    promoted.stop().await.unwrap();
    promoted.start().await.unwrap();
    assert_eq!(promoted.exec("cat /who").await.unwrap().stdout_text(), "c\n");
    assert!(scene.fakes.is_listening(port()));
    promoted.destroy().await.unwrap();
    host.workspace("grandchild").await.unwrap().destroy().await.unwrap();
    assert_eq!(scene.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn owner_and_lifetime_are_the_parents() {
    let scene = Scene::new().await;
    let (host, child) = family(&scene).await;
    let parent = host.workspace("p").await.unwrap().id();
    let store = crate::store::Store::open(&scene.config().layout().database()).unwrap();
    let session = host.sessions(SessionQuota::default()).open("session-7").await.unwrap();
    host.share("p").await.unwrap();
    session.adopt("p", false).await.unwrap();
    let mut record = store.get(child.id()).unwrap().unwrap();
    record.throwaway_of = Some(ProcessRef::current().unwrap());
    store.update(&record).unwrap();

    child.promote(KEEP).await.unwrap();

    let (promoted, old) = (store.get(child.id()).unwrap().unwrap(), store.get(parent).unwrap().unwrap());
    assert_eq!((promoted.owner, old.owner), (session.id().clone().into(), session.id().clone().into()));
    assert_eq!((promoted.throwaway_of, old.throwaway_of), (None, None));
}

#[tokio::test]
async fn stopped_child_gets_forwards_and_host_name_when_it_starts() {
    let scene = Scene::new().await;
    let (host, child) = family(&scene).await;
    child.stop().await.unwrap();

    let report = child.promote(KEEP).await.unwrap();

    assert_eq!((report.promoted.state, report.warnings.len()), (WorkspaceState::Stopped, 0));
    assert!(!scene.fakes.is_listening(port()));
    let promoted = host.workspace("p").await.unwrap();
    promoted.start().await.unwrap();
    assert!(scene.fakes.is_listening(port()));
    assert_eq!(promoted.exec("hostname").await.unwrap().stdout_text(), "p\n");
}

#[tokio::test]
async fn paused_child_gets_its_host_name_once_it_runs() {
    let scene = Scene::new().await;
    let (host, child) = family(&scene).await;
    child.pause().await.unwrap();

    let report = child.promote(KEEP).await.unwrap();
    scene.open().await;
    let promoted = host.workspace("p").await.unwrap();
    promoted.resume().await.unwrap();
    scene.open().await;

    assert_eq!((report.promoted.state, report.warnings.len()), (WorkspaceState::Paused, 0));
    assert!(scene.fakes.is_listening(port()));
    assert_eq!(promoted.exec("hostname").await.unwrap().stdout_text(), "p\n");
    let configured = scene.fakes.faults().count("agent.configure");
    scene.open().await;
    assert_eq!(scene.fakes.faults().count("agent.configure"), configured, "told once");
}

#[tokio::test]
async fn what_cannot_be_promoted_is_refused_and_nothing_is_changed() {
    let scene = Scene::new().await;
    let (host, child) = family(&scene).await;
    child.add_forward(guest_port(), None).await.unwrap();

    let no_fork = host.workspace("p").await.unwrap().promote(KEEP).await.unwrap_err();
    let both = child.promote(DROP).await.unwrap_err();
    assert_eq!(state(&host, "p").await, WorkspaceState::Running);
    assert_eq!(names(&host).await, ["c", "other", "p"]);
    host.workspace("p").await.unwrap().destroy().await.unwrap();
    let gone = child.promote(KEEP).await.unwrap_err();

    assert!(no_fork.to_string().contains("p is no fork"), "{no_fork}");
    assert!(both.next_step().unwrap().contains("agentiso port rm c 80"), "{both}");
    assert!(gone.to_string().contains("p, which workspace c was forked from, is gone"), "{gone}");
    for error in [no_fork, both, gone] {
        assert!(matches!(error, EngineError::Parameters { .. }), "{error}");
    }
}

#[tokio::test]
async fn port_taken_meanwhile_is_a_warning_and_tried_again_by_the_next_opener() {
    let scene = Scene::new().await;
    let (_host, child) = family(&scene).await;
    scene.fakes.faults().arm("network.add_forward", 1, Fault::Fail);

    let report = child.promote(KEEP).await.unwrap();

    assert_eq!(report.warnings.len(), 1, "{report:?}");
    assert!(!scene.fakes.is_listening(port()));
    scene.open().await;
    assert!(scene.fakes.is_listening(port()));
}

/// One workspace is `p`; the other of the two is there too, and the forward is with `p` and in force if that runs.
async fn check(scene: &Scene, host: &Host, context: &str) {
    let names = names(host).await;
    let promoted = names.contains(&"p-old".to_owned());
    assert_eq!(promoted, !names.contains(&"c".to_owned()), "{context}: {names:?}");
    let holder = host.workspace("p").await.unwrap();
    let info = holder.info().await.unwrap();
    assert_eq!(info.port_forwards.len(), 1, "{context}: {names:?}");
    let runs = info.summary.state == WorkspaceState::Running;
    assert_eq!(scene.fakes.is_listening(port()), runs, "{context}: {names:?}");
    assert!(runs || !promoted, "{context}: the child went on running");
}

#[tokio::test]
async fn failed_promotion_leaves_one_with_the_name_whatever_failed() {
    for method in METHODS {
        let scene = Scene::new().await;
        let (host, child) = family(&scene).await;
        scene.fakes.faults().arm(method, 1, Fault::Fail);

        let promoted: Result<PromoteReport, _> = child.promote(KEEP).await;

        scene.fakes.faults().disarm();
        let reopened = scene.open().await;
        check(&scene, &reopened, &format!("{method}: {promoted:?}")).await;
        if promoted.is_err() {
            child.promote(KEEP).await.unwrap();
            check(&scene, &host, method).await;
        }
        assert_eq!(names(&host).await, ["other", "p", "p-old"], "{method}");
    }
}

#[tokio::test]
async fn failed_drop_is_finished_whatever_failed() {
    for method in METHODS {
        let scene = Scene::new().await;
        let (host, child) = family(&scene).await;
        scene.fakes.faults().arm(method, 1, Fault::Fail);

        let promoted = child.promote(DROP).await;

        scene.fakes.faults().disarm();
        if promoted.is_err() {
            assert_eq!(names(&host).await, ["c", "other", "p"], "{method}: {promoted:?}");
            child.promote(DROP).await.unwrap();
        }
        scene.open().await;
        assert_eq!(names(&host).await, ["p"], "{method}: {promoted:?}");
        assert!(scene.fakes.is_listening(port()), "{method}: {promoted:?}");
        host.workspace("p").await.unwrap().destroy().await.unwrap();
        assert_eq!(scene.leftovers().await, Vec::<String>::new(), "{method}: {promoted:?}");
    }
}

#[tokio::test]
async fn promotion_killed_at_any_call_leaves_one_with_the_name() {
    for (method, nth) in [
        ("agent.shutdown", 1),
        ("hypervisor.wait_exit", 1),
        ("hypervisor.kill", 1),
        ("network.detach", 1),
        ("channel.release", 1),
        ("network.forwards", 1),
        ("network.add_forward", 1),
        ("agent.configure", 1),
    ] {
        for fault in [Fault::Hang, Fault::HangAfter] {
            let scene = Scene::new().await;
            let (_host, child) = family(&scene).await;
            let (id, before) = (child.id(), scene.fakes.faults().count(method));
            scene.fakes.faults().arm(method, nth, fault);
            let victim = Victim::stuck_in(&scene, async move |host| {
                let child = host.workspace(&id.to_string()).await.unwrap();
                drop(child.promote(KEEP).await);
            })
            .await;
            called(&scene, method, before + nth).await;

            victim.kill();

            eventually("the killed process's locks are free and all is right", async || {
                let host = scene.open().await;
                let old = host.workspace("p-old").await.is_ok();
                let holder = host.workspace("p").await.unwrap().info().await.unwrap().summary.state;
                let settled = [WorkspaceState::Running, WorkspaceState::Stopped].contains(&holder);
                settled
                    && scene.fakes.is_listening(port()) == (holder == WorkspaceState::Running)
                    && (old || holder == WorkspaceState::Stopped)
            })
            .await;
            let host = scene.open().await;
            check(&scene, &host, &format!("{method} {fault:?}")).await;
            if host.workspace("p-old").await.is_ok() {
                let promoted = host.workspace("p").await.unwrap();
                assert_eq!(
                    promoted.exec("hostname").await.unwrap().stdout_text(),
                    "p\n",
                    "{method} {fault:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn drop_killed_at_any_call_is_done_or_was_not_begun() {
    for method in ["agent.shutdown", "network.add_forward", "agent.configure", "storage.destroy_disk"] {
        for nth in [1, 2] {
            for fault in [Fault::Hang, Fault::HangAfter] {
                let scene = Scene::new().await;
                let (_host, child) = family(&scene).await;
                let (id, before) = (child.id(), scene.fakes.faults().count(method));
                scene.fakes.faults().arm(method, nth, fault);
                let victim = Victim::stuck_in(&scene, async move |host| {
                    let child = host.workspace(&id.to_string()).await.unwrap();
                    drop(child.promote(DROP).await);
                    // Whatever is called only once: nothing is left to be killed in.
                    std::future::pending::<()>().await;
                })
                .await;
                let reached = async || {
                    scene.fakes.faults().count(method) >= before + nth
                        || names(&scene.open().await).await == ["p"]
                };
                eventually("the call", reached).await;

                victim.kill();

                let begun = !names(&scene.open().await).await.contains(&"c".to_owned());
                let expected: &[&str] = if begun { &["p"] } else { &["c", "other", "p"] };
                eventually("what was begun is finished", async || {
                    names(&scene.open().await).await == expected
                })
                .await;
                check_drop(&scene, begun).await;
            }
        }
    }
}

async fn check_drop(scene: &Scene, begun: bool) {
    let host = scene.open().await;
    let holder = host.workspace("p").await.unwrap();
    assert_eq!(holder.forwards().await.unwrap().len(), 1);
    if begun {
        eventually("the forward is in force", async || {
            scene.open().await;
            scene.fakes.is_listening(port())
        })
        .await;
    }
}
