//! Many disks, and several who use them.

use std::time::{Duration, Instant};

use agentiso_core::{
    storage::{DiskOrigin, Storage},
    types::DiskId,
};

use crate::fixture::{BYTES, Fixture};

const MANY: usize = 200;

/// For two looks at all of them, on an emulated host.
const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_disks_are_listed_and_found_in_bounded_time() {
    let fixture = Fixture::new().await.unwrap();
    let storage = fixture.storage().await;
    let base = fixture.base(7).await;
    let disks: Vec<DiskId> = (0..MANY).map(|_| DiskId::random()).collect();
    let started = Instant::now();
    let making = disks.iter().map(|disk| {
        let (storage, disk) = (storage.clone(), *disk);
        tokio::spawn(async move { storage.create_disk(disk, DiskOrigin::Base(base), BYTES).await })
    });
    for made in making.collect::<Vec<_>>() {
        made.await.unwrap().unwrap();
    }
    let made = started.elapsed();

    let started = Instant::now();
    let mut listed = storage.inventory().await.unwrap().disks;
    let listing = started.elapsed();
    let started = Instant::now();
    let chain = storage.open_disk(disks[0]).await.unwrap();
    let opening = started.elapsed();
    let started = Instant::now();
    storage.open_disk(disks[1]).await.unwrap();
    let opening_again = started.elapsed();

    println!(
        "{MANY} disks: made in {made:?}, listed in {listing:?}, one opened in {opening:?}, then {opening_again:?}"
    );
    listed.sort();
    let mut expected = disks;
    expected.sort();
    assert_eq!(listed, expected);
    assert_eq!(crate::fixture::read_marker(&chain), 7);
    assert!(listing + opening < LIMIT, "{listing:?} {opening:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_fork_and_destroy_at_once_do_not_disturb_each_other() {
    let fixture = Fixture::new().await.unwrap();
    let base = fixture.base(7).await;
    let parent = fixture.disk(DiskOrigin::Base(base)).await;
    let snapshot = fixture.snapshot(parent).await;
    let origin = DiskOrigin::Snapshot { disk: parent, snapshot };
    let mut working = Vec::new();
    for _ in 0..2 {
        // As two processes would: each with its own lock file opened.
        let storage = fixture.storage().await;
        working.push(tokio::spawn(async move {
            let mut kept = Vec::new();
            for _ in 0..4 {
                let (short, long) = (DiskId::random(), DiskId::random());
                storage.create_disk(short, origin, BYTES).await.unwrap();
                storage.create_disk(long, origin, BYTES).await.unwrap();
                storage.open_disk(short).await.unwrap();
                storage.destroy_disk(short).await.unwrap();
                kept.push(long);
            }
            kept
        }));
    }
    let mut kept = vec![parent];
    for work in working {
        kept.extend(work.await.unwrap());
    }

    kept.sort();
    let mut listed = fixture.storage().await.inventory().await.unwrap().disks;
    listed.sort();
    assert_eq!(listed, kept);
    assert_eq!(fixture.listed("volume").len(), kept.len() + 1);
    for disk in kept {
        assert_eq!(fixture.read(disk).await, 7);
    }
}
