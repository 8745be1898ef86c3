use std::time::Duration;

use super::{DISK_BYTES, Scene, client, launch};
use crate::{
    channel::client::WriteOptions,
    hypervisor::{Hypervisor, MachineStatus},
    storage::{DiskOrigin, Outcome, PendingSnapshot, Storage},
    testkit::{Fault, contract::eventually},
    types::{DiskId, SnapshotId},
};

const SOON: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_secs(20);

async fn write(scene: &Scene, content: &str) {
    let mut input = content.as_bytes();
    scene.client().write_file("/file", WriteOptions { mode: None, parents: true }, &mut input).await.unwrap();
}

/// What a new machine finds on a disk.
async fn content_after_launch(scene: &Scene, disk: DiskId) -> Option<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let (machine, record) = launch(&scene.host, disk, folder.path().to_owned()).await;
    let content = client(&scene.host, &record).read_file("/file", 0, 100).await.ok();
    scene.host.hypervisor().kill(&machine).await.unwrap();
    content
}

#[tokio::test]
async fn shutdown_ends_the_machine_with_its_disk_flushed() {
    let scene = Scene::new().await;
    write(&scene, "kept").await;

    scene.client().shutdown(SOON).await.unwrap();

    assert!(scene.host.hypervisor().wait_exit(&scene.machine, LONG).await.unwrap());
    assert_eq!(content_after_launch(&scene, scene.disk).await.as_deref(), Some(&b"kept"[..]));
}

#[tokio::test]
async fn crash_loses_what_was_not_synced() {
    let scene = Scene::new().await;
    write(&scene, "synced").await;
    scene.client().sync().await.unwrap();
    write(&scene, "lost").await;

    scene.host.crash(&scene.machine);

    assert_eq!(content_after_launch(&scene, scene.disk).await.as_deref(), Some(&b"synced"[..]));
}

#[tokio::test]
async fn power_button_ends_the_machine_unless_the_guest_ignores_it() {
    let hypervisor = |scene: &Scene| scene.host.hypervisor();
    let obedient = Scene::new().await;
    let deaf = Scene::new().await;
    deaf.host.faults().arm("agent.power_button", 1, Fault::Hang);

    hypervisor(&obedient).power_button(&obedient.machine).await.unwrap();
    hypervisor(&deaf).power_button(&deaf.machine).await.unwrap();

    assert!(hypervisor(&obedient).wait_exit(&obedient.machine, LONG).await.unwrap());
    assert!(!hypervisor(&deaf).wait_exit(&deaf.machine, SOON).await.unwrap());
}

#[tokio::test]
async fn paused_machine_answers_when_it_is_resumed() {
    let scene = Scene::new().await;
    let hypervisor = scene.host.hypervisor();
    hypervisor.pause(&scene.machine).await.unwrap();

    let client = scene.client();
    let ping = client.ping();
    tokio::pin!(ping);
    let early = tokio::time::timeout(SOON, &mut ping).await;
    hypervisor.resume(&scene.machine).await.unwrap();

    assert!(early.is_err());
    ping.await.unwrap();
}

#[tokio::test]
async fn machine_answers_once_it_has_booted() {
    let scene = Scene::new().await;
    scene.host.set_boot_time(SOON);
    let (disk, folder) = (DiskId::random(), tempfile::tempdir().unwrap());
    let snapshot = SnapshotId::random();
    let storage = scene.host.storage();
    storage.begin_snapshot(scene.disk, snapshot).await.unwrap();
    storage.finish_snapshot(scene.disk, snapshot, Outcome::Commit).await.unwrap();
    let origin = DiskOrigin::Snapshot { disk: scene.disk, snapshot };
    storage.create_disk(disk, origin, DISK_BYTES).await.unwrap();

    let begin = tokio::time::Instant::now();
    let (_, record) = launch(&scene.host, disk, folder.path().to_owned()).await;
    client(&scene.host, &record).ping().await.unwrap();

    assert!(begin.elapsed() >= SOON);
}

#[tokio::test]
async fn snapshot_of_a_running_machine_has_what_was_synced_before_it() {
    let scene = Scene::new().await;
    let storage = scene.host.storage();
    let (snapshot, fork) = (SnapshotId::random(), DiskId::random());
    write(&scene, "before").await;
    scene.client().sync().await.unwrap();

    let PendingSnapshot::Pivot { to } = storage.begin_snapshot(scene.disk, snapshot).await.unwrap() else {
        panic!("it pivots")
    };
    scene.host.hypervisor().pivot_disk(&scene.machine, &to).await.unwrap();
    storage.finish_snapshot(scene.disk, snapshot, Outcome::Commit).await.unwrap();
    write(&scene, "after").await;
    scene.client().sync().await.unwrap();

    let origin = DiskOrigin::Snapshot { disk: scene.disk, snapshot };
    storage.create_disk(fork, origin, DISK_BYTES).await.unwrap();
    scene.host.hypervisor().kill(&scene.machine).await.unwrap();
    assert_eq!(content_after_launch(&scene, fork).await.as_deref(), Some(&b"before"[..]));
    assert_eq!(content_after_launch(&scene, scene.disk).await.as_deref(), Some(&b"after"[..]));
}

#[tokio::test]
async fn machine_outlives_those_who_used_it() {
    let scene = Scene::new().await;
    drop(scene.client());

    let status = scene.host.hypervisor().status(&scene.machine).await.unwrap();

    assert_eq!(status, MachineStatus::Running);
    scene.client().ping().await.unwrap();
}

#[tokio::test]
async fn killed_machine_ends_its_connections() {
    let scene = Scene::new().await;
    let guest = scene.guest();
    let client = scene.client();
    let mut stream = client.exec(crate::channel::client::ExecSpec::program(["sleep", "1000"])).await.unwrap();
    stream.next().await.unwrap();

    scene.host.hypervisor().kill(&scene.machine).await.unwrap();

    assert!(stream.next().await.is_err());
    eventually("the agent serves nobody", async || guest.connections() == 0).await;
}
