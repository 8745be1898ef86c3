//! Templates, live forks and snapshots with memory.

use std::time::Duration;

use super::recovery::{Victim, called};
use super::{Scene, create, eventually, try_create};
use crate::testkit::Fault;
use crate::types::{ImageName, Resources, SnapshotName};
use crate::{EngineError, ForkSpec, RestoreSpec, SnapshotSpec, WorkspaceSpec, WorkspaceState};

fn named(name: &str) -> SnapshotName {
    SnapshotName::new(name).unwrap()
}

fn forks(count: u32) -> ForkSpec {
    ForkSpec { count, ..ForkSpec::default() }
}

fn launches(scene: &Scene) -> usize {
    scene.fakes.faults().count("hypervisor.launch")
}

#[tokio::test]
async fn first_workspace_makes_a_template_and_the_next_begins_with_it() {
    let scene = Scene::with_templates().await;
    let host = scene.open().await;

    let first = create(&host, "a").await;
    assert_eq!(launches(&scene), 2);
    let second = create(&host, "b").await;

    assert_eq!(launches(&scene), 3);
    assert_eq!(scene.fakes.images().len(), 1);
    first.exec("echo one > /note").await.unwrap();
    assert_ne!(second.exec("cat /note").await.unwrap().exit_code(), 0);
    assert_eq!(second.exec("hostname").await.unwrap().stdout_text(), "b\n");
    for workspace in [first, second] {
        workspace.destroy().await.unwrap();
    }
    host.remove_image("test").await.unwrap();
    assert_eq!(scene.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn concurrent_first_workspaces_make_one_template() {
    let scene = Scene::with_templates().await;
    let (one, other) = (scene.open().await, scene.open().await);

    let made = tokio::join!(try_create(&one, "a"), try_create(&other, "b"), try_create(&one, "c"));

    made.0.unwrap();
    made.1.unwrap();
    made.2.unwrap();
    assert_eq!(launches(&scene), 4);
    assert_eq!(scene.fakes.images().len(), 1);
}

#[tokio::test]
async fn each_size_has_a_template_of_its_own() {
    let scene = Scene::with_templates().await;
    let host = scene.open().await;
    create(&host, "a").await;
    let larger = Resources { memory_mb: crate::types::MemoryMib::new(1024).unwrap(), ..Resources::default() };

    host.warm("test", larger).await.unwrap();
    host.warm("test", larger).await.unwrap();

    assert_eq!(scene.fakes.images().len(), 2);
    assert_eq!(launches(&scene), 3);
}

#[tokio::test]
async fn template_that_cannot_be_used_any_more_is_made_anew() {
    let scene = Scene::with_templates().await;
    let host = scene.open().await;
    create(&host, "a").await;
    scene.fakes.set_images_obstacle(Some("it was made with QEMU 9"));

    create(&host, "b").await;

    assert_eq!(launches(&scene), 4);
    assert_eq!(scene.fakes.images().len(), 1);
    assert_eq!(host.workspace("a").await.unwrap().exec("true").await.unwrap().exit_code(), 0);
}

#[tokio::test]
async fn failed_template_leaves_nothing_and_says_why_or_the_workspace_boots() {
    for (method, creates) in [
        ("storage.create_disk", false),
        ("hypervisor.launch", false),
        ("agent.configure", false),
        ("agent.sync", true),
        ("hypervisor.capture", true),
        ("storage.begin_snapshot", false),
        ("storage.finish_snapshot", false),
    ] {
        let scene = Scene::with_templates().await;
        let host = scene.open().await;
        scene.fakes.faults().arm(method, 1, Fault::Fail);

        let made = try_create(&host, "a").await;

        assert_eq!(made.is_ok(), creates, "{method}: {made:?}");
        if let Ok(workspace) = made {
            workspace.destroy().await.unwrap();
        }
        assert_eq!(scene.leftovers().await, Vec::<String>::new(), "{method}");
    }
}

#[tokio::test]
async fn template_of_a_killed_process_is_removed_by_the_next_opener() {
    for method in ["hypervisor.launch", "hypervisor.capture", "storage.finish_snapshot"] {
        let scene = Scene::with_templates().await;
        scene.fakes.faults().arm(method, 1, Fault::HangAfter);
        let victim = Victim::stuck_in(&scene, async |host| drop(try_create(&host, "a").await)).await;
        called(&scene, method, 1).await;
        victim.kill();

        let again = scene.open().await;
        let made = try_create(&again, "b").await.unwrap();

        assert_eq!(made.exec("hostname").await.unwrap().stdout_text(), "b\n", "{method}");
        assert_eq!(scene.fakes.images().len(), 1, "{method}");
    }
}

#[tokio::test]
async fn image_with_a_template_only_can_be_removed() {
    let scene = Scene::with_templates().await;
    let host = scene.open().await;
    host.warm("test", Resources::default()).await.unwrap();

    host.remove_image("test").await.unwrap();

    assert!(scene.fakes.images().is_empty());
    let gone = host.warm("test", Resources::default()).await;
    assert!(gone.is_err(), "{gone:?}");
    assert!(ImageName::new("test").is_ok());
}

#[tokio::test]
async fn running_workspace_forks_with_what_is_in_its_memory() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let parent = create(&host, "p").await;
    // Never synced by the guest itself: in memory alone.
    scene.fakes.guest(parent.id()).unwrap().write_file("/unsaved", "in memory");

    let report = parent.fork(forks(3)).await.unwrap();

    assert_eq!((report.success_count, report.forked_from.snapshot.as_deref()), (3, None));
    for name in ["p-1", "p-2", "p-3"] {
        let fork = host.workspace(name).await.unwrap();
        assert_eq!(fork.exec("cat /unsaved").await.unwrap().stdout_text(), "in memory");
        assert_eq!(fork.exec("hostname").await.unwrap().stdout_text(), format!("{name}\n"));
        assert!(!scene.fakes.guest(fork.id()).unwrap().is_frozen());
    }
    assert!(!scene.fakes.guest(parent.id()).unwrap().is_frozen());
    assert_eq!(parent.info().await.unwrap().summary.state, WorkspaceState::Running);
    assert!(parent.snapshots().await.unwrap().is_empty());
    assert!(scene.fakes.images().is_empty(), "forks have the memory; the image is of no use any more");
}

#[tokio::test]
async fn forks_of_forks_and_their_ends_leave_nothing() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let parent = create(&host, "p").await;
    parent.fork(forks(1)).await.unwrap();
    let child = host.workspace("p-1").await.unwrap();
    child.exec("echo child > /note").await.unwrap();
    child.fork(forks(1)).await.unwrap();
    let grandchild = host.workspace("p-1-1").await.unwrap();

    parent.destroy().await.unwrap();
    child.destroy().await.unwrap();

    assert_eq!(grandchild.exec("cat /note").await.unwrap().stdout_text(), "child\n");
    grandchild.destroy().await.unwrap();
    assert_eq!(scene.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn snapshot_of_a_running_workspace_brings_memory_back() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "a").await;
    scene.fakes.guest(workspace.id()).unwrap().write_file("/unsaved", "then");
    let info = workspace.snapshot("s").await.unwrap();
    assert!(info.memory && info.size_bytes >= 1 << 20, "{info:?}");
    scene.fakes.guest(workspace.id()).unwrap().write_file("/unsaved", "now");

    let report = workspace.restore("s").await.unwrap();

    assert_eq!(report.state, WorkspaceState::Running);
    assert_eq!(workspace.exec("cat /unsaved").await.unwrap().stdout_text(), "then");
    assert!(!scene.fakes.guest(workspace.id()).unwrap().is_frozen());
    let fork = ForkSpec { snapshot: Some(named("s")), ..forks(1) };
    workspace.fork(fork).await.unwrap();
    let fork = host.workspace("a-1").await.unwrap();
    assert_eq!(fork.exec("cat /unsaved").await.unwrap().stdout_text(), "then");
    fork.destroy().await.unwrap();
    workspace.destroy().await.unwrap();
    assert_eq!(scene.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn restore_of_a_stopped_workspace_runs_on_from_the_memory() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "a").await;
    scene.fakes.guest(workspace.id()).unwrap().write_file("/unsaved", "then");
    workspace.snapshot("s").await.unwrap();
    workspace.stop().await.unwrap();

    workspace.restore("s").await.unwrap();

    assert_eq!(workspace.exec("cat /unsaved").await.unwrap().stdout_text(), "then");
}

