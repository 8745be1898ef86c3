//! Random operations, compared with a model that copies contents.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::MetadataExt,
    path::PathBuf,
};

use proptest::prelude::*;

use super::fixture::{QemuFixture, pull_up, read_marker, write_marker};
use crate::{
    storage::{
        DiskOrigin, MAX_CHAIN_DEPTH, Outcome, PendingSnapshot, Storage, StorageError, qcow2::Qcow2Storage,
    },
    types::{BaseId, DiskId, SnapshotId},
};

const BYTES: u64 = 16 << 20;

/// One thing a user does; numbers pick among what there is.
#[derive(Clone, Debug)]
enum Operation {
    CreateFromBase,
    Fork(usize, usize),
    Write(usize, u8),
    Snapshot(usize),
    /// A snapshot whose user writes that mark once it has moved.
    LiveSnapshot(usize, u8),
    AbortedSnapshot(usize),
    Rollback(usize, usize),
    DeleteSnapshot(usize, usize),
    /// So many snapshots at once, which are then deleted but for every third.
    Age(usize, usize),
    /// A user that follows the plan to the end, or is killed before the end is noted.
    Shorten(usize, bool),
    Destroy(usize),
    Reopen,
}

fn operation() -> impl Strategy<Value = Operation> {
    let pick = 0..64_usize;
    let mark = 1..=255_u8;
    prop_oneof![
        1 => Just(Operation::CreateFromBase),
        2 => (pick.clone(), pick.clone()).prop_map(|(disk, at)| Operation::Fork(disk, at)),
        4 => (pick.clone(), mark.clone()).prop_map(|(disk, mark)| Operation::Write(disk, mark)),
        3 => pick.clone().prop_map(Operation::Snapshot),
        2 => (pick.clone(), mark).prop_map(|(disk, mark)| Operation::LiveSnapshot(disk, mark)),
        1 => pick.clone().prop_map(Operation::AbortedSnapshot),
        2 => (pick.clone(), pick.clone()).prop_map(|(disk, at)| Operation::Rollback(disk, at)),
        2 => (pick.clone(), pick.clone()).prop_map(|(disk, at)| Operation::DeleteSnapshot(disk, at)),
        2 => (pick.clone(), 1..9_usize).prop_map(|(disk, count)| Operation::Age(disk, count)),
        3 => (pick.clone(), any::<bool>()).prop_map(|(disk, ends)| Operation::Shorten(disk, ends)),
        1 => pick.prop_map(Operation::Destroy),
        1 => Just(Operation::Reopen),
    ]
}

/// What there should be.
#[derive(Default)]
struct Model {
    disks: BTreeMap<DiskId, ModelDisk>,
}

#[derive(Clone, Default)]
struct ModelDisk {
    mark: u8,
    snapshots: Vec<(SnapshotId, u8)>,
    made_from: Option<(DiskId, SnapshotId)>,
}

impl Model {
    fn pick(&self, number: usize) -> Option<DiskId> {
        let at = number.checked_rem(self.disks.len())?;
        self.disks.keys().nth(at).copied()
    }

    /// A snapshot of a disk with its place in the disk's list.
    fn pick_snapshot(&self, disk: usize, number: usize) -> Option<(DiskId, usize, SnapshotId)> {
        let disk = self.pick(disk)?;
        let snapshots = &self.disks[&disk].snapshots;
        let at = number.checked_rem(snapshots.len())?;
        Some((disk, at, snapshots[at].0))
    }

    fn disk(&mut self, disk: DiskId) -> &mut ModelDisk {
        self.disks.get_mut(&disk).unwrap()
    }
}

struct Run {
    fixture: QemuFixture,
    storage: Qcow2Storage,
    base: BaseId,
    model: Model,
}

impl Run {
    async fn new(fixture: QemuFixture) -> Self {
        let storage = fixture.storage().await;
        let base = BaseId::random();
        storage.begin_base(base, BYTES).await.unwrap();
        storage.seal_base(base).await.unwrap();
        Self { fixture, storage, base, model: Model::default() }
    }

