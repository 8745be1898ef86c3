//! How long things take: bounds generous enough for an emulated host, and the figures printed.

use std::time::{Duration, Instant};

use agentiso_core::{
    storage::{DiskOrigin, Outcome, Storage},
    types::SnapshotId,
};

use crate::fixture::Fixture;

#[tokio::test]
async fn snapshot_of_a_standing_machine_is_taken_at_once() {
    let fixture = Fixture::new().await.unwrap();
    let storage = fixture.storage().await;
    let base = fixture.base(1).await;
    let disk = fixture.disk(DiskOrigin::Base(base)).await;
    let mut times = Vec::new();
    for marker in 1..=20 {
        fixture.write(disk, marker).await;
        let snapshot = SnapshotId::random();
        storage.begin_snapshot(disk, snapshot).await.unwrap();
        let started = Instant::now();
        storage.finish_snapshot(disk, snapshot, Outcome::Commit).await.unwrap();
        times.push(started.elapsed());
    }
    times.sort();
    println!("snapshot while paused: {:?} to {:?}, median {:?}", times[0], times[19], times[10]);
    assert!(times[10] < Duration::from_millis(500), "{times:?}");
}
