//! AF_VSOCK: a machine has a context id (CID), its agent listens on port 5000, and any process of the host connects.
//!
//! A connection costs nothing to set up and the kernel keeps connections apart, so a machine takes 64 at once. Two things
//! of it are the host's as a whole and not a state folder's:
//!
//! - **Context ids.** Each machine gets one from the records ([`Leases`]) within a range, by default [`CIDS`]. It is
//!   claimed from the kernel at once, on the descriptor that QEMU gets later: one that another program of the host has
//!   is given back and the next one taken. The kernel frees it when the last copy of that descriptor is closed, which is
//!   when the machine's process has ended. Only then is it released, and not handed out again for [`COOL_DOWN`]. A
//!   machine never gets the one that it had before. The records are a state folder's own, so each has a block of the range
//!   to begin with ([`VsockChannel::of_state`]); should two have the same, the kernel says who was first, and keys (below)
//!   keep each from the other's machines.
//! - **Who may connect.** AF_VSOCK has no permissions: every process of the host can connect to every machine, and one that
//!   may open /dev/vhost-vsock can take the context id of a machine that has crashed. So each machine gets a key
//!   ([`MachineKey`](super::MachineKey)) at each start, and the two ends prove to each other in every hello that they
//!   know it: whoever else
//!   connects to an agent is told nothing, and whoever else answers is sent nothing but the one request that goes
//!   out with a first hello. The key is in the machine's run folder, which only the state folder's owner can enter. What
//!   stays open: any process of the host can keep an agent busy by connecting to it (it closes a connection that
//!   says no hello after ten seconds, and serves 64), and a guest can connect to whatever listens on the host's own vsock
//!   ports; agentiso listens on none. Guests cannot reach each other: vhost-vsock passes on only what they send to the host.
//!
//! Connections that were open when a machine was captured are ended in each machine that is started from that memory:
//! QEMU tells the guest's kernel that its transport was reset, which ends connections, takes over the new context id,
//! and leaves the agent's listening socket as it is. In the captured machine they go on.
//!
//! - `address.rs`: claiming a context id. `key.rs`: the key of a machine and its file.
//! - `sys.rs`: the one thing that needs `unsafe`.
//!
//! How many connections a machine takes at once, and which is kept for control, is a matter of its lanes
//! (`channel/lanes`).

mod address;
mod key;
mod sys;
#[cfg(test)]
mod tests;

use std::{ops::RangeInclusive, path::PathBuf, sync::Arc, time::Duration};

use agentiso_guest::{VSOCK_PORT, limits::MAX_CONNECTIONS};
use async_trait::async_trait;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};
use tokio_vsock::{VsockAddr, VsockStream};

use self::address::Device;
use super::{
    ChannelCapabilities, ChannelDevice, ChannelError, ChannelRecord, ChannelSpec, GuestChannel, GuestStream,
    Lane, PreparedChannel,
    lanes::{self, RunDir},
};
use crate::{
    leases::{LeaseKind, Leases},
    types::WorkspaceId,
};

/// Context ids that machines get, unless [`VsockChannel::with_cids`] says otherwise. 0 to 2 are the kernel's. No more
/// than these, because the records keep each one that was ever handed out.
pub const CIDS: RangeInclusive<u32> = 3..=65_535;

/// How long a context id is not handed out again. Whoever still tries to reach the machine that had it has given up by
/// then: the longest attempt of ours takes two seconds, and the kernel forgets a closed connection after eight.
pub const COOL_DOWN: Duration = Duration::from_secs(60);

/// Connections to one machine at once. The agent serves no more.
#[allow(clippy::cast_possible_truncation, reason = "it is 64")]
const LANES: u32 = MAX_CONNECTIONS as u32;

/// How long one attempt to connect may take: at first, and at most. A machine that was just restored loses what arrives
/// before its kernel has taken over its context id, without a word.
const FIRST_PATIENCE: Duration = Duration::from_millis(20);
const MOST_PATIENCE: Duration = Duration::from_secs(2);

/// Pause before another attempt when the guest's kernel says that nobody listens: its agent is about to.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// What even the shortest limit leaves to one attempt: an answer takes a turn of the guest's.
const LEAST_PATIENCE: Duration = Duration::from_millis(50);

