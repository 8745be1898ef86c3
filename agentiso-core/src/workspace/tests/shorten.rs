use super::recovery::{Victim, called};
use super::{Scene, create, eventually};
use crate::storage::{FORKED_CHAIN_DEPTH, MAX_CHAIN_DEPTH};
use crate::testkit::Fault;
use crate::{Host, MAX_SNAPSHOTS, Workspace};

async fn depth(scene: &Scene, workspace: &Workspace) -> usize {
    let disk = (*workspace.id().as_uuid()).into();
    scene.backends().storage.open_disk(disk).await.unwrap().layers.len()
}

/// Takes so many snapshots, with another note in each: `s1` holds `1`, and so on.
async fn take_snapshots(workspace: &Workspace, count: usize) {
    for number in 1..=count {
        workspace.exec(&format!("echo {number} > /note")).await.unwrap();
        workspace.snapshot(&format!("s{number}")).await.unwrap();
    }
}

async fn note(workspace: &Workspace) -> String {
    workspace.exec("cat /note").await.unwrap().stdout_text().trim().to_owned()
}

/// Opens the workspace as another process does.
async fn reopen(scene: &Scene) -> (Host, Workspace) {
    let host = scene.open().await;
    let workspace = host.workspace("a").await.unwrap();
    (host, workspace)
}

#[tokio::test]
async fn many_snapshots_leave_a_short_chain_and_can_all_be_restored() {
    let scene = Scene::new().await;
    let (host, count) = (scene.open().await, MAX_SNAPSHOTS);
    let workspace = create(&host, "a").await;

    take_snapshots(&workspace, count).await;

    let (_host, workspace) = reopen(&scene).await;
    assert!(depth(&scene, &workspace).await <= MAX_CHAIN_DEPTH);
    assert_eq!(note(&workspace).await, count.to_string());
    for number in [count, 13, 7, 1] {
        workspace.restore(&format!("s{number}")).await.unwrap();
        assert_eq!(note(&workspace).await, number.to_string());
    }
}

/// Copying in each of many forks, while they start, took longer than the forks.
#[tokio::test]
async fn parent_of_many_forks_gets_short_and_none_of_them_need_to() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "a").await;

    for round in 1..=12 {
        let before = scene.fakes.faults().count("hypervisor.stream_disk");
        let spec = crate::ForkSpec { count: 2, ..Default::default() };
        let report = workspace.fork(spec).await.unwrap();
        let copying = scene.fakes.faults().count("hypervisor.stream_disk") - before;

        assert!(copying <= 1, "{round}: {copying}");
        for fork in report.workers {
            let fork = host.workspace(&fork.name).await.unwrap();
            assert!(depth(&scene, &fork).await <= MAX_CHAIN_DEPTH, "{round}");
            fork.destroy().await.unwrap();
        }
        // As the next opener does: the copying may have ended.
        scene.open().await;
    }

    assert!(scene.fakes.faults().count("hypervisor.stream_disk") > 0);
    assert!(depth(&scene, &workspace).await <= FORKED_CHAIN_DEPTH);
}

#[tokio::test]
async fn copying_is_given_up_for_a_snapshot_and_done_by_a_later_opener() {
    let scene = Scene::new().await;
    scene.fakes.set_copies_slowly(true);
    let workspace = create(&scene.open().await, "a").await;

    take_snapshots(&workspace, 12).await;

    assert_eq!(depth(&scene, &workspace).await, 14);
    drop(workspace);
    scene.fakes.set_copies_slowly(false);
    let (_host, workspace) = reopen(&scene).await;
    assert!(depth(&scene, &workspace).await <= MAX_CHAIN_DEPTH);
    assert_eq!(note(&workspace).await, "12");
    workspace.stop().await.unwrap();
    workspace.start().await.unwrap();
    assert_eq!(note(&workspace).await, "12");
}

#[tokio::test]
async fn long_chain_of_a_stopped_workspace_gets_short_when_it_runs() {
    let scene = Scene::new().await;
    let workspace = create(&scene.open().await, "a").await;
    workspace.exec("echo kept > /note").await.unwrap();
    workspace.stop().await.unwrap();
    for number in 0..12 {
        workspace.snapshot(&format!("s{number}")).await.unwrap();
    }
    assert_eq!(depth(&scene, &workspace).await, 14);

    workspace.start().await.unwrap();

    let (_host, workspace) = reopen(&scene).await;
    assert!(depth(&scene, &workspace).await <= MAX_CHAIN_DEPTH);
    assert_eq!(note(&workspace).await, "kept");
}

