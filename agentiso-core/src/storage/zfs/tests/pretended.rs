//! A pool in memory, which does what ZFS does and refuses what ZFS refuses. A volume's content is a file's.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use tempfile::TempDir;
use uuid::Uuid;

use crate::{
    storage::{
        DiskChain, ShortenPlan, Storage,
        zfs::{
            ZfsStorage,
            faults::Stopping,
            kernel::{Change, Detail, Kernel, KernelError, Snapshot, Volume, Volumes},
            names::{PENDING, REMOVED, Root, Tag},
            shared::Shared,
        },
    },
    testkit::contract::storage::StorageFixture,
};

/// Space of a mark that differs from the one before, in bytes.
const MARK_BYTES: u64 = 4096;

#[derive(Debug, Default)]
struct State {
    volumes: BTreeMap<String, Volume>,
    /// The mark in each snapshot.
    snapshots: BTreeMap<String, u8>,
    /// Snapshots of each volume, the oldest first.
    order: BTreeMap<String, Vec<String>>,
}

#[derive(Clone, Debug)]
pub(super) struct Pretended {
    state: Arc<Mutex<State>>,
    folder: PathBuf,
}

fn number(number: i32) -> KernelError {
    io::Error::from_raw_os_error(number).into()
}

impl Pretended {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn file(&self, volume: &str) -> PathBuf {
        self.folder.join(volume.replace('/', "_"))
    }

    fn mark(&self, volume: &str) -> u8 {
        fs::read(self.file(volume)).unwrap()[0]
    }

    /// The mark that a snapshot or, without one, a volume has, and that of what it was written over.
    fn marks(&self, state: &State, volume: &str, snapshot: Option<&str>) -> (u8, u8) {
        let own = &state.order[volume];
        let at = snapshot.map_or(own.len(), |name| own.iter().position(|other| other == name).unwrap());
        let before = match at.checked_sub(1) {
            Some(before) => Some(&own[before]),
            None => state.volumes[volume].origin.as_ref(),
        };
        let mark = snapshot.map_or_else(|| self.mark(volume), |name| state.snapshots[name]);
        (mark, before.map_or(0, |name| state.snapshots[name]))
    }

    pub(super) fn names(&self) -> (Vec<String>, Vec<String>) {
        let state = self.state();
        (state.volumes.keys().cloned().collect(), state.snapshots.keys().cloned().collect())
    }
}

impl State {
    fn owner(&mut self, snapshot: &str) -> Option<&mut Volume> {
        self.volumes.values_mut().find(|volume| volume.snapshots.contains_key(snapshot))
    }

    fn make(&mut self, name: &str, tag: &Tag, origin: Option<&str>) -> Result<(), KernelError> {
        if self.volumes.contains_key(name) {
            return Err(number(libc::EEXIST));
        }
        if let Some(origin) = origin {
            let owner = self.owner(origin).ok_or_else(|| number(libc::ENOENT))?;
            owner.snapshots.get_mut(origin).unwrap().clones.push(name.to_owned());
        }
        let volume = Volume {
            tag: tag.clone(),
            removed: false,
            pending: None,
            origin: origin.map(str::to_owned),
            snapshots: BTreeMap::new(),
        };
        self.volumes.insert(name.to_owned(), volume);
        self.order.insert(name.to_owned(), Vec::new());
        Ok(())
    }

    fn destroy(&mut self, name: &str) -> Result<(), KernelError> {
        if name.contains('@') {
            let owner = self.owner(name).ok_or_else(|| number(libc::ENOENT))?;
            if !owner.snapshots[name].clones.is_empty() {
                return Err(number(libc::EEXIST));
            }
            owner.snapshots.remove(name);
            self.snapshots.remove(name);
            self.order.values_mut().for_each(|order| order.retain(|other| other != name));
            return Ok(());
        }
        let volume = self.volumes.get(name).ok_or_else(|| number(libc::ENOENT))?;
        if !volume.snapshots.is_empty() {
            return Err(KernelError::Refused("it has a snapshot".to_owned()));
        }
        let origin = volume.origin.clone();
        self.volumes.remove(name);
        self.order.remove(name);
        if let Some(owner) = origin.as_ref().and_then(|origin| self.owner(origin)) {
            owner.snapshots.get_mut(&origin.unwrap()).unwrap().clones.retain(|clone| clone != name);
        }
        Ok(())
    }

