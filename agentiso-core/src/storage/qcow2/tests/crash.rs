//! Every method, killed at every step.

use std::{
    io,
    path::Path,
    sync::{Mutex, PoisonError},
};

use super::{
    super::{
        Qcow2Config, bases, disks,
        files::Folder,
        shorten,
        sweep::{self, Records},
        usage,
    },
    fixture::files_in,
};
use crate::{
    storage::{DiskOrigin, MAX_CHAIN_DEPTH, Outcome, StorageError},
    types::{BaseId, DiskId, SnapshotId},
};

const BYTES: u64 = 1 << 20;

/// Where a pretended process is killed: from then on it changes nothing any more.
#[derive(Debug, Default)]
pub(in super::super) struct CrashPoint {
    steps_left: Mutex<Option<usize>>,
}

impl CrashPoint {
    fn after(&self, steps: usize) {
        *self.steps_left.lock().unwrap_or_else(PoisonError::into_inner) = Some(steps);
    }

    pub(in super::super) fn step(&self) -> io::Result<()> {
        match &mut *self.steps_left.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(0) => Err(io::Error::other("killed")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }
}

fn open(path: &Path) -> Folder {
    Folder::open(&Qcow2Config { folder: path.to_owned(), reserve_bytes: 0 }).unwrap()
}

/// What a storage holds, as callers see it: layers by how many there are, for their names are random.
#[derive(Clone, Debug, PartialEq, Eq)]
struct View {
    bases: Vec<(BaseId, bool)>,
    disks: Vec<DiskView>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct DiskView {
    id: DiskId,
    layers: usize,
    snapshots: Vec<(SnapshotId, usize)>,
    pending: Option<SnapshotId>,
    shortening: bool,
}

fn view(folder: &Folder) -> View {
    let inventory = sweep::inventory(folder).unwrap();
    let records = Records::read(folder).unwrap();
    assert!(records.damaged.is_empty(), "{records:?}");
    let bases = inventory.bases.iter().map(|base| {
        let manifest: super::super::manifest::BaseManifest =
            folder.read_manifest(&folder.base_manifest(*base)).unwrap().unwrap();
        (*base, manifest.sealed)
    });
    let disks = records.disks.values().map(|disk| {
        // Every layer that is named is there, the one of a pending snapshot included.
        disks::chain(folder, disk.id).unwrap();
        usage::usage(folder, disk.id).unwrap();
        DiskView {
            id: disk.id,
            layers: disk.layers.len(),
            snapshots: disk.snapshots.iter().map(|found| (found.id, found.layers.len())).collect(),
            pending: disk.pending.as_ref().map(|pending| pending.snapshot),
            shortening: disk.shortening.is_some(),
        }
    });
    View { bases: bases.collect(), disks: disks.collect() }
}

/// Layer files that there should be: those that a manifest names.
fn assert_nothing_left_over(folder: &Folder) {
    let records = Records::read(folder).unwrap();
    let mut named: Vec<String> = records
        .disks
        .values()
        .flat_map(|disk| disk.named_layers())
        .filter(|layer| layer.base.is_none())
        .map(|layer| format!("{}.qcow2", layer.id))
        .collect();
    named.sort();
    named.dedup();
    assert_eq!(files_in(&folder.layers), named);
    let manifests: Vec<String> = records.disks.keys().map(|disk| format!("{disk}.json")).collect();
    assert_eq!(files_in(&folder.disks), manifests);
    let bases: Vec<String> =
        records.bases.iter().flat_map(|base| [format!("{base}.json"), format!("{base}.raw")]).collect();
    assert_eq!(files_in(&folder.bases), bases);
}

struct Ids {
    base: BaseId,
    unsealed: BaseId,
    disk: DiskId,
    snapshots: [SnapshotId; 2],
    fork: DiskId,
    pending: SnapshotId,
    new_base: BaseId,
    new_disk: DiskId,
    long: DiskId,
    long_snapshots: [SnapshotId; MAX_CHAIN_DEPTH - 1],
}

/// A disk with two snapshots, a fork of the newer one with a third under way, a base and half a base.
fn prepare(path: &Path, ids: &Ids) {
    let folder = open(path);
    bases::begin(&folder, ids.base, BYTES).unwrap();
    bases::seal(&folder, ids.base).unwrap();
    bases::begin(&folder, ids.unsealed, BYTES).unwrap();
    disks::create(&folder, ids.disk, DiskOrigin::Base(ids.base), BYTES).unwrap();
    for snapshot in ids.snapshots {
        disks::begin_snapshot(&folder, ids.disk, snapshot).unwrap();
        disks::finish_snapshot(&folder, ids.disk, snapshot, Outcome::Commit).unwrap();
    }
    let origin = DiskOrigin::Snapshot { disk: ids.disk, snapshot: ids.snapshots[1] };
    disks::create(&folder, ids.fork, origin, BYTES).unwrap();
    disks::begin_snapshot(&folder, ids.fork, ids.pending).unwrap();
}

/// A disk with more layers than it may have. The snapshot that stays has some of those to be dropped.
fn prepare_long(path: &Path, ids: &Ids) {
    let folder = open(path);
    disks::create(&folder, ids.long, DiskOrigin::Base(ids.base), BYTES).unwrap();
    for snapshot in ids.long_snapshots {
        disks::begin_snapshot(&folder, ids.long, snapshot).unwrap();
        disks::finish_snapshot(&folder, ids.long, snapshot, Outcome::Commit).unwrap();
    }
    for (_, snapshot) in ids.long_snapshots.iter().enumerate().filter(|(at, _)| *at != 2) {
        disks::delete_snapshot(&folder, ids.long, *snapshot).unwrap();
    }
}

/// The same, its user pulling layers together.
fn prepare_shortening(path: &Path, ids: &Ids) {
    prepare_long(path, ids);
    shorten::plan(&open(path), ids.long, MAX_CHAIN_DEPTH).unwrap().unwrap();
}

type Operation = fn(&Folder, &Ids) -> Result<(), StorageError>;

/// Each method that changes something, with how a machine would call it on what [`prepare`] made.
const OPERATIONS: &[(&str, Operation)] = &[
    ("begin_base", |folder, ids| bases::begin(folder, ids.new_base, BYTES).map(drop)),
    ("seal_base", |folder, ids| bases::seal(folder, ids.unsealed).map(drop)),
    ("delete_base", |folder, ids| bases::delete(folder, ids.unsealed)),
    ("create_disk", |folder, ids| disks::create(folder, ids.new_disk, DiskOrigin::Base(ids.base), BYTES)),
    ("fork", |folder, ids| {
        let origin = DiskOrigin::Snapshot { disk: ids.disk, snapshot: ids.snapshots[0] };
        disks::create(folder, ids.new_disk, origin, BYTES)
    }),
    ("begin_snapshot", |folder, ids| {
        disks::begin_snapshot(folder, ids.disk, SnapshotId::from(*ids.new_disk.as_uuid())).map(drop)
    }),
    ("commit", |folder, ids| disks::finish_snapshot(folder, ids.fork, ids.pending, Outcome::Commit)),
    ("abort", |folder, ids| disks::finish_snapshot(folder, ids.fork, ids.pending, Outcome::Abort)),
    ("rollback", |folder, ids| disks::rollback(folder, ids.disk, ids.snapshots[0]).map(drop)),
    ("delete_snapshot", |folder, ids| disks::delete_snapshot(folder, ids.disk, ids.snapshots[0])),
    ("destroy_disk", |folder, ids| disks::destroy(folder, ids.disk)),
    ("destroy_fork", |folder, ids| disks::destroy(folder, ids.fork)),
];

/// The same for a disk with a long chain.
const ON_LONG: &[(&str, Operation)] = &[("shorten_plan", |folder, ids| {
    shorten::plan(folder, ids.long, MAX_CHAIN_DEPTH).map(|plan| drop(plan.unwrap()))
})];

/// The same while it is being shortened.
const ON_SHORTENING: &[(&str, Operation)] = &[("finish_shorten", |folder, ids| {
    let plan = shorten::plan(folder, ids.long, MAX_CHAIN_DEPTH)?.unwrap();
    shorten::finish(folder, ids.long, &plan)
})];

#[test]
fn killed_at_any_step_leaves_before_or_after() {
    kill_at_any_step(OPERATIONS, |_, _| {});
}

#[test]
fn shortening_killed_at_any_step_leaves_before_or_after() {
    kill_at_any_step(ON_LONG, prepare_long);
    kill_at_any_step(ON_SHORTENING, prepare_shortening);
}

fn kill_at_any_step(operations: &[(&str, Operation)], prepare_more: fn(&Path, &Ids)) {
    let prepare = |path: &Path, ids: &Ids| {
        prepare(path, ids);
        prepare_more(path, ids);
    };
    for (name, operation) in operations {
        let ids = Ids {
            base: BaseId::random(),
            unsealed: BaseId::random(),
            disk: DiskId::random(),
            snapshots: [SnapshotId::random(), SnapshotId::random()],
            fork: DiskId::random(),
            pending: SnapshotId::random(),
            new_base: BaseId::random(),
            new_disk: DiskId::random(),
            long: DiskId::random(),
            long_snapshots: std::array::from_fn(|_| SnapshotId::random()),
        };
        let whole = tempfile::tempdir().unwrap();
        prepare(whole.path(), &ids);
        let before = view(&open(whole.path()));
        operation(&open(whole.path()), &ids).unwrap();
        let after = view(&open(whole.path()));
        assert_ne!(before, after, "{name} does nothing");

        let mut outcomes = Vec::new();
        for steps in 0.. {
            let killed = tempfile::tempdir().unwrap();
            prepare(killed.path(), &ids);
            let folder = open(killed.path());
            folder.crash.after(steps);
            let result = operation(&folder, &ids);

            let next = open(killed.path());
            let found = view(&next);
            assert!(found == before || found == after, "{name}, killed after {steps} steps: {found:#?}");
            assert_nothing_left_over(&next);
            outcomes.push(found == after);
            if result.is_ok() {
                assert_eq!(found, after, "{name} returned without its effect");
                break;
            }
            // The next process can do what the first one did not get to.
            if found == before {
                operation(&next, &ids).unwrap_or_else(|error| panic!("{name} after {steps} steps: {error}"));
                assert_eq!(view(&next), after, "{name}, again after {steps} steps");
            }
        }
        assert_eq!(outcomes.first(), Some(&false), "{name}");
        assert!(outcomes.is_sorted(), "{name}: once it took effect it stays: {outcomes:?}");
        assert!(outcomes.len() > 3, "{name} was killed at {} steps only", outcomes.len());
    }
}