#[tokio::test]
async fn memory_from_another_hypervisor_is_refused_and_its_disk_offered() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "a").await;
    workspace.exec("echo kept > /note").await.unwrap();
    workspace.snapshot("s").await.unwrap();
    scene.fakes.set_images_obstacle(Some("it was made with QEMU 9.2.0, here it is 10.0.2"));

    let refused = workspace.restore("s").await.unwrap_err();
    let fork = ForkSpec { snapshot: Some(named("s")), ..forks(1) };
    assert!(matches!(workspace.fork(fork.clone()).await, Err(EngineError::MemoryUnusable { .. })));

    assert!(refused.to_string().contains("QEMU 9.2.0"), "{refused}");
    assert!(refused.next_step().unwrap().contains("--disk-only"));
    assert_eq!(workspace.info().await.unwrap().summary.state, WorkspaceState::Running);
    workspace.restore_with(RestoreSpec { name: named("s"), disk_only: true }).await.unwrap();
    workspace.fork(ForkSpec { disk_only: true, ..fork }).await.unwrap();
    let fork = host.workspace("a-1").await.unwrap();
    assert_eq!(fork.exec("cat /note").await.unwrap().stdout_text(), "kept\n");
}

#[tokio::test]
async fn memory_of_a_stopped_workspace_cannot_be_kept() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "a").await;
    workspace.stop().await.unwrap();
    let spec = SnapshotSpec { memory: Some(true), ..SnapshotSpec::new(named("s")) };

    assert!(matches!(workspace.snapshot_with(spec).await, Err(EngineError::WrongState { .. })));
    assert!(!workspace.snapshot("s").await.unwrap().memory);
}

