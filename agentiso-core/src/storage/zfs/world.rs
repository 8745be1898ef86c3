//! What volumes and snapshots mean together.
//!
//! - A disk is the newest of the volumes that have its tag and are not removed. Older ones are what a rollback left.
//! - The history of a volume is the chain of snapshots it stands on: its own, then the one it was cloned from and the
//!   older ones of that volume, and so on down to the sealed snapshot of a base. Promotion moves snapshots between
//!   volumes, and changes no history.
//! - A snapshot is there as long as it is in the history of its disk and not removed. Whatever else there is of ours is
//!   waste, kept only while something is cloned from it.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    kernel::{Snapshot, Volume, Volumes},
    names::Tag,
};
use crate::types::{BaseId, DiskId, SnapshotId};

/// Everything at one moment, or what one disk stands on.
#[derive(Debug, Default)]
pub(super) struct World {
    volumes: BTreeMap<String, Volume>,
    /// The volume of each disk.
    disks: BTreeMap<DiskId, String>,
    /// The volume that each snapshot is of.
    owners: BTreeMap<String, String>,
    pub(super) available: u64,
}

/// A snapshot of ours with its full name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named<'a> {
    pub(super) name: &'a str,
    pub(super) snapshot: &'a Snapshot,
    pub(super) tag: &'a Tag,
}

impl<'a> Named<'a> {
    fn of(volume: &'a Volume) -> impl Iterator<Item = Self> {
        let named = |(name, snapshot): (&'a String, &'a Snapshot)| {
            Some(Self { name, snapshot, tag: snapshot.tag.as_ref()? })
        };
        volume.snapshots.iter().filter_map(named)
    }
}

/// What to do about waste.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Chore {
    /// Nothing stands on this volume or snapshot.
    Destroy(String),
    /// This clone is to own what it stands on, so that the volume it was cloned from can go.
    Promote(String),
}

/// The id that a snapshot is named by; `None` for those of bases.
fn id_of(full_name: &str) -> Option<SnapshotId> {
    full_name.split_once('@')?.1.parse().ok()
}

impl World {
    pub(super) fn new(Volumes { volumes, available }: Volumes) -> Self {
        let mut disks: BTreeMap<DiskId, String> = BTreeMap::new();
        let mut owners = BTreeMap::new();
        for (name, volume) in &volumes {
            for snapshot in volume.snapshots.keys() {
                owners.insert(snapshot.clone(), name.clone());
            }
            let Some(disk) = volume.tag.disk().filter(|_| !volume.removed) else { continue };
            let is_newer =
                |other: &String| volumes.get(other).is_none_or(|other| volume.tag.order > other.tag.order);
            if disks.get(&disk).is_none_or(is_newer) {
                disks.insert(disk, name.clone());
            }
        }
        Self { volumes, disks, owners, available }
    }

    /// Bases, sealed or not.
    pub(super) fn bases(&self) -> impl Iterator<Item = BaseId> {
        self.volumes.values().filter_map(|volume| volume.tag.base())
    }

    pub(super) fn base(&self, base: BaseId) -> Option<(&str, &Volume)> {
        self.volumes
            .iter()
            .find(|(_, volume)| volume.tag.base() == Some(base))
            .map(|(name, volume)| (name.as_str(), volume))
    }