/// The channel over vhost-vsock. Needs /dev/vhost-vsock.
///
/// Any process that can open the run folder can connect.
#[derive(Clone, Debug)]
pub struct VsockChannel {
    device: Device,
    leases: Arc<dyn Leases>,
    cids: RangeInclusive<u32>,
    state_id: String,
}

impl VsockChannel {
    /// The channel, with context ids from these records.
    ///
    /// # Errors
    /// [`ChannelError::Missing`] if /dev/vhost-vsock is not there or may not be opened, with the remedy.
    pub fn open(leases: Arc<dyn Leases>) -> Result<Self, ChannelError> {
        let device = Device::find()?;
        Ok(Self { device, leases, cids: CIDS, state_id: String::new() })
    }

    /// What keeps machines from being reached like this here, if anything does.
    pub(crate) fn obstacle() -> Option<ChannelError> {
        Device::find().err()
    }

    /// The channel, whether or not it can be used: what it made before can be released.
    pub(crate) fn unchecked(leases: Arc<dyn Leases>) -> Self {
        Self { device: Device::expected(), leases, cids: CIDS, state_id: String::new() }
    }

    /// With context ids from this range, where others use [`CIDS`]. Those below 3 and the very last one are never used.
    #[must_use]
    pub fn with_cids(mut self, cids: RangeInclusive<u32>) -> Self {
        self.cids = address::usable(&cids);
        self
    }

    /// Of a state folder with this id: it begins with other context ids than most others of the host, and goes on to the
    /// whole range when these do not suffice.
    #[must_use]
    pub fn of_state(mut self, state_id: &str) -> Self {
        state_id.clone_into(&mut self.state_id);
        self
    }
}

/// What the records keep of a machine's channel.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VsockDetails {
    /// The machine's context id.
    cid: u32,
    /// Folder of the lanes. Unknown where only the context id was found.
    run_dir: Option<PathBuf>,
}

impl VsockDetails {
    fn of(channel: &ChannelRecord) -> Result<Self, ChannelError> {
        Self::deserialize(&channel.details).map_err(|source| ChannelError::Record { id: channel.id, source })
    }

    fn record(&self, id: WorkspaceId) -> Result<ChannelRecord, ChannelError> {
        let details = serde_json::to_value(self).map_err(|source| ChannelError::Record { id, source })?;
        Ok(ChannelRecord { id, details })
    }

    fn run_dir(&self) -> Result<Option<RunDir>, ChannelError> {
        self.run_dir.as_deref().map_or(Ok(None), RunDir::open_existing)
    }
}

#[async_trait]
impl GuestChannel for VsockChannel {
    fn capabilities(&self) -> ChannelCapabilities {
        ChannelCapabilities {
            name: format!("vhost-vsock, {MAX_CONNECTIONS} connections"),
            concurrent: MAX_CONNECTIONS,
            open: vec![
                "any process of the host can connect to a machine's vsock, without being served, and so take up the \
                 connections that it serves at once"
                    .to_owned(),
            ],
        }
    }

    /// Makes the lanes, and takes a context id that the machine has not had before.
    ///
    /// Cancelled half-way, a context id may stay with the machine until it is prepared or released again, or until
    /// [`GuestChannel::leftovers`] finds it.
    async fn prepare(&self, spec: ChannelSpec) -> Result<PreparedChannel, ChannelError> {
        let ChannelSpec { id, run_dir } = spec;
        let folder = RunDir::open(&run_dir)?;
        folder.remove_lanes(LANES, key::files())?;
        let (device, leases) = (self.device.clone(), Arc::clone(&self.leases));
        let ranges = address::in_order(&self.cids, &self.state_id);
        let claimed = blocking(id, move || address::claim(&device, &*leases, &ranges, id)).await;
        let made = claimed.and_then(|claimed| {
            let record = VsockDetails { cid: claimed.cid, run_dir: Some(run_dir) }.record(id)?;
            // Before the lanes: whoever finds one finds the key.
            let key = key::make(&folder)?;
            (0..LANES).try_for_each(|lane| folder.make_lane(lane))?;
            Ok(PreparedChannel {
                device: ChannelDevice::Vsock { cid: claimed.cid, vhost: claimed.vhost, key },
                record,
            })
        });
        if made.is_err() {
            if let Err(cleanup) = folder.remove_lanes(LANES, key::files()) {
                tracing::warn!(error = %cleanup, "could not remove the lanes of a channel that was not made");
            }
            let leases = Arc::clone(&self.leases);
            if let Err(cleanup) = blocking(id, move || address::give_back(&*leases, id)).await {
                tracing::warn!(error = %cleanup, "could not give the context id of a channel back");
            }
        }
        made
    }