    /// The clone takes over the snapshot it was cloned from and all older ones, and what their volume stood on.
    fn promote(&mut self, clone: &str) -> Result<(), KernelError> {
        let origin = self.volumes.get(clone).ok_or_else(|| number(libc::ENOENT))?.origin.clone();
        let origin = origin.ok_or_else(|| number(libc::EINVAL))?;
        let parent = origin.split_once('@').unwrap().0.to_owned();
        let at = self.order[&parent].iter().position(|name| *name == origin).unwrap();
        let moved: Vec<String> = self.order.get_mut(&parent).unwrap().drain(..=at).collect();
        let renamed = |name: &str| format!("{clone}@{}", name.split_once('@').unwrap().1);
        for name in &moved {
            let snapshot = self.volumes.get_mut(&parent).unwrap().snapshots.remove(name).unwrap();
            let content = self.snapshots.remove(name).unwrap();
            for other in &snapshot.clones {
                self.volumes.get_mut(other).unwrap().origin = Some(renamed(name));
            }
            self.snapshots.insert(renamed(name), content);
            self.volumes.get_mut(clone).unwrap().snapshots.insert(renamed(name), snapshot);
        }
        let below = self.volumes.get_mut(&parent).unwrap().origin.replace(renamed(&origin));
        if let Some(below) = &below {
            let clones = &mut self.owner(below).unwrap().snapshots.get_mut(below).unwrap().clones;
            clones.retain(|name| *name != parent);
            clones.push(clone.to_owned());
        }
        let promoted = self.volumes.get_mut(clone).unwrap();
        promoted.origin = below;
        let clones = &mut promoted.snapshots.get_mut(&renamed(&origin)).unwrap().clones;
        clones.retain(|name| name != clone);
        clones.push(parent);
        let order = self.order.get_mut(clone).unwrap();
        order.splice(0..0, moved.iter().map(|name| renamed(name)));
        Ok(())
    }
}

impl Kernel for Pretended {
    fn find(&self, ids: &[Uuid], _detail: Detail) -> Result<Volumes, KernelError> {
        let state = self.state();
        let named = |name: &String| ids.iter().any(|id| name.contains(&id.to_string()));
        let mut wanted: Vec<String> = state.volumes.keys().filter(|name| named(name)).cloned().collect();
        let mut volumes = BTreeMap::new();
        while let Some(name) = wanted.pop() {
            let volume = state.volumes[&name].clone();
            wanted.extend(volume.origin.iter().map(|origin| origin.split_once('@').unwrap().0.to_owned()));
            volumes.insert(name, volume);
        }
        Ok(Volumes { volumes, available: 1 << 40 })
    }

    fn all(&self) -> Result<Volumes, KernelError> {
        Ok(Volumes { volumes: self.state().volumes.clone(), available: 0 })
    }

    fn written(&self, names: &[&str]) -> Result<BTreeMap<String, u64>, KernelError> {
        let state = self.state();
        let written = |name: &&str| {
            let (volume, snapshot) = match name.split_once('@') {
                Some((volume, _)) => (volume, Some(*name)),
                None => (*name, None),
            };
            let (mark, before) = self.marks(&state, volume, snapshot);
            ((*name).to_owned(), if mark == before { 0 } else { MARK_BYTES })
        };
        Ok(names.iter().map(written).collect())
    }

    fn create_volume(&self, name: &str, tag: &Tag) -> Result<(), KernelError> {
        self.state().make(name, tag, None)?;
        fs::write(self.file(name), [0]).unwrap();
        Ok(())
    }

