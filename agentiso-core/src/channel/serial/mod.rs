//! Virtio-serial slots: 31 ports of one machine, each a listening unix socket that its QEMU serves.
//!
//! A socket of QEMU serves one client; a second one would wait behind it unseen. So each slot has a lock file, and
//! whoever holds that lock owns the slot. The lock belongs to an open file, so the kernel releases it when its holder
//! closes the connection, ends, or is killed. Nothing is brokered by a process, and no lock outlives its holder.
//!
//! - `slots.rs`: the files of a machine, the search for a free slot.
//! - `waiting.rs`: sleeping until a slot becomes free.
//! - `stream.rs`: a connection that holds its slot.
//! - `sys.rs`: the one thing that needs `unsafe`.

#[cfg(test)]
mod contract_tests;
mod slots;
mod stream;
mod sys;
#[cfg(test)]
mod tests;
mod waiting;

use std::{path::PathBuf, time::Duration};

use agentiso_guest::limits::SERIAL_SLOTS;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use self::slots::{RunDir, Search};
use self::waiting::SlotBell;
use super::{
    ChannelCapabilities, ChannelDevice, ChannelError, ChannelRecord, ChannelSpec, GuestChannel, GuestStream,
    Lane, PreparedChannel,
};

/// The slot that [`Lane::Work`] never takes.
const CONTROL_SLOT: u32 = SERIAL_SLOTS - 1;

/// The channel over virtio-serial slots. Works on every host; needs no privilege.
///
/// Holds no state of its own: any process that can open the run folder can connect.
#[derive(Clone, Copy, Debug, Default)]
pub struct SerialChannel;

impl SerialChannel {
    /// The channel.
    pub const fn new() -> Self {
        Self
    }
}

/// What the records keep of a machine's slots.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SerialDetails {
    /// Folder of the sockets and lock files.
    run_dir: PathBuf,
}

fn run_dir_of(channel: &ChannelRecord) -> Result<PathBuf, ChannelError> {
    SerialDetails::deserialize(&channel.details)
        .map(|details| details.run_dir)
        .map_err(|source| ChannelError::Record { id: channel.id, source })
}

#[async_trait]
impl GuestChannel for SerialChannel {
    fn capabilities(&self) -> ChannelCapabilities {
        ChannelCapabilities {
            name: format!("virtio-serial, {SERIAL_SLOTS} slots"),
            concurrent: SERIAL_SLOTS as usize,
        }
    }

    /// Binds the sockets `s00` to `s30` and makes their lock files, all mode 0600. What an earlier machine left in
    /// the folder under these names is replaced.
    ///
    /// Has no point at which it could be cancelled half-way: it takes about a millisecond and never suspends.
    async fn prepare(&self, spec: ChannelSpec) -> Result<PreparedChannel, ChannelError> {
        let details = serde_json::to_value(SerialDetails { run_dir: spec.run_dir.clone() })
            .map_err(|source| ChannelError::Record { id: spec.id, source })?;
        let listeners = RunDir::open(&spec.run_dir)?.bind_all()?;
        Ok(PreparedChannel {
            device: ChannelDevice::Serial(listeners),
            record: ChannelRecord { id: spec.id, details },
        })
    }

    /// Takes a free slot and connects to its socket.
    ///
    /// The search begins at another slot each time, so that one slot that went bad is not everybody's first choice.
    /// When all are taken, this sleeps until a slot is given back, see `waiting.rs`.
    async fn connect(
        &self,
        channel: &ChannelRecord,
        lane: Lane,
        limit: Duration,
    ) -> Result<GuestStream, ChannelError> {
        let id = channel.id;
        let deadline = Instant::now() + limit;
        let gone = || ChannelError::Gone { id };
        let Some(run_dir) = RunDir::open_existing(&run_dir_of(channel)?)? else { return Err(gone()) };
        let order = slots::search_order(lane);
        let mut bell = None;
        loop {
            match run_dir.search(&order)? {
                Search::Connected(stream) => return Ok(Box::new(stream)),
                Search::NobodyListens => return Err(gone()),
                Search::AllTaken => {}
            }
            // The bell is hung up before the next search, so that no slot becomes free unheard between the two.
            let rang = match &mut bell {
                None => {
                    bell = Some(SlotBell::hang(&run_dir)?);
                    Instant::now() < deadline
                }
                Some(bell) => bell.wait_until(deadline).await?,
            };
            if !rang {
                return Err(ChannelError::Busy { id, lanes: order.len(), waited: limit });
            }
        }
    }

    /// Removes the sockets and lock files. The folder may be gone already.
    async fn release(&self, channel: &ChannelRecord) -> Result<(), ChannelError> {
        match RunDir::open_existing(&run_dir_of(channel)?)? {
            Some(run_dir) => run_dir.remove_all(),
            None => Ok(()),
        }
    }

    async fn leftovers(&self) -> Result<Vec<ChannelRecord>, ChannelError> {
        // All that a channel consists of is in its run folder.
        Ok(Vec::new())
    }
}
