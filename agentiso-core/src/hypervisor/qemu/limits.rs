//! What a machine's process may use of the host, beyond what a guest is given.

use std::{os::unix::fs::MetadataExt, path::Path};

use super::launch::THREADS;
use crate::{
    hypervisor::{HypervisorError, LaunchSpec},
    process::cgroup::{self, Cgroups, Limits},
    types::MemoryMib,
};

/// Memory that QEMU may use beyond the guest's, in MiB: its emulator keeps 64 of translated code, its own heap and
/// stacks are some 60, the kernel's page tables and socket buffers for it a few; the rest is room for pages of the disk
/// in the page cache, which are counted too and are given up under pressure.
const OVERHEAD_MIB: u32 = 256;

/// And one part in so many of the guest's memory, for page tables and bookkeeping that grow with it.
const OVERHEAD_PART: u64 = 64;

/// Limits for machines, kept by the kernel (cgroup v2).
///
/// A machine has its vCPUs' worth of CPU time, the memory of its guest and an overhead, and 256 threads. When its
/// process wants more memory than that, the kernel ends that process, and no other. Their swap is limited to
/// [`MachineLimits::swap_mib`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineLimits {
    /// Whether machines must not be started where the limits cannot be had. Otherwise
    /// [`HypervisorCapabilities::open`](crate::hypervisor::HypervisorCapabilities::open) says that, and why.
    pub required: bool,
    /// Memory beyond the guest's, in MiB; a 64th of the guest's comes on top.
    pub overhead_mib: u32,
    /// How much of a machine may be swapped out, in MiB. None by default: what a guest holds in memory stays off the
    /// host's disks, and a machine that has gone wild does not fill the swap space of others.
    pub swap_mib: u32,
    /// Disk throughput, where the disk is on a device that can be limited.
    pub disk: Option<DiskLimits>,
}

impl Default for MachineLimits {
    fn default() -> Self {
        Self { required: false, overhead_mib: OVERHEAD_MIB, swap_mib: 0, disk: None }
    }
}

/// How much a machine may read and write, for each second. Buffered writes count where the file system tells the kernel
/// whose they are (ext4, btrfs, xfs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskLimits {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
}

/// What keeps the kernel from limiting machines here, with the remedy, as far as that can be told without a change.
pub(crate) fn obstacle() -> Option<String> {
    cgroup::obstacle().err().map(|error| chain(&error))
}

/// Limits, and where they are set.
#[derive(Clone, Debug)]
pub(super) struct Limiter {
    limits: MachineLimits,
    pub(super) cgroups: Cgroups,
}

impl Limiter {
    /// Finds out whether limits can be set, and removes what crashed processes have left.
    pub(super) fn open(limits: MachineLimits, state_id: &str) -> Result<Self, HypervisorError> {
        let missing = |error| HypervisorError::Missing {
            what: "a limit on what machines use of the host".to_owned(),
            remedy: chain(&error),
        };
        let cgroups = Cgroups::find(state_id).map_err(missing)?;
        cgroups.sweep().map_err(missing)?;
        Ok(Self { limits, cgroups })
    }

    /// The limits of a machine.
    pub(super) fn of(&self, spec: &LaunchSpec) -> Limits {
        const MIB: u64 = 1024 * 1024;
        let device = spec.disk.layers.first().and_then(|layer| device_of(&layer.path));
        let io = self.limits.disk.zip(device).map(|(limits, device)| {
            format!("{device} rbps={} wbps={}", limits.read_bytes, limits.write_bytes)
        });
        Limits {
            memory_bytes: memory_bytes(spec.memory, self.limits.overhead_mib),
            swap_bytes: u64::from(self.limits.swap_mib) * MIB,
            cpus: u32::from(spec.vcpus.get()),
            tasks: THREADS,
            io,
        }
    }
}

fn memory_bytes(guest: MemoryMib, overhead_mib: u32) -> u64 {
    guest.bytes() + guest.bytes() / OVERHEAD_PART + u64::from(overhead_mib) * 1024 * 1024
}

/// The device that a layer is, or that its file is on.
fn device_of(path: &Path) -> Option<String> {
    use std::os::unix::fs::FileTypeExt;
    let metadata = std::fs::metadata(path).ok()?;
    cgroup::disk_of(if metadata.file_type().is_block_device() { metadata.rdev() } else { metadata.dev() })
}

/// An error with what lies beneath it, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let beneath = std::iter::successors(error.source(), |error| error.source());
    beneath.fold(error.to_string(), |text, error| format!("{text}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_the_guests_and_the_overhead() {
        let guest = MemoryMib::new(512).unwrap();
        assert_eq!(memory_bytes(guest, OVERHEAD_MIB), (512 + 8 + 256) * 1024 * 1024);
    }
}
