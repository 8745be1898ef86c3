//! What callers ask for.

use std::collections::BTreeMap;

use crate::network::NetworkPolicy;
use crate::types::{GuestPort, HostPort, ImageName, InvalidName, Resources, SnapshotName, WorkspaceName};

/// A workspace to create.
#[derive(Clone, Debug)]
pub struct WorkspaceSpec {
    /// The base image.
    pub image: String,
    /// What people call it; one is made up if none is given.
    pub name: Option<WorkspaceName>,
    /// CPUs, memory and disk.
    pub resources: Resources,
    /// What it may reach; nothing unless allowed.
    pub policy: NetworkPolicy,
    /// Forwards from the host's loopback; a free host port is picked where none is given.
    pub forwards: BTreeMap<GuestPort, Option<HostPort>>,
    /// Destroyed when the process that created it is gone, at the latest by the next one that opens the state folder.
    pub throwaway: bool,
}

impl WorkspaceSpec {
    /// A workspace from this image, with the default resources and no network access.
    pub fn new(image: impl Into<String>) -> Self {
        Self {
            image: image.into(),
            name: None,
            resources: Resources::default(),
            policy: NetworkPolicy::default(),
            forwards: BTreeMap::new(),
            throwaway: false,
        }
    }

    /// The name people will use.
    ///
    /// # Errors
    /// The name is not valid, see [`WorkspaceName::new`].
    pub fn name(mut self, name: impl Into<String>) -> Result<Self, InvalidName> {
        self.name = Some(WorkspaceName::new(name)?);
        Ok(self)
    }

    /// CPUs, memory and disk.
    pub fn resources(mut self, resources: Resources) -> Self {
        self.resources = resources;
        self
    }

    /// Lets the machine reach the internet (never the host itself).
    pub fn allow_internet(mut self, allow: bool) -> Self {
        self.policy.allow_internet = allow;
        self
    }

    pub(crate) fn image_name(&self) -> Result<ImageName, InvalidName> {
        ImageName::new(self.image.clone())
    }
}

/// A snapshot to take.
#[derive(Clone, Debug)]
pub struct SnapshotSpec {
    /// What people call it.
    pub name: SnapshotName,
    /// Whether memory and processes are kept with the disk. Not said: yes if the machine runs.
    pub memory: Option<bool>,
    /// Take it although the guest does not confirm that its file systems are flushed: it is then what a power cut
    /// would have left.
    pub crash_consistent: bool,
}

impl SnapshotSpec {
    /// A snapshot of that name, with memory if the machine runs, and with file systems flushed.
    pub fn new(name: SnapshotName) -> Self {
        Self { name, memory: None, crash_consistent: false }
    }
}

/// A snapshot to go back to.
#[derive(Clone, Debug)]
pub struct RestoreSpec {
    /// Its name.
    pub name: SnapshotName,
    /// Put back the disk alone, although the snapshot holds memory too.
    pub disk_only: bool,
}

/// Forks to make.
#[derive(Clone, Debug)]
pub struct ForkSpec {
    /// The snapshot they begin from; the workspace as it is if none.
    pub snapshot: Option<SnapshotName>,
    /// Begin with the disk alone, although the snapshot holds memory too.
    pub disk_only: bool,
    /// How many, 1-20.
    pub count: u32,
    /// The name of a single fork.
    pub name: Option<WorkspaceName>,
    /// Forks are named PREFIX-1, PREFIX-2, ...; the workspace's own name if none is given.
    pub prefix: Option<WorkspaceName>,
}

impl Default for ForkSpec {
    fn default() -> Self {
        Self { snapshot: None, disk_only: false, count: 1, name: None, prefix: None }
    }
}

/// Most forks of one call.
pub const MAX_FORKS: u32 = 20;

/// Most snapshots of one workspace.
pub const MAX_SNAPSHOTS: usize = 20;
