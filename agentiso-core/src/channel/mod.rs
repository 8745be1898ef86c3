//! Byte streams to the agents in machines, and the typed client on top of them.

use std::{os::fd::OwnedFd, path::PathBuf, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{leases::LeaseError, types::WorkspaceId};

pub mod client;
mod lanes;
pub mod serial;
mod stream;
pub mod vsock;

pub use agentiso_guest::key::MachineKey;
pub use stream::{GuestIo, GuestStream, Introduction};

/// Reaches the agent of a machine.
///
/// One fresh connection per operation: nothing is shared between two, so there is nothing to lock and a stalled one
/// delays no other.
#[async_trait]
pub trait GuestChannel: Send + Sync {
    /// What this channel is.
    fn capabilities(&self) -> ChannelCapabilities;

    /// Makes the host's end for a machine that will be launched. On failure nothing is left.
    async fn prepare(&self, spec: ChannelSpec) -> Result<PreparedChannel, ChannelError>;

    /// Connects to a machine's agent. Waits for a free lane, and for a guest that is still booting, until the limit.
    ///
    /// No hello has been exchanged yet: what arrives first may be stale.
    async fn connect(
        &self,
        channel: &ChannelRecord,
        lane: Lane,
        limit: Duration,
    ) -> Result<GuestStream, ChannelError>;

    /// Removes what `prepare` made. Already gone: no effect.
    async fn release(&self, channel: &ChannelRecord) -> Result<(), ChannelError>;

    /// Channels of this state folder that were prepared and not released, as far as they hold anything beyond their run
    /// folder. For finding those that no record knows: [`GuestChannel::release`] gives back what they hold.
    async fn leftovers(&self) -> Result<Vec<ChannelRecord>, ChannelError>;
}

/// What a channel is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelCapabilities {
    /// For people: `virtio-serial, 31 slots`.
    pub name: String,
    /// Operations that can be under way on one machine at once.
    pub concurrent: usize,
    /// What this channel leaves open that it should not, one line each.
    pub open: Vec<String>,
}

/// What is prepared.
#[derive(Clone, Debug)]
pub struct ChannelSpec {
    /// Whose channel.
    pub id: WorkspaceId,
    /// Existing folder, private to the state folder's owner, for sockets. Its path may be of any length.
    pub run_dir: PathBuf,
}

/// A channel that was made.
#[derive(Debug)]
pub struct PreparedChannel {
    /// For the hypervisor.
    pub device: ChannelDevice,
    /// For the records.
    pub record: ChannelRecord,
}

/// What a hypervisor plugs into a machine.
#[derive(Debug)]
pub enum ChannelDevice {
    /// Virtio-serial ports, in slot order, each behind a listening unix socket.
    Serial(Vec<OwnedFd>),
    /// A vhost-vsock device.
    Vsock {
        /// The machine's context id.
        cid: u32,
        /// Open /dev/vhost-vsock.
        vhost: OwnedFd,
        /// What whoever connects must know: the agent must find it in the machine, and nobody else on the host or in the
        /// machine but root.
        key: MachineKey,
    },
}

/// A channel, as recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelRecord {
    /// Whose channel.
    pub id: WorkspaceId,
    /// What the backend needs to find it again.
    pub details: serde_json::Value,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Whatever users do.
    Work,
    /// What must get through when users keep every lane busy: stop, configure, freeze, kill.
    Control,
}

/// Why an agent could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// Nobody listens: the machine is gone or was never there.
    #[error("machine {id} is not listening on its channel: it has stopped or crashed")]
    Gone {
        /// Whose channel.
        id: WorkspaceId,
    },
    /// All lanes were busy until the limit.
    #[error(
        "all {lanes} lanes to machine {id} were busy for {waited:?}: wait for running operations to end, or stop some"
    )]
    Busy {
        /// Whose channel.
        id: WorkspaceId,
        /// How many there are.
        lanes: usize,
        /// How long was waited.
        waited: Duration,
    },
    /// The guest did not answer within the limit.
    #[error("the agent of machine {id} did not answer within {waited:?}")]
    NoAnswer {
        /// Whose channel.
        id: WorkspaceId,
        /// How long was waited.
        waited: Duration,
    },
    /// A device this host lacks, with the remedy.
    #[error("{what} is missing: {remedy}")]
    Missing {
        /// What.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// There is no address for the machine.
    #[error("could not {operation} machine {id}")]
    Address {
        /// What was being done, as in "find an address for".
        operation: &'static str,
        /// Whose channel.
        id: WorkspaceId,
        /// What went wrong.
        #[source]
        source: LeaseError,
    },
    /// What the records say of the channel is not what this backend wrote, or could not be written.
    #[error("the channel record of machine {id} is not valid")]
    Record {
        /// Whose channel.
        id: WorkspaceId,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A file or socket of the host.
    #[error("could not {operation} {object}")]
    Io {
        /// What was being done, as in "connect to".
        operation: &'static str,
        /// To what.
        object: String,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
}
