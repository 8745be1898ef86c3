//! The contract of [`MachineMemory`](crate::hypervisor::MachineMemory).

use super::{eventually, hypervisor::HypervisorFixture, through_text};
use crate::{
    hypervisor::{
        AfterCapture, CaptureSpec, DiskStep, Hypervisor, HypervisorError, LaunchSpec, Machine, MachineStatus,
        Start,
    },
    types::SnapshotId,
};

/// What is captured, for a machine that was launched with `uid`.
fn spec(image: SnapshotId, uid: Option<crate::types::MachineUid>) -> CaptureSpec<'static> {
    CaptureSpec { image, uid, disk: DiskStep::Keep, restores: 1, durable: false, after: AfterCapture::Resume }
}

async fn launched(fixture: &dyn HypervisorFixture) -> (Box<dyn Hypervisor>, Machine, LaunchSpecUid) {
    let hypervisor = fixture.open().await;
    let launch = fixture.spec().await;
    let uid = launch.uid;
    let machine = hypervisor.launch(launch).await.unwrap();
    (hypervisor, machine, uid)
}

type LaunchSpecUid = Option<crate::types::MachineUid>;

async fn restored(
    fixture: &dyn HypervisorFixture,
    hypervisor: &dyn Hypervisor,
    image: SnapshotId,
) -> Result<Machine, HypervisorError> {
    let launch = LaunchSpec { start: Start::Restore(image), ..fixture.spec().await };
    hypervisor.launch(launch).await
}

/// "Then it runs on."
pub async fn captured_machine_runs_on(fixture: &dyn HypervisorFixture) {
    let (hypervisor, machine, uid) = launched(fixture).await;
    let image = SnapshotId::random();

    hypervisor.capture(&machine, spec(image, uid)).await.unwrap();

    assert_eq!(hypervisor.status(&machine).await.unwrap(), MachineStatus::Running);
    let described = hypervisor.image(image).await.unwrap();
    assert_eq!(described.obstacle, None);
    assert!(described.unique_bytes > 0);
    assert_eq!(hypervisor.images().await.unwrap(), [image]);
    hypervisor.kill(&machine).await.unwrap();
}

/// [`AfterCapture::StayPaused`].
pub async fn captured_machine_stands_still_if_asked(fixture: &dyn HypervisorFixture) {
    let (hypervisor, machine, uid) = launched(fixture).await;
    let image = SnapshotId::random();

    let stay = CaptureSpec { after: AfterCapture::StayPaused, ..spec(image, uid) };
    hypervisor.capture(&machine, stay).await.unwrap();

    assert_eq!(hypervisor.status(&machine).await.unwrap(), MachineStatus::Paused);
    hypervisor.kill(&machine).await.unwrap();
}

/// "That further machines begin with": several, while the first runs and after it is gone, and from one of them again.
pub async fn machines_begin_with_an_image(fixture: &dyn HypervisorFixture) {
    let (hypervisor, machine, uid) = launched(fixture).await;
    let image = SnapshotId::random();
    hypervisor.capture(&machine, spec(image, uid)).await.unwrap();

    let first = restored(fixture, &*hypervisor, image).await.unwrap();
    hypervisor.kill(&machine).await.unwrap();
    let other = fixture.open().await;
    let second = restored(fixture, &*other, image).await.unwrap();
    let again = SnapshotId::random();
    let uid_of_second = uid.map(|_| crate::types::MachineUid(uid_of(&second)));
    other.capture(&through_text(&second), spec(again, uid_of_second)).await.unwrap();
    let third = restored(fixture, &*other, again).await.unwrap();

    for machine in [first, second, third] {
        assert_eq!(hypervisor.status(&machine).await.unwrap(), MachineStatus::Running);
        hypervisor.kill(&machine).await.unwrap();
    }
}

fn uid_of(machine: &Machine) -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(format!("/proc/{}", machine.process.pid)).map_or(0, |process| process.uid())
}

/// "The machine moves to this new layer."
pub async fn capture_moves_the_disk(fixture: &dyn HypervisorFixture) {
    let (hypervisor, machine, uid) = launched(fixture).await;
    let layer = fixture.empty_layer(&machine).await;
    let image = SnapshotId::random();

    let moving = CaptureSpec { disk: DiskStep::Pivot(layer.clone()), ..spec(image, uid) };
    hypervisor.capture(&machine, moving).await.unwrap();

    assert_eq!(hypervisor.active_layer(&machine).await.unwrap(), layer.id);
    assert_eq!(hypervisor.status(&machine).await.unwrap(), MachineStatus::Running);
    hypervisor.kill(&machine).await.unwrap();
}