    /// The sealed content of a base.
    pub(super) fn sealed(&self, base: BaseId) -> Option<Named<'_>> {
        let (_, volume) = self.base(base)?;
        Named::of(volume).find(|named| named.tag.base() == Some(base))
    }

    /// Disks with their volumes.
    pub(super) fn disks(&self) -> impl Iterator<Item = (DiskId, &str, &Volume)> {
        self.disks.iter().filter_map(|(disk, name)| Some((*disk, name.as_str(), self.volumes.get(name)?)))
    }

    pub(super) fn disk(&self, disk: DiskId) -> Option<(&str, &Volume)> {
        let name = self.disks.get(&disk)?;
        Some((name, self.volumes.get(name)?))
    }

    /// All volumes with a disk's tag, removed ones too, the oldest first.
    pub(super) fn volumes_of(&self, disk: DiskId) -> Vec<(&str, &Volume)> {
        let mut found: Vec<(&str, &Volume)> = self
            .volumes
            .iter()
            .filter(|(_, volume)| volume.tag.disk() == Some(disk))
            .map(|(name, volume)| (name.as_str(), volume))
            .collect();
        found.sort_by_key(|(_, volume)| volume.tag.order);
        found
    }

    /// The snapshots of ours that a volume stands on, the newest first.
    pub(super) fn history<'a>(&'a self, volume: &'a Volume) -> Vec<Named<'a>> {
        let mut history = Vec::new();
        let mut seen = BTreeSet::new();
        let (mut of, mut until) = (volume, u64::MAX);
        loop {
            let mut own: Vec<Named<'_>> = Named::of(of).filter(|named| named.tag.order <= until).collect();
            own.sort_by_key(|named| std::cmp::Reverse(named.tag.order));
            history.extend(own);
            let below = of.origin.as_ref().and_then(|origin| {
                let owner = self.volumes.get(self.owners.get(origin)?)?;
                let order = owner.snapshots.get(origin)?.tag.as_ref()?.order;
                seen.insert(origin).then_some((owner, order))
            });
            match below {
                Some((owner, order)) => (of, until) = (owner, order),
                None => return history,
            }
        }
    }

    /// A disk's snapshots, the oldest first.
    pub(super) fn snapshots(&self, disk: DiskId) -> Vec<(SnapshotId, Named<'_>)> {
        let Some((_, volume)) = self.disk(disk) else { return Vec::new() };
        let history = self.history(volume).into_iter().rev();
        history
            .filter(|named| named.tag.disk() == Some(disk) && !named.snapshot.removed)
            .filter_map(|named| Some((id_of(named.name)?, named)))
            .collect()
    }

    pub(super) fn snapshot(&self, disk: DiskId, snapshot: SnapshotId) -> Option<Named<'_>> {
        self.snapshots(disk).into_iter().find(|(id, _)| *id == snapshot).map(|(_, named)| named)
    }

    /// What a new snapshot or volume of a disk comes after in its order.
    pub(super) fn last_order(&self, disk: DiskId) -> u64 {
        let volumes = self.volumes_of(disk).into_iter().map(|(_, volume)| volume.tag.order);
        let snapshots = self.disk(disk).map(|(_, volume)| self.history(volume)).unwrap_or_default();
        volumes.chain(snapshots.iter().map(|named| named.tag.order)).max().unwrap_or(0)
    }

    /// The snapshot of a disk that was begun and not finished.
    pub(super) fn pending(&self, disk: DiskId) -> Option<SnapshotId> {
        let (_, volume) = self.disk(disk)?;
        volume.pending.filter(|pending| self.snapshot(disk, *pending).is_none())
    }

    /// The disks that were made from a snapshot.
    pub(super) fn made_from(&self, snapshot: SnapshotId) -> Vec<DiskId> {
        let made = self.disks().filter(|(.., volume)| volume.tag.made_from == Some(snapshot));
        made.map(|(disk, ..)| disk).collect()
    }

    /// The disks that stand on a base, however far above it.
    pub(super) fn above(&self, base: BaseId) -> Vec<DiskId> {
        let stands_on = |volume| self.history(volume).iter().any(|named| named.tag.base() == Some(base));
        self.disks().filter(|(.., volume)| stands_on(volume)).map(|(disk, ..)| disk).collect()
    }

    /// Names of the snapshots in the histories of all disks but one.
    pub(super) fn held_by_others(&self, disk: DiskId) -> BTreeSet<&str> {
        let others = self.disks().filter(|(other, ..)| *other != disk);
        others.flat_map(|(.., volume)| self.history(volume)).map(|named| named.name).collect()
    }

    /// What can be done about waste right now. Each of these can be done whatever becomes of the others, but for a
    /// promotion, which is therefore alone; afterwards there may be more.
    pub(super) fn chores(&self) -> Vec<Chore> {
        let kept: BTreeSet<&str> =
            self.disks.keys().flat_map(|disk| self.snapshots(*disk)).map(|(_, named)| named.name).collect();
        let mut chores = Vec::new();
        let mut promotion = None;
        for (name, volume) in &self.volumes {
            let mut left = volume.snapshots.len();
            for (full, snapshot) in &volume.snapshots {
                let is_waste = snapshot.disk().is_some() && !kept.contains(full.as_str());
                if is_waste && snapshot.clones.is_empty() {
                    chores.push(Chore::Destroy(full.clone()));
                    left -= 1;
                }
            }
            let is_waste = volume.tag.disk().is_some_and(|disk| self.disks.get(&disk) != Some(name));
            if !is_waste {
                continue;
            }
            if left == 0 {
                chores.push(Chore::Destroy(name.clone()));
            } else if promotion.is_none() {
                promotion = self.heir(volume).map(|heir| Chore::Promote(heir.to_owned()));
            }
        }
        if chores.is_empty() { promotion.into_iter().collect() } else { chores }
    }

    /// The disk's volume that shall own the snapshots of a volume that is waste: a clone of the newest that has any, so
    /// that none with clones stays behind. None while all of those are waste themselves, and go first, or not ours.
    fn heir<'a>(&self, volume: &'a Volume) -> Option<&'a str> {
        let with_clones = volume.snapshots.values().filter(|snapshot| !snapshot.clones.is_empty());
        let newest = with_clones.max_by_key(|snapshot| snapshot.tag.as_ref().map(|tag| tag.order))?;
        let is_alive = |name: &&String| self.disks.values().any(|alive| alive == *name);
        newest.clones.iter().find(is_alive).map(String::as_str)
    }
}
