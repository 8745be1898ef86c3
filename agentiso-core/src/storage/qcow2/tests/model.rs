//! Random operations, compared with a model that copies contents.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::fixture::{QemuFixture, read_marker, write_marker};
use crate::{
    storage::{DiskOrigin, Outcome, PendingSnapshot, Storage, StorageError, qcow2::Qcow2Storage},
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
        let mut layers = Vec::new();
        for (id, expected) in &self.model.disks {
            let chain = self.storage.open_disk(*id).await.unwrap();
            assert_eq!(read_marker(&chain), expected.mark, "disk {id}");
            let usage = self.storage.usage(*id).await.unwrap();
            let snapshots: Vec<_> = usage.snapshots.iter().map(|(id, _)| *id).collect();
            let expected: Vec<_> = expected.snapshots.iter().map(|(id, _)| *id).collect();
            assert_eq!(snapshots, expected);
            layers.extend(chain.layers.iter().map(|layer| format!("{}.qcow2", layer.id)));
        }
        layers.retain(|name| self.fixture.files_in("layers").contains(name));
        layers.sort();
        layers.dedup();
        assert_eq!(self.fixture.files_in("layers"), layers, "layers that no disk has");
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