    /// Takes a free lane, then connects to the agent's port.
    async fn connect(
        &self,
        channel: &ChannelRecord,
        lane: Lane,
        limit: Duration,
    ) -> Result<GuestStream, ChannelError> {
        let id = channel.id;
        let deadline = Instant::now() + limit;
        let details = VsockDetails::of(channel)?;
        let Some(run_dir) = details.run_dir()? else { return Err(ChannelError::Gone { id }) };
        let held = lanes::take(&run_dir, id, (lane, LANES), limit, |_| Ok(())).await?;
        let Some(key) = key::read(&run_dir)? else { return Err(ChannelError::Gone { id }) };
        let mut patience = FIRST_PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(LEAST_PATIENCE);
            let attempt = VsockStream::connect(VsockAddr::new(details.cid, VSOCK_PORT));
            let attempt = timeout(patience.min(left), attempt).await;
            // Not before: only what was connected while the lane was the machine's own is connected to this machine.
            if !held.is_valid() {
                return Err(ChannelError::Gone { id });
            }
            let pause = match attempt {
                Ok(Ok(stream)) => return Ok(GuestStream::with_key(held.with(stream), key)),
                Ok(Err(source)) => match Errno::from_io_error(&source) {
                    // No machine has this context id.
                    Some(Errno::NODEV) => return Err(ChannelError::Gone { id }),
                    Some(
                        Errno::CONNRESET
                        | Errno::CONNREFUSED
                        | Errno::TIMEDOUT
                        | Errno::HOSTUNREACH
                        | Errno::INTR,
                    ) => RETRY_PAUSE,
                    _ => {
                        let object = format!("vsock {}:{VSOCK_PORT} of machine {id}", details.cid);
                        return Err(ChannelError::Io { operation: "connect to", object, source });
                    }
                },
                Err(_elapsed) => {
                    patience = (patience * 2).min(MOST_PATIENCE);
                    Duration::ZERO
                }
            };
            if Instant::now() + pause >= deadline {
                return Err(ChannelError::NoAnswer { id, waited: limit });
            }
            sleep(pause).await;
        }
    }

    /// Removes the lanes and gives the context id back. The machine's process must have been reaped: the kernel frees
    /// the context id with it.
    async fn release(&self, channel: &ChannelRecord) -> Result<(), ChannelError> {
        let id = channel.id;
        let details = VsockDetails::of(channel)?;
        if let Some(run_dir) = details.run_dir()? {
            run_dir.remove_lanes(LANES, key::files())?;
        }
        let leases = Arc::clone(&self.leases);
        blocking(id, move || {
            // A machine that was prepared again meanwhile has another one, which stays.
            if address::held(&*leases, id)?.contains(&(details.cid, id)) {
                address::give_back(&*leases, id)?;
            }
            Ok(())
        })
        .await
    }

    /// A record for each context id that is not given back, without its folder.
    async fn leftovers(&self) -> Result<Vec<ChannelRecord>, ChannelError> {
        let leases = Arc::clone(&self.leases);
        let look = move || {
            leases.held(LeaseKind::VsockCid).map_err(|error| ChannelError::Io {
                operation: "list",
                object: "the context ids of machines".to_owned(),
                source: std::io::Error::other(error),
            })
        };
        let held = tokio::task::spawn_blocking(look).await.unwrap_or_else(|error| {
            let object = "the context ids of machines".to_owned();
            Err(ChannelError::Io { operation: "list", object, source: error.into() })
        })?;
        held.into_iter().map(|(cid, id)| VsockDetails { cid, run_dir: None }.record(id)).collect()
    }
}

/// Away from async threads: the records may have to be waited for.
async fn blocking<T: Send + 'static>(
    id: WorkspaceId,
    work: impl FnOnce() -> Result<T, ChannelError> + Send + 'static,
) -> Result<T, ChannelError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        let object = format!("the context id of machine {id}");
        Err(ChannelError::Io { operation: "see to", object, source: error.into() })
    })
}
