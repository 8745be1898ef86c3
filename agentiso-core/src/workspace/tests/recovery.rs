use std::time::Duration;

use super::{Scene, create, eventually, try_create};
use crate::storage::{DiskOrigin, Storage};
use crate::testkit::Fault;
use crate::types::{DiskId, ProcessRef, SnapshotName, WorkspaceId};
use crate::{Host, SnapshotSpec, WorkspaceSpec, WorkspaceState};

/// Drops a host and what it was doing, as the kernel does with a killed process: nothing of it runs on, and locks are
/// free.
pub(super) struct Victim {
    runtime: Option<tokio::runtime::Runtime>,
}

impl Victim {
    /// Starts a process that opens the scene and does something that never ends.
    pub(super) async fn stuck_in<F>(scene: &Scene, work: impl FnOnce(Host) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (config, backends) = (scene.config(), scene.backends());
        runtime.spawn(async move { work(Host::open_with(config, backends).await.unwrap()).await });
        Self { runtime: Some(runtime) }
    }

    pub(super) fn kill(mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

/// Waits until a fault's method has been called so often.
pub(super) async fn called(scene: &Scene, method: &'static str, times: usize) {
    eventually(method, async || scene.fakes.faults().count(method) >= times).await;
}

/// Waits until the state folder opens without a workspace lock being held by what was killed.
async fn open_after_kill(scene: &Scene, expected: usize) -> Host {
    let host = scene.open().await;
    eventually("the killed process's locks are free", async || {
        scene.open().await;
        host.list().await.unwrap().len() == expected
    })
    .await;
    host
}

#[tokio::test]
async fn machines_outlive_their_maker_and_work_afterwards() {
    let scene = Scene::new().await;
    let first = scene.open().await;
    let id = create(&first, "a").await.id();
    drop(first);

    let second = scene.open().await;

    let workspace = second.workspace("a").await.unwrap();
    assert_eq!(workspace.id(), id);
    assert_eq!(workspace.exec("echo hi").await.unwrap().stdout_text(), "hi\n");
}

#[tokio::test]
async fn create_killed_at_any_call_leaves_nothing() {
    for method in
        ["storage.create_disk", "channel.prepare", "network.attach", "hypervisor.launch", "agent.configure"]
    {
        for fault in [Fault::Hang, Fault::HangAfter] {
            let scene = Scene::new().await;
            scene.fakes.faults().arm(method, 1, fault);
            let victim = Victim::stuck_in(&scene, async |host| drop(try_create(&host, "a").await)).await;
            called(&scene, method, 1).await;

            victim.kill();

            let host = open_after_kill(&scene, 0).await;
            assert_eq!(scene.leftovers().await, Vec::<String>::new(), "{method} {fault:?}");
            create(&host, "a").await;
        }
    }
}

/// What the channel, the network and the storage keep for machines.
async fn held(scene: &Scene) -> (usize, usize, usize) {
    let backends = scene.backends();
    (
        backends.channel.leftovers().await.unwrap().len(),
        backends.network.leftovers().await.unwrap().len(),
        backends.storage.inventory().await.unwrap().disks.len(),
    )
}

#[tokio::test]
async fn machine_that_cannot_be_ended_keeps_its_channel_its_card_and_its_disk() {
    let scene = Scene::new().await;
    // A machine that no record knows, for its maker was killed before it wrote it down.
    scene.fakes.faults().arm("hypervisor.launch", 1, Fault::HangAfter);
    let victim = Victim::stuck_in(&scene, async |host| drop(try_create(&host, "a").await)).await;
    called(&scene, "hypervisor.launch", 1).await;
    let before = held(&scene).await;
    assert_eq!(before, (1, 1, 1));
    victim.kill();
    // Nobody tries to end the machine before the locks of its maker are free.
    eventually("an opener has tried to end the machine", async || {
        scene.fakes.faults().disarm();
        scene.fakes.faults().arm("hypervisor.kill_process", 1, Fault::Fail);
        scene.open().await;
        scene.fakes.faults().count("hypervisor.kill_process") > 0
    })
    .await;

    assert_eq!(held(&scene).await, before, "they are another's only when the machine is gone");

    scene.fakes.faults().disarm();
    open_after_kill(&scene, 0).await;
    assert_eq!(scene.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn destroy_killed_at_any_call_is_finished_by_the_next_opener() {
    for method in ["hypervisor.kill", "network.detach", "channel.release", "storage.destroy_disk"] {
        let scene = Scene::new().await;
        create(&scene.open().await, "a").await;
        scene.fakes.faults().arm(method, 1, Fault::HangAfter);
        let victim = Victim::stuck_in(&scene, async |host| {
            drop(host.workspace("a").await.unwrap().destroy().await);
        })
        .await;
        called(&scene, method, 1).await;

        victim.kill();

        open_after_kill(&scene, 0).await;
        assert_eq!(scene.leftovers().await, Vec::<String>::new(), "{method}");
    }
}

#[tokio::test]
async fn snapshot_killed_at_any_call_never_was_and_loses_nothing() {
    for method in ["storage.begin_snapshot", "hypervisor.pivot_disk", "storage.finish_snapshot"] {
        for fault in [Fault::Hang, Fault::HangAfter] {
            let scene = Scene::new().await;
            let workspace = create(&scene.open().await, "a").await;
            workspace.exec("echo before > /note").await.unwrap();
            scene.fakes.faults().arm(method, 1, fault);
            let victim = Victim::stuck_in(&scene, async |host| {
                let disk = SnapshotSpec {
                    memory: Some(false),
                    ..SnapshotSpec::new(SnapshotName::new("s").unwrap())
                };
                drop(host.workspace("a").await.unwrap().snapshot_with(disk).await);
            })
            .await;
            called(&scene, method, 1).await;
            workspace.exec("echo after > /note; sync").await.unwrap();

            victim.kill();
            eventually("the snapshot is undone", async || {
                scene.open().await;
                scene.backends().storage.inventory().await.unwrap().pending.is_empty()
            })
            .await;

            let host = scene.open().await;
            let workspace = host.workspace("a").await.unwrap();
            assert!(workspace.snapshots().await.unwrap().is_empty(), "{method} {fault:?}");
            workspace.stop().await.unwrap();
            workspace.start().await.unwrap();
            assert_eq!(
                workspace.exec("cat /note").await.unwrap().stdout_text(),
                "after\n",
                "{method} {fault:?}"
            );
            workspace.snapshot("s").await.unwrap();
        }
    }
}

#[tokio::test]
async fn opening_leaves_alone_what_another_process_is_making() {
    let scene = Scene::new().await;
    scene.fakes.set_boot_time(Duration::from_millis(500));
    let maker = scene.open().await;
    let making = tokio::spawn(async move { try_create(&maker, "a").await });
    called(&scene, "hypervisor.launch", 1).await;

    let other = scene.open().await;

    assert_eq!(other.list().await.unwrap()[0].state, WorkspaceState::Starting);
    let workspace = making.await.unwrap().unwrap();
    assert_eq!(workspace.exec("echo hi").await.unwrap().stdout_text(), "hi\n");
}

#[tokio::test]
async fn throwaway_goes_with_its_process_and_others_stay() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    create(&host, "stays").await;
    let spec = WorkspaceSpec { throwaway: true, ..WorkspaceSpec::new("test").name("goes").unwrap() };
    let goes = host.create(spec).await.unwrap();
    // This process lives on, so its reference is replaced by one of a process that does not.
    let mut record =
        host.workspace("goes").await.map(|_| ()).and(Ok::<_, crate::EngineError>(goes.id())).unwrap();
    forget_owner(&scene, &mut record);

    let reopened = scene.open().await;

    let names: Vec<_> = reopened.list().await.unwrap().into_iter().map(|summary| summary.name).collect();
    assert_eq!(names, ["stays"]);
}

fn forget_owner(scene: &Scene, id: &mut WorkspaceId) {
    let store = crate::store::Store::open(&scene.config().layout().database()).unwrap();
    let mut record = store.get(*id).unwrap().unwrap();
    let gone = ProcessRef { start_ticks: 0, ..ProcessRef::current().unwrap() };
    record.throwaway_of = Some(gone);
    store.update(&record).unwrap();
}

#[tokio::test]
async fn what_no_record_knows_is_removed() {
    let scene = Scene::new().await;
    let stray = WorkspaceId::random();
    let disk = DiskId::from(*stray.as_uuid());
    scene.fakes.storage().create_disk(disk, DiskOrigin::Base(scene.base), 1 << 30).await.unwrap();
    let layout = scene.config().layout();
    std::fs::create_dir(layout.run().join(stray.to_string())).unwrap();
    std::fs::write(layout.locks().join(format!("{stray}.lock")), "").unwrap();
    std::fs::write(layout.run().join("not-ours"), "").unwrap();

    scene.open().await;

    let left = scene.leftovers().await;
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(left[0].contains("not-ours"));
}

#[tokio::test]
async fn damaged_record_keeps_no_other_from_working() {
    let scene = Scene::new().await;
    let host = scene.open().await;
    create(&host, "good").await;
    let bad = create(&host, "bad").await;
    let database = scene.config().layout().database();
    rusqlite::Connection::open(database)
        .unwrap()
        .execute("UPDATE workspaces SET policy = 'x' WHERE id = ?1", [bad.id().to_string()])
        .unwrap();

    let reopened = scene.open().await;

    assert_eq!(reopened.list().await.unwrap().len(), 1);
    assert!(reopened.workspace("good").await.unwrap().exec("true").await.unwrap().success());
    assert!(scene.fakes.guest(bad.id()).is_some(), "its machine is not a stray");
    let error = reopened.workspace("bad").await.unwrap_err();
    assert!(error.to_string().contains("workspace bad"), "{error}");
}