#[tokio::test]
async fn failed_capture_leaves_the_parent_running_and_nothing_else() {
    for method in [
        "agent.sync",
        "storage.begin_snapshot",
        "agent.freeze",
        "hypervisor.capture",
        "agent.configure",
        "storage.finish_snapshot",
    ] {
        let scene = Scene::new().await;
        let host = scene.open().await;
        let parent = create(&host, "p").await;
        scene.fakes.faults().arm(method, 1, Fault::Fail);

        let refused = parent.fork(forks(2)).await;

        assert!(refused.is_err(), "{method}: {refused:?}");
        assert!(!scene.fakes.guest(parent.id()).unwrap().is_frozen(), "{method}");
        assert_eq!(parent.info().await.unwrap().summary.state, WorkspaceState::Running, "{method}");
        parent.exec("echo on > /note").await.unwrap();
        parent.destroy().await.unwrap();
        assert_eq!(scene.leftovers().await, Vec::<String>::new(), "{method}");
    }
}

#[tokio::test]
async fn child_that_cannot_be_told_apart_is_destroyed_and_its_siblings_live() {
    for method in ["hypervisor.launch", "agent.configure", "agent.thaw"] {
        let scene = Scene::new().await;
        let host = scene.open().await;
        let parent = create(&host, "p").await;
        // The parent's own comes first.
        let nth = if method == "hypervisor.launch" { 1 } else { 2 };
        scene.fakes.faults().arm(method, nth, Fault::Fail);

        let report = parent.fork(forks(2)).await.unwrap();

        assert_eq!((report.success_count, report.failure_count), (1, 1), "{method}: {report:?}");
        assert_eq!(host.list().await.unwrap().len(), 2, "{method}");
    }
}

#[tokio::test]
async fn process_killed_while_capturing_leaves_a_parent_that_the_next_opener_wakes() {
    for method in ["agent.freeze", "hypervisor.capture", "agent.thaw", "storage.finish_snapshot"] {
        let scene = Scene::new().await;
        let host = scene.open().await;
        let parent = create(&host, "p").await;
        let id = parent.id();
        scene.fakes.faults().arm(method, 1, Fault::HangAfter);
        let victim = Victim::stuck_in(&scene, async |host| {
            drop(host.workspace("p").await.unwrap().fork(forks(1)).await);
        })
        .await;
        called(&scene, method, 1).await;
        victim.kill();

        eventually("the parent is awake and nothing is left", async || {
            scene.open().await;
            !scene.fakes.guest(id).unwrap().is_frozen() && scene.fakes.images().is_empty()
        })
        .await;

        let parent = scene.open().await.workspace("p").await.unwrap();
        parent.exec("echo on > /note").await.unwrap();
        parent.destroy().await.unwrap();
        assert_eq!(scene.leftovers().await, Vec::<String>::new(), "{method}");
    }
}

/// A guest may be slow enough to get the request only after the next opener has cleaned up.
#[tokio::test]
async fn freeze_of_a_killed_process_that_comes_late_freezes_nothing() {
    let scene = Scene::new().await;
    let parent = create(&scene.open().await, "p").await;
    let guest = scene.fakes.guest(parent.id()).unwrap();
    scene.fakes.faults().arm("agent.freeze", 1, Fault::Delay(Duration::from_secs(3)));
    let victim = Victim::stuck_in(&scene, async |host| {
        drop(host.workspace("p").await.unwrap().fork(forks(1)).await);
    })
    .await;
    called(&scene, "agent.freeze", 1).await;
    victim.kill();

    eventually("what the killed process had begun is gone", async || {
        let host = scene.open().await;
        host.workspace("p").await.unwrap().snapshots().await.unwrap().is_empty()
            && scene.fakes.faults().count("agent.thaw") > 0
    })
    .await;
    tokio::time::sleep(Duration::from_secs(4)).await;

    assert!(!guest.is_frozen());
}

#[tokio::test]
async fn workspace_spec_of_an_image_without_templates_boots() {
    let scene = Scene::new().await;
    let host = scene.open().await;

    host.create(WorkspaceSpec::new("test")).await.unwrap();

    assert_eq!(launches(&scene), 1);
    assert!(scene.fakes.images().is_empty());
}