#[tokio::test]
async fn forks_of_an_old_snapshot_are_what_they_were_and_their_parent_can_go() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    let workspace = create(&host, "a").await;
    take_snapshots(&workspace, 7).await;
    let snapshot = Some(crate::types::SnapshotName::new("s3").unwrap());
    workspace.fork(crate::ForkSpec { snapshot, ..Default::default() }).await.unwrap();

    let (host, workspace) = reopen(&scene).await;
    assert!(depth(&scene, &workspace).await <= MAX_CHAIN_DEPTH);
    workspace.destroy().await.unwrap();

    let fork = host.workspace("a-1").await.unwrap();
    assert_eq!(note(&fork).await, "3");
    fork.stop().await.unwrap();
    fork.start().await.unwrap();
    assert_eq!(note(&fork).await, "3");
}

/// In the order in which the seventh snapshot and the eighth call them.
const METHODS: [&str; 4] =
    ["storage.shorten_plan", "hypervisor.stream_disk", "hypervisor.cancel_stream", "storage.finish_shorten"];

/// Asserts that every snapshot holds its number, and that the next ones leave a short chain.
async fn assert_nothing_is_lost(scene: &Scene, context: &str) {
    let (_host, workspace) = reopen(scene).await;
    let before = note(&workspace).await;
    workspace.stop().await.unwrap();
    workspace.start().await.unwrap();
    assert_eq!(note(&workspace).await, before, "{context}");
    for number in 1..=10 {
        workspace.snapshot(&format!("more{number}")).await.unwrap();
    }
    let (_host, workspace) = reopen(scene).await;
    assert!(depth(scene, &workspace).await <= MAX_CHAIN_DEPTH, "{context}");
    for snapshot in workspace.snapshots().await.unwrap().iter().rev() {
        workspace.restore(&snapshot.name).await.unwrap();
        let expected = if snapshot.name.starts_with("more") { &before } else { &snapshot.name[1..] };
        assert_eq!(note(&workspace).await, *expected, "{context}: {}", snapshot.name);
    }
}

#[tokio::test]
async fn failure_of_any_call_loses_nothing() {
    for method in METHODS {
        let scene = Scene::new().await;
        let workspace = create(&scene.open().await, "a").await;
        take_snapshots(&workspace, 6).await;
        scene.fakes.faults().arm(method, 1, Fault::Fail);

        for number in [7, 8] {
            workspace.exec(&format!("echo {number} > /note")).await.unwrap();
            let taken = workspace.snapshot(&format!("s{number}")).await;
            // Copying may fail without anyone noticing, giving it up may not.
            assert!(taken.is_ok() || method != "hypervisor.stream_disk", "{taken:?}");
        }

        assert!(scene.fakes.faults().count(method) > 0);
        assert_nothing_is_lost(&scene, method).await;
    }
}

#[tokio::test]
async fn death_at_any_call_loses_nothing() {
    for method in METHODS {
        for fault in [Fault::Hang, Fault::HangAfter] {
            let scene = Scene::new().await;
            let workspace = create(&scene.open().await, "a").await;
            take_snapshots(&workspace, 6).await;
            let before = scene.fakes.faults().count(method);
            // The first plan is asked for by the opening.
            let nth = if method == "storage.shorten_plan" { 2 } else { 1 };
            scene.fakes.faults().arm(method, nth, fault);
            let victim = Victim::stuck_in(&scene, async |host| {
                let workspace = host.workspace("a").await.unwrap();
                for number in 7..12 {
                    workspace.exec(&format!("echo {number} > /note")).await.unwrap();
                    drop(workspace.snapshot(&format!("s{number}")).await);
                }
            })
            .await;
            called(&scene, method, before + nth).await;

            victim.kill();
            eventually("the killed process's lock is free", async || {
                scene.open().await;
                let inventory = scene.backends().storage.inventory().await.unwrap();
                inventory.pending.is_empty() && workspace.pause().await.is_ok()
            })
            .await;
            workspace.resume().await.unwrap();

            assert_nothing_is_lost(&scene, &format!("{method} {fault:?}")).await;
        }
    }
}