/// [`DiskStep::Instant`]: while the machine stands still. "On failure the machine runs."
pub async fn capture_whose_disk_fails_leaves_the_machine_running(fixture: &dyn HypervisorFixture) {
    let (hypervisor, machine, uid) = launched(fixture).await;
    let image = SnapshotId::random();
    let (status, seen) = tokio::sync::oneshot::channel();
    let asked = fixture.open().await;
    let record = machine.clone();
    let snapshot = async move {
        let _ = status.send(asked.is_alive(&record));
        Err(crate::storage::StorageError::Full { what: "a snapshot".to_owned() })
    };

    let failing = CaptureSpec { disk: DiskStep::Instant(Box::pin(snapshot)), ..spec(image, uid) };
    let result = hypervisor.capture(&machine, failing).await;

    assert!(result.is_err());
    assert!(seen.await.unwrap());
    assert_eq!(hypervisor.status(&machine).await.unwrap(), MachineStatus::Running);
    assert!(matches!(hypervisor.image(image).await, Err(HypervisorError::NoImage { .. })));
    assert!(hypervisor.images().await.unwrap().is_empty());
    hypervisor.kill(&machine).await.unwrap();
}

/// "... and when the future is dropped": the machine runs, whoever dies.
pub async fn dropped_capture_leaves_the_machine_running(fixture: &dyn HypervisorFixture) {
    let (hypervisor, machine, uid) = launched(fixture).await;
    let image = SnapshotId::random();
    let (reached, paused) = tokio::sync::oneshot::channel();
    let stuck = async move {
        let _ = reached.send(());
        std::future::pending().await
    };

    {
        let held = CaptureSpec { disk: DiskStep::Instant(Box::pin(stuck)), ..spec(image, uid) };
        let capture = hypervisor.capture(&machine, held);
        tokio::select! {
            result = capture => panic!("captured: {result:?}"),
            _ = paused => {}
        }
    }

    eventually("the machine runs", async || {
        hypervisor.status(&machine).await.unwrap() == MachineStatus::Running
    })
    .await;
    hypervisor.capture(&machine, spec(SnapshotId::random(), uid)).await.unwrap();
    hypervisor.kill(&machine).await.unwrap();
}

/// "Errors: the image exists; the machine is gone or does not run."
pub async fn capture_is_refused_where_it_cannot_be(fixture: &dyn HypervisorFixture) {
    let (hypervisor, machine, uid) = launched(fixture).await;
    let image = SnapshotId::random();
    hypervisor.capture(&machine, spec(image, uid)).await.unwrap();

    assert!(hypervisor.capture(&machine, spec(image, uid)).await.is_err());
    hypervisor.pause(&machine).await.unwrap();
    assert!(hypervisor.capture(&machine, spec(SnapshotId::random(), uid)).await.is_err());
    assert_eq!(hypervisor.status(&machine).await.unwrap(), MachineStatus::Paused);
    hypervisor.kill(&machine).await.unwrap();
    assert!(hypervisor.capture(&machine, spec(SnapshotId::random(), uid)).await.is_err());
    assert_eq!(hypervisor.images().await.unwrap(), [image]);
}

/// "Machines that were started from it go on. Not there: no effect."
pub async fn deleted_image_is_gone_and_its_machines_go_on(fixture: &dyn HypervisorFixture) {
    let (hypervisor, machine, uid) = launched(fixture).await;
    let image = SnapshotId::random();
    hypervisor.capture(&machine, spec(image, uid)).await.unwrap();
    let child = restored(fixture, &*hypervisor, image).await.unwrap();

    for _ in 0..2 {
        hypervisor.delete_image(image).await.unwrap();
    }

    assert!(hypervisor.images().await.unwrap().is_empty());
    assert!(matches!(hypervisor.image(image).await, Err(HypervisorError::NoImage { .. })));
    assert!(matches!(restored(fixture, &*hypervisor, image).await, Err(HypervisorError::NoImage { .. })));
    assert_eq!(hypervisor.status(&child).await.unwrap(), MachineStatus::Running);
    hypervisor.kill(&child).await.unwrap();
    hypervisor.kill(&machine).await.unwrap();
}
