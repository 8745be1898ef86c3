use std::{
    fs::{File, OpenOptions},
    io,
    ops::RangeInclusive,
    os::fd::OwnedFd,
    path::PathBuf,
};

use sha2::{Digest, Sha256};

use super::{COOL_DOWN, sys};
use crate::{
    channel::ChannelError,
    leases::{LeaseError, LeaseKind, Leases},
    types::WorkspaceId,
};

const DEVICE: &str = "/dev/vhost-vsock";

/// The smallest that a guest can have, and the largest: the next one means "any".
const FIRST: u32 = 3;
const LAST: u32 = u32::MAX - 1;

/// How many context ids a state folder uses before it uses the rest of its range. Each one that is handed out stays in the
/// records, and two state folders of one host that happen to have the same block get by, one number at a time.
const BLOCK: u32 = 1024;

/// How many context ids that others on this host have are passed over for one machine: a whole block, and as many of the
/// rest.
const MOST_TAKEN: u32 = 2 * BLOCK;

/// The part of a range that guests can have.
pub(super) fn usable(cids: &RangeInclusive<u32>) -> RangeInclusive<u32> {
    (*cids.start()).max(FIRST)..=(*cids.end()).min(LAST)
}

/// A range in the order in which a state folder uses it: a block of its own, what is above, and what is below. Blocks are
/// spread over the range, so that two state folders of one host hardly ever claim each other's numbers, and none gets the
/// one that another's machine had until just now.
pub(super) fn in_order(cids: &RangeInclusive<u32>, state_id: &str) -> Vec<RangeInclusive<u32>> {
    let (first, last) = (*cids.start(), *cids.end());
    let blocks = last.saturating_sub(first).saturating_add(1) / BLOCK;
    if blocks < 2 {
        return vec![cids.clone()];
    }
    let hash = Sha256::digest(state_id.as_bytes());
    let hash = hash.iter().take(4).fold(0, |hash: u32, byte| hash << 8 | u32::from(*byte));
    let begin = first + hash % blocks * BLOCK;
    let end = begin + (BLOCK - 1);
    // Neither number wraps around: 0 and the largest are never in a range.
    [begin..=end, end + 1..=last, first..=begin - 1].into_iter().filter(|part| !part.is_empty()).collect()
}

/// Where context ids are claimed.
#[derive(Clone, Debug)]
pub(super) struct Device {
    path: PathBuf,
    /// What claims one on an open device.
    claim: fn(&File, u32) -> io::Result<()>,
}

/// A context id that is ours as long as the descriptor, or a copy of it, is open.
#[derive(Debug)]
pub(super) struct Claimed {
    pub(super) cid: u32,
    pub(super) vhost: OwnedFd,
}

impl Device {
    /// The host's, if it can be opened.
    pub(super) fn find() -> Result<Self, ChannelError> {
        let device = Self::expected();
        device.open().map(|_| device)
    }

    /// The host's, if it has one.
    pub(super) fn expected() -> Self {
        Self { path: DEVICE.into(), claim: sys::set_guest_cid }
    }

    /// A pretended one.
    #[cfg(test)]
    pub(super) fn pretended(path: PathBuf, claim: fn(&File, u32) -> io::Result<()>) -> Self {
        Self { path, claim }
    }

    fn open(&self) -> Result<File, ChannelError> {
        OpenOptions::new().read(true).write(true).open(&self.path).map_err(|source| {
            let what = format!("{} ({source})", self.path.display());
            let remedy = match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    "let this user open it (`setfacl -m u:USER:rw` or a udev rule), run as root, or use the serial channel"
                }
                io::ErrorKind::NotFound => "load the module vhost_vsock (`modprobe vhost_vsock`), or use the serial channel",
                _ => match source.raw_os_error() {
                    Some(libc::ENODEV | libc::ENXIO) => {
                        "load the module vhost_vsock (`modprobe vhost_vsock`), or use the serial channel"
                    }
                    _ => return ChannelError::Io { operation: "open", object: self.path.display().to_string(), source },
                },
            };
            ChannelError::Missing { what, remedy: remedy.to_owned() }
        })
    }

    /// Claims a context id; `None` if somebody on this host has it.
    fn claim(&self, cid: u32) -> Result<Option<OwnedFd>, ChannelError> {
        let device = self.open()?;
        match (self.claim)(&device, cid) {
            Ok(()) => Ok(Some(device.into())),
            Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => Ok(None),
            Err(source) => {
                let object = format!("context id {cid} of {}", self.path.display());
                Err(ChannelError::Io { operation: "claim", object, source })
            }
        }
    }
}

/// Takes a context id for a machine that nobody on this host has, and not the one that it had before: of the first of
/// these ranges that has one. Blocks. On failure it may have one that is to be given back.
pub(super) fn claim(
    device: &Device,
    leases: &dyn Leases,
    ranges: &[RangeInclusive<u32>],
    id: WorkspaceId,
) -> Result<Claimed, ChannelError> {
    let failed = |source| ChannelError::Address { operation: "find a context id for", id, source };
    let exhausted = |count| failed(LeaseError::Exhausted { count, cool_down: COOL_DOWN });
    let (mut ranges, mut used_up) = (ranges.iter().peekable(), 0u32);
    for _ in 0..=MOST_TAKEN {
        let Some(&cids) = ranges.peek() else { return Err(exhausted(used_up)) };
        // What it had, or what was just found to be taken, is of no use to it.
        give_back(leases, id)?;
        let cid = match leases.take(LeaseKind::VsockCid, id, cids.clone(), COOL_DOWN) {
            Ok(cid) => cid,
            Err(LeaseError::Exhausted { count, .. }) => {
                used_up = used_up.saturating_add(count);
                ranges.next();
                continue;
            }
            Err(error) => return Err(failed(error)),
        };
        match device.claim(cid)? {
            Some(vhost) => return Ok(Claimed { cid, vhost }),
            None => tracing::debug!(cid, "another program on this host has this context id"),
        }
    }
    Err(exhausted(MOST_TAKEN))
}

/// Gives a machine's context id back. None: no effect. Blocks.
pub(super) fn give_back(leases: &dyn Leases, id: WorkspaceId) -> Result<(), ChannelError> {
    leases.give_back(LeaseKind::VsockCid, id).map_err(|source| ChannelError::Address {
        operation: "give back the context id of",
        id,
        source,
    })
}

/// Who has which context id. Blocks.
pub(super) fn held(leases: &dyn Leases, id: WorkspaceId) -> Result<Vec<(u32, WorkspaceId)>, ChannelError> {
    leases.held(LeaseKind::VsockCid).map_err(|source| ChannelError::Address {
        operation: "look up the context id of",
        id,
        source,
    })
}