    /// Does it to both. What picks something while there is nothing does nothing.
    async fn apply(&mut self, operation: Operation) -> Option<()> {
        let Self { storage, model, .. } = self;
        match operation {
            Operation::CreateFromBase => {
                let disk = DiskId::random();
                storage.create_disk(disk, DiskOrigin::Base(self.base), BYTES).await.unwrap();
                model.disks.insert(disk, ModelDisk::default());
            }
            Operation::Fork(disk, at) => {
                let (disk, at, snapshot) = model.pick_snapshot(disk, at)?;
                let fork = DiskId::random();
                storage.create_disk(fork, DiskOrigin::Snapshot { disk, snapshot }, BYTES).await.unwrap();
                let mark = model.disks[&disk].snapshots[at].1;
                let made_from = Some((disk, snapshot));
                model.disks.insert(fork, ModelDisk { mark, snapshots: Vec::new(), made_from });
            }
            Operation::Write(disk, mark) => {
                let disk = model.pick(disk)?;
                write_marker(&storage.open_disk(disk).await.unwrap(), mark);
                model.disk(disk).mark = mark;
            }
            Operation::Snapshot(disk) => {
                let (disk, snapshot) = (model.pick(disk)?, SnapshotId::random());
                storage.begin_snapshot(disk, snapshot).await.unwrap();
                storage.finish_snapshot(disk, snapshot, Outcome::Commit).await.unwrap();
                let disk = model.disk(disk);
                disk.snapshots.push((snapshot, disk.mark));
            }
            Operation::LiveSnapshot(disk, mark) => {
                let (disk, snapshot) = (model.pick(disk)?, SnapshotId::random());
                let mut in_use = storage.open_disk(disk).await.unwrap();
                let PendingSnapshot::Pivot { to } = storage.begin_snapshot(disk, snapshot).await.unwrap()
                else {
                    panic!("qcow2 pivots")
                };
                in_use.layers.insert(0, to);
                write_marker(&in_use, mark);
                // Who finishes may be another process than who began.
                let storage = self.fixture.storage().await;
                storage.finish_snapshot(disk, snapshot, Outcome::Commit).await.unwrap();
                let disk = model.disk(disk);
                disk.snapshots.push((snapshot, disk.mark));
                disk.mark = mark;
            }
            Operation::AbortedSnapshot(disk) => {
                let (disk, snapshot) = (model.pick(disk)?, SnapshotId::random());
                storage.begin_snapshot(disk, snapshot).await.unwrap();
                storage.finish_snapshot(disk, snapshot, Outcome::Abort).await.unwrap();
            }
            Operation::Rollback(disk, at) => {
                let (disk, at, snapshot) = model.pick_snapshot(disk, at)?;
                let removed = storage.rollback(disk, snapshot).await.unwrap();
                let disk = model.disk(disk);
                disk.mark = disk.snapshots[at].1;
                let newer: Vec<_> = disk.snapshots.split_off(at + 1).into_iter().map(|(id, _)| id).collect();
                assert_eq!(removed, newer);
            }
            Operation::DeleteSnapshot(disk, at) => {
                let (disk, at, snapshot) = model.pick_snapshot(disk, at)?;
                let expected: Vec<DiskId> = model
                    .disks
                    .iter()
                    .filter(|(_, other)| other.made_from == Some((disk, snapshot)))
                    .map(|(id, _)| *id)
                    .collect();
                match storage.delete_snapshot(disk, snapshot).await {
                    Ok(()) => {
                        assert_eq!(expected, []);
                        model.disk(disk).snapshots.remove(at);
                    }
                    Err(StorageError::InUse { dependents, .. }) => assert_eq!(dependents, expected),
                    Err(error) => panic!("{error}"),
                }
            }
            Operation::Age(disk, count) => {
                let disk = model.pick(disk)?;
                for number in 0..count {
                    let snapshot = SnapshotId::random();
                    storage.begin_snapshot(disk, snapshot).await.unwrap();
                    storage.finish_snapshot(disk, snapshot, Outcome::Commit).await.unwrap();
                    if number % 3 == 0 {
                        let disk = model.disk(disk);
                        disk.snapshots.push((snapshot, disk.mark));
                    } else {
                        storage.delete_snapshot(disk, snapshot).await.unwrap();
                    }
                }
            }
            Operation::Shorten(disk, ends) => {
                let disk = model.pick(disk)?;
                let plan = storage.shorten_plan(disk, MAX_CHAIN_DEPTH).await.unwrap()?;
                let chain = storage.open_disk(disk).await.unwrap();
                pull_up(&chain, &plan);
                if ends {
                    storage.finish_shorten(disk, &plan).await.unwrap();
                    let left = storage.open_disk(disk).await.unwrap().layers.len();
                    assert!(left < MAX_CHAIN_DEPTH, "{left}");
                }
            }
            Operation::Destroy(disk) => {
                let disk = model.pick(disk)?;
                storage.destroy_disk(disk).await.unwrap();
                model.disks.remove(&disk);
            }
            Operation::Reopen => self.storage = self.fixture.storage().await,
        }
        Some(())
    }

