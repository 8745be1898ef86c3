//! Which device a disk is, whatever becomes of the volumes.

use std::{fs::File, os::unix::fs::FileTypeExt, path::Path};

use agentiso_core::{
    storage::{DiskOrigin, Storage},
    types::DiskId,
};

use crate::fixture::{BYTES, Fixture};

fn is_block_device(path: &Path) -> bool {
    path.metadata().unwrap().file_type().is_block_device()
}

#[tokio::test]
async fn device_stays_through_snapshot_and_promotion_and_is_new_after_a_rollback() {
    let fixture = Fixture::new().await.unwrap();
    let base = fixture.base(7).await;
    let parent = fixture.disk(DiskOrigin::Base(base)).await;
    let first = fixture.path(parent).await;
    assert!(is_block_device(&first));
    let snapshot = fixture.snapshot(parent).await;
    assert_eq!(fixture.path(parent).await, first);
    let child = fixture.disk(DiskOrigin::Snapshot { disk: parent, snapshot }).await;
    let of_child = fixture.path(child).await;
    assert_ne!(of_child, first);

    fixture.write(parent, 8).await;
    fixture.storage().await.rollback(parent, snapshot).await.unwrap();
    assert_eq!(fixture.read(parent).await, 7);
    assert!(is_block_device(&fixture.path(parent).await));
    // A machine that runs has its device open while its parent goes, and it becomes the owner of the snapshot.
    let in_use = File::options().read(true).write(true).open(&of_child).unwrap();
    fixture.storage().await.destroy_disk(parent).await.unwrap();

    assert_eq!(fixture.path(child).await, of_child);
    assert_eq!(fixture.read(child).await, 7);
    drop(in_use);
}

#[tokio::test]
async fn number_that_is_used_again_is_not_mistaken() {
    let fixture = Fixture::new().await.unwrap();
    let base = fixture.base(7).await;
    let kept = fixture.disk(DiskOrigin::Base(base)).await;
    let mut paths = Vec::new();
    for marker in 1..=4 {
        let disk = fixture.disk(DiskOrigin::Base(base)).await;
        fixture.write(disk, marker).await;
        assert_eq!(fixture.read(disk).await, marker);
        paths.push(fixture.path(disk).await);
        fixture.storage().await.destroy_disk(disk).await.unwrap();
    }

    assert_eq!(fixture.read(kept).await, 7);
    assert!(!paths.contains(&fixture.path(kept).await));
}

#[tokio::test]
async fn disk_that_is_still_open_is_gone_when_it_is_closed() {
    let fixture = Fixture::new().await.unwrap();
    let base = fixture.base(7).await;
    let disk = fixture.disk(DiskOrigin::Base(base)).await;
    let opened = File::open(fixture.path(disk).await).unwrap();
    let storage = fixture.storage().await;

    let destroying = tokio::spawn(async move { storage.destroy_disk(disk).await });
    // What the destroying waits for; whether it has begun to does not matter.
    drop(opened);
    destroying.await.unwrap().unwrap();

    assert_eq!(fixture.listed("volume").len(), 1);
}

#[tokio::test]
async fn disk_may_be_larger_than_its_origin_and_shows_it() {
    let fixture = Fixture::new().await.unwrap();
    let base = fixture.base(7).await;
    let disk = DiskId::random();
    let storage = fixture.storage().await;
    storage.create_disk(disk, DiskOrigin::Base(base), 4 * BYTES).await.unwrap();
    let snapshot = fixture.snapshot(disk).await;
    fixture.write(disk, 8).await;
    storage.rollback(disk, snapshot).await.unwrap();

    let path = fixture.path(disk).await;
    let name = path.file_name().unwrap().to_str().unwrap();
    let sectors = std::fs::read_to_string(format!("/sys/block/{name}/size")).unwrap();
    assert_eq!(sectors.trim().parse::<u64>().unwrap() * 512, 4 * BYTES);
    assert_eq!(fixture.read(disk).await, 7);
}