    fn clone_snapshot(&self, name: &str, origin: &str, tag: &Tag) -> Result<(), KernelError> {
        let mut state = self.state();
        state.make(name, tag, Some(origin))?;
        fs::write(self.file(name), [state.snapshots[origin]]).unwrap();
        Ok(())
    }

    fn snapshot(&self, name: &str, tag: &Tag) -> Result<(), KernelError> {
        let mut state = self.state();
        let owner = name.split_once('@').unwrap().0;
        let volume = state.volumes.get_mut(owner).ok_or_else(|| number(libc::ENOENT))?;
        if volume.snapshots.contains_key(name) {
            return Err(number(libc::EEXIST));
        }
        let snapshot = Snapshot { tag: Some(tag.clone()), removed: false, clones: Vec::new() };
        volume.snapshots.insert(name.to_owned(), snapshot);
        state.snapshots.insert(name.to_owned(), self.mark(owner));
        state.order.get_mut(owner).unwrap().push(name.to_owned());
        Ok(())
    }

    fn change(&self, name: &str, change: Change<'_>) -> Result<(), KernelError> {
        let mut state = self.state();
        match change {
            Change::Destroy => return state.destroy(name),
            Change::Promote => return state.promote(name),
            Change::Set(..) | Change::Clear(..) => {}
        }
        let missing = || number(libc::ENOENT);
        if name.contains('@') {
            assert_eq!(change, Change::Set(REMOVED, "yes"));
            let owner = state.owner(name).ok_or_else(missing)?;
            owner.snapshots.get_mut(name).unwrap().removed = true;
            return Ok(());
        }
        let volume = state.volumes.get_mut(name).ok_or_else(missing)?;
        match change {
            Change::Set(REMOVED, _) => volume.removed = true,
            Change::Set(PENDING, id) => volume.pending = Some(id.parse().unwrap()),
            Change::Clear(PENDING) => volume.pending = None,
            other => panic!("{other:?}"),
        }
        Ok(())
    }

    fn device(&self, volume: &str) -> Result<PathBuf, KernelError> {
        Ok(self.file(volume))
    }
}

/// A pretended pool of its own.
pub(super) struct Fixture {
    folder: TempDir,
    pub(super) pool: Pretended,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pool = Pretended { state: Arc::default(), folder: folder.path().to_owned() };
        Self { folder, pool }
    }

    fn on(&self, kernel: impl Kernel + 'static, reserve_bytes: u64) -> ZfsStorage {
        ZfsStorage {
            shared: Arc::new(Shared {
                kernel: Box::new(kernel),
                root: Root::parse("tank/agentiso").unwrap(),
                lock: self.folder.path().join("lock"),
                reserve_bytes,
                begun: Mutex::default(),
            }),
        }
    }

    /// The storage as another process opens it.
    pub(super) fn storage(&self) -> ZfsStorage {
        self.on(self.pool.clone(), 0)
    }

    /// The same, that stops after so many changes.
    pub(super) fn stopping(&self, changes: usize) -> ZfsStorage {
        self.on(Stopping::after(changes, self.pool.clone()), 0)
    }
}

pub(super) fn write_mark(chain: &DiskChain, marker: u8) {
    let file = fs::File::options().write(true).open(&chain.layers[0].path).unwrap();
    file.write_all_at(&[marker], 0).unwrap();
}

pub(super) fn read_mark(chain: &DiskChain) -> u8 {
    fs::read(&chain.layers[0].path).unwrap()[0]
}

#[async_trait]
impl StorageFixture for Fixture {
    async fn open(&self) -> Box<dyn Storage> {
        Box::new(self.storage())
    }

    async fn open_full(&self) -> Box<dyn Storage> {
        Box::new(self.on(self.pool.clone(), u64::MAX))
    }

    async fn write_marker(&self, chain: &DiskChain, marker: u8) {
        write_mark(chain, marker);
    }

    async fn read_marker(&self, chain: &DiskChain) -> u8 {
        read_mark(chain)
    }

    async fn pull_up(&self, _chain: &DiskChain, _plan: &ShortenPlan) {
        unreachable!("this storage makes no plans");
    }
}
