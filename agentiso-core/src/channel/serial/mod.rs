//! Virtio-serial slots: 31 ports of one machine, each a listening unix socket that its QEMU serves.
//!
//! A socket of QEMU serves one client; a second one would wait behind it unseen. So each slot is a lane
//! (`channel/lanes`), which one connection at a time can hold. `slots.rs` has the sockets.

#[cfg(test)]
mod contract_tests;
mod slots;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, time::Duration};

use agentiso_guest::limits::SERIAL_SLOTS;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::{
    ChannelCapabilities, ChannelDevice, ChannelError, ChannelRecord, ChannelSpec, GuestChannel, GuestStream,
    Lane, PreparedChannel,
    lanes::{self, RunDir},
};

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
            open: Vec::new(),
        }
    }

    /// Binds the sockets `s00` to `s30` and makes their lock files, all mode 0600. What an earlier machine left in
    /// the folder under these names is replaced.
    ///
    /// Has no point at which it could be cancelled half-way: it takes about a millisecond and never suspends.
    async fn prepare(&self, spec: ChannelSpec) -> Result<PreparedChannel, ChannelError> {
        let details = serde_json::to_value(SerialDetails { run_dir: spec.run_dir.clone() })
            .map_err(|source| ChannelError::Record { id: spec.id, source })?;
        let listeners = slots::bind_all(&RunDir::open(&spec.run_dir)?)?;
        Ok(PreparedChannel {
            device: ChannelDevice::Serial(listeners),
            record: ChannelRecord { id: spec.id, details },
        })
    }

    /// Takes a free slot and connects to its socket.
    async fn connect(
        &self,
        channel: &ChannelRecord,
        lane: Lane,
        limit: Duration,
    ) -> Result<GuestStream, ChannelError> {
        let id = channel.id;
        let Some(run_dir) = RunDir::open_existing(&run_dir_of(channel)?)? else {
            return Err(ChannelError::Gone { id });
        };
        let connect = |slot| slots::connect(&run_dir, slot);
        Ok(GuestStream::private(lanes::take(&run_dir, id, (lane, SERIAL_SLOTS), limit, connect).await?))
    }

    /// Removes the sockets and lock files. The folder may be gone already.
    async fn release(&self, channel: &ChannelRecord) -> Result<(), ChannelError> {
        match RunDir::open_existing(&run_dir_of(channel)?)? {
            Some(run_dir) => slots::remove_all(&run_dir),
            None => Ok(()),
        }
    }

    async fn leftovers(&self) -> Result<Vec<ChannelRecord>, ChannelError> {
        // All that a channel consists of is in its run folder.
        Ok(Vec::new())
    }
}