    async fn compare(&self) {
        let inventory = self.storage.inventory().await.unwrap();
        assert_eq!(inventory.disks, self.model.disks.keys().copied().collect::<Vec<_>>());
        assert_eq!(inventory.pending, []);
        let mut layers = BTreeMap::new();
        let mut counted = 0;
        for (id, expected) in &self.model.disks {
            let chain = self.storage.open_disk(*id).await.unwrap();
            assert_eq!(read_marker(&chain), expected.mark, "disk {id}");
            let usage = self.storage.usage(*id).await.unwrap();
            let snapshots: Vec<_> = usage.snapshots.iter().map(|(id, _)| *id).collect();
            let expected: Vec<_> = expected.snapshots.iter().map(|(id, _)| *id).collect();
            assert_eq!(snapshots, expected);
            counted += usage.unique_bytes;
            assert!(usage.snapshots.iter().map(|(_, bytes)| bytes).sum::<u64>() <= usage.unique_bytes);
            // A layer belongs to whoever would show another content without it: disks, and what forks of snapshots are.
            let mut users = vec![chain];
            for (snapshot, mark) in &self.model.disks[id].snapshots {
                let fork = DiskId::random();
                let origin = DiskOrigin::Snapshot { disk: *id, snapshot: *snapshot };
                self.storage.create_disk(fork, origin, BYTES).await.unwrap();
                let mut chain = self.storage.open_disk(fork).await.unwrap();
                assert_eq!(read_marker(&chain), *mark, "snapshot {snapshot} of disk {id}");
                self.storage.destroy_disk(fork).await.unwrap();
                chain.layers.remove(0);
                users.push(chain);
            }
            for layer in users.into_iter().flat_map(|chain| chain.layers) {
                layers.entry(layer.path).or_insert_with(BTreeSet::new).insert(*id);
            }
        }
        let overlays: Vec<_> = layers
            .keys()
            .filter(|path| path.extension().is_some_and(|ending| ending == "qcow2"))
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(self.fixture.files_in("layers"), overlays, "layers that no disk has");
        // "The unique bytes of all disks and the shared layers, each counted once, are what the files take up."
        let space = |path: &PathBuf| std::fs::metadata(path).unwrap().blocks() * 512;
        let is_base = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "raw");
        let shared: u64 = layers
            .iter()
            .filter(|(path, users)| users.len() > 1 || is_base(path))
            .map(|(path, _)| space(path))
            .sum();
        assert_eq!(counted + shared, layers.keys().map(space).sum::<u64>());
    }
}

proptest! {
    // Each case runs QEMU's tools dozens of times.
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn storage_does_what_the_model_does(operations in prop::collection::vec(operation(), 4..40)) {
        let fixture = match QemuFixture::new() {
            Ok(fixture) => fixture,
            Err(reason) => {
                println!("skipped: {reason}");
                return Ok(());
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut run = Run::new(fixture).await;
            run.apply(Operation::CreateFromBase).await;
            for operation in operations {
                run.apply(operation).await;
            }
            run.compare().await;
        });
    }
}
