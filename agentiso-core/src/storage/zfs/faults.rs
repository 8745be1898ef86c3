//! A kernel that this process loses in the middle of something.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

use uuid::Uuid;

use super::{
    kernel::{Change, Detail, Kernel, KernelError, Volumes},
    names::Tag,
};

/// Does so many changes and no more.
#[derive(Debug)]
pub(super) struct Stopping<K> {
    left: AtomicUsize,
    kernel: K,
}

impl<K> Stopping<K> {
    pub(super) fn after(changes: usize, kernel: K) -> Self {
        Self { left: AtomicUsize::new(changes), kernel }
    }

    fn count(&self) -> Result<(), KernelError> {
        let one_less = |left: usize| left.checked_sub(1);
        let counted = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        counted.map(drop).map_err(|_| io::Error::other("stopped here").into())
    }
}

impl<K: Kernel> Kernel for Stopping<K> {
    fn find(&self, ids: &[Uuid], detail: Detail) -> Result<Volumes, KernelError> {
        self.kernel.find(ids, detail)
    }

    fn all(&self) -> Result<Volumes, KernelError> {
        self.kernel.all()
    }

    fn written(&self, names: &[&str]) -> Result<BTreeMap<String, u64>, KernelError> {
        self.kernel.written(names)
    }

    fn create_volume(&self, name: &str, tag: &Tag) -> Result<(), KernelError> {
        self.count()?;
        self.kernel.create_volume(name, tag)
    }

    fn clone_snapshot(&self, name: &str, origin: &str, tag: &Tag) -> Result<(), KernelError> {
        self.count()?;
        self.kernel.clone_snapshot(name, origin, tag)
    }

    fn snapshot(&self, name: &str, tag: &Tag) -> Result<(), KernelError> {
        self.count()?;
        self.kernel.snapshot(name, tag)
    }

    fn change(&self, name: &str, change: Change<'_>) -> Result<(), KernelError> {
        self.count()?;
        self.kernel.change(name, change)
    }

    fn device(&self, volume: &str) -> Result<PathBuf, KernelError> {
        self.kernel.device(volume)
    }
}
