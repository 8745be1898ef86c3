//! Random families of disks, each operation cut off somewhere: what is there afterwards is what was there before, or
//! what was to become, and everything can be removed.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::pretended::{Fixture, read_mark, write_mark};
use crate::{
    storage::{DiskOrigin, Outcome, Storage, zfs::ZfsStorage},
    types::{BaseId, DiskId, SnapshotId},
};

const BYTES: u64 = 1 << 20;

#[derive(Clone, Copy, Debug)]
enum Step {
    Write(u8),
    Snapshot,
    Fork,
    Rollback,
    Delete,
    Destroy,
}

fn steps() -> impl Strategy<Value = Vec<(Step, usize, usize, usize)>> {
    let step = prop_oneof![
        (1_u8..).prop_map(Step::Write),
        Just(Step::Snapshot),
        Just(Step::Snapshot),
        Just(Step::Fork),
        Just(Step::Fork),
        Just(Step::Rollback),
        Just(Step::Delete),
        Just(Step::Destroy),
    ];
    // The disk, the snapshot, and how many changes are done before the process is gone.
    prop::collection::vec((step, 0..100_usize, 0..100_usize, 0..8_usize), 1..40)
}

/// What a disk must be: its mark, and its snapshots with theirs.
type Expected = BTreeMap<DiskId, (u8, Vec<(SnapshotId, u8)>)>;

/// What there is.
async fn actual(fixture: &Fixture) -> Expected {
    let storage = fixture.storage();
    let mut found = Expected::new();
    for disk in storage.inventory().await.unwrap().disks {
        let mark = read_mark(&storage.open_disk(disk).await.unwrap());
        let mut snapshots = Vec::new();
        for (snapshot, _) in storage.usage(disk).await.unwrap().snapshots {
            let look = DiskId::random();
            storage.create_disk(look, DiskOrigin::Snapshot { disk, snapshot }, BYTES).await.unwrap();
            snapshots.push((snapshot, read_mark(&storage.open_disk(look).await.unwrap())));
            storage.destroy_disk(look).await.unwrap();
        }
        found.insert(disk, (mark, snapshots));
    }
    found
}

/// Does a step on a storage that may stop. Returns what it would make of the disks.
async fn act(storage: &ZfsStorage, now: &Expected, step: (Step, usize, usize)) -> Expected {
    let (step, disk, snapshot) = step;
    let mut then = now.clone();
    let Some((disk, (mark, snapshots))) = now.iter().nth(disk % now.len().max(1)) else { return then };
    let picked = snapshots.get(snapshot % snapshots.len().max(1)).copied();
    let changed = then.get_mut(disk).unwrap();
    match (step, picked) {
        (Step::Write(byte), _) => {
            write_mark(&storage.open_disk(*disk).await.unwrap(), byte);
            changed.0 = byte;
        }
        (Step::Snapshot, _) => {
            let id = SnapshotId::random();
            if storage.begin_snapshot(*disk, id).await.is_ok() {
                let _ = storage.finish_snapshot(*disk, id, Outcome::Commit).await;
            }
            changed.1.push((id, *mark));
        }
        (Step::Fork, Some((id, mark))) => {
            let fork = DiskId::random();
            let origin = DiskOrigin::Snapshot { disk: *disk, snapshot: id };
            let _ = storage.create_disk(fork, origin, BYTES).await;
            then.insert(fork, (mark, Vec::new()));
        }
        (Step::Rollback, Some((id, mark))) => {
            let _ = storage.rollback(*disk, id).await;
            let at = snapshots.iter().position(|(other, _)| *other == id).unwrap();
            *changed = (mark, snapshots[..=at].to_vec());
        }
        (Step::Delete, Some((id, _))) => {
            let _ = storage.delete_snapshot(*disk, id).await;
            changed.1.retain(|(other, _)| *other != id);
        }
        (Step::Destroy, _) => {
            let _ = storage.destroy_disk(*disk).await;
            then.remove(disk);
        }
        (Step::Fork | Step::Rollback | Step::Delete, None) => {}
    }
    then
}

async fn check(steps: Vec<(Step, usize, usize, usize)>) {
    let fixture = Fixture::new();
    let (base, first) = (BaseId::random(), DiskId::random());
    let storage = fixture.storage();
    storage.begin_base(base, BYTES).await.unwrap();
    storage.seal_base(base).await.unwrap();
    storage.create_disk(first, DiskOrigin::Base(base), BYTES).await.unwrap();
    let mut now = actual(&fixture).await;
    for (step, disk, snapshot, changes) in steps {
        let then = act(&fixture.stopping(changes), &now, (step, disk, snapshot)).await;
        for (disk, id, _) in storage.inventory().await.unwrap().pending {
            storage.finish_snapshot(disk, id, Outcome::Commit).await.unwrap();
        }
        let found = actual(&fixture).await;
        assert!(found == now || found == then, "{step:?} made {found:?} of {now:?}, not {then:?}");
        now = found;
    }
    // One volume for each disk and the base, and no snapshot that no disk has and nothing stands on.
    let (volumes, _) = fixture.pool.names();
    assert_eq!(volumes.len(), now.len() + 1, "{volumes:?}");
    for disk in now.keys() {
        storage.destroy_disk(*disk).await.unwrap();
    }
    let (volumes, snapshots) = fixture.pool.names();
    assert_eq!((volumes.len(), snapshots.len()), (1, 1), "{volumes:?} {snapshots:?}");
    storage.delete_base(base).await.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn family_of_disks_survives_interruptions_anywhere(steps in steps()) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(check(steps));
    }
}
