use serde::{Deserialize, Serialize};

use super::AuthError;

/// How much of the host one session may have. What is stopped counts like what runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionQuota {
    /// Most workspaces.
    pub max_workspaces: u64,
    /// Most memory of all of them together, in MiB.
    pub max_memory_mb: u64,
    /// Most disk of all of them together, in GiB.
    pub max_disk_gb: u64,
}

impl Default for SessionQuota {
    fn default() -> Self {
        Self { max_workspaces: 10, max_memory_mb: 16384, max_disk_gb: 100 }
    }
}

/// What a session has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionUsage {
    /// Workspaces.
    pub workspace_count: u64,
    /// Memory of all of them together, in MiB.
    pub memory_mb: u64,
    /// Disk of all of them together, in GiB.
    pub disk_gb: u64,
}

impl SessionUsage {
    /// `count` workspaces of one size.
    pub(crate) fn of(count: u64, memory_mb: u64, disk_gb: u64) -> Self {
        Self {
            workspace_count: count,
            memory_mb: count.saturating_mul(memory_mb),
            disk_gb: count.saturating_mul(disk_gb),
        }
    }
}

/// What there is a quota of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuotaResource {
    /// Workspaces.
    Workspaces,
    /// Memory, in MiB.
    Memory,
    /// Disk, in GiB.
    Disk,
}

impl QuotaResource {
    /// What it is counted in.
    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Workspaces => "workspaces",
            Self::Memory => "MiB of memory",
            Self::Disk => "GiB of disk",
        }
    }
}

impl SessionQuota {
    /// Whether a session that has `current` may have `more`.
    ///
    /// # Errors
    /// [`AuthError::QuotaExceeded`], of the first resource that would be exceeded.
    pub(crate) fn check(&self, current: SessionUsage, more: SessionUsage) -> Result<(), AuthError> {
        for (resource, limit, current, requested) in [
            (QuotaResource::Workspaces, self.max_workspaces, current.workspace_count, more.workspace_count),
            (QuotaResource::Memory, self.max_memory_mb, current.memory_mb, more.memory_mb),
            (QuotaResource::Disk, self.max_disk_gb, current.disk_gb, more.disk_gb),
        ] {
            if current.saturating_add(requested) > limit {
                return Err(AuthError::QuotaExceeded { resource, limit, current, requested });
            }
        }
        Ok(())
    }
}
