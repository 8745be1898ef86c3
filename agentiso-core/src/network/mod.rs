//! Network cards of machines, what they may reach, and how the host reaches them.

#[cfg(feature = "netlink")]
pub mod netlink;
pub(crate) mod resolvers;
pub mod user;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
    path::PathBuf,
};

use agentiso_guest::message::NetworkConfiguration;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::types::{GroupName, GuestPort, HostPort, MachineUid, ProcessRef, WorkspaceId};

/// Connects machines.
///
/// An attachment outlives the process that made it; every method but `attach` works from its record alone.
#[async_trait]
pub trait Network: Send + Sync {
    /// What this network is and can do.
    fn capabilities(&self) -> NetworkCapabilities;

    /// Makes a network card with this policy and these forwards in force, for a machine that will be launched.
    ///
    /// On failure nothing is left.
    async fn attach(&self, spec: AttachSpec) -> Result<Attachment, NetworkError>;

    /// Puts another policy in force. Forwards and connections that the new policy allows are not touched.
    ///
    /// # Errors
    /// What the capabilities exclude on a running machine is refused with the remedy; nothing is changed then.
    async fn update_policy(
        &self,
        attachment: &NetworkRecord,
        policy: &NetworkPolicy,
    ) -> Result<(), NetworkError>;

    /// Forwards a TCP port of the host's loopback to a port of the guest. A free port is picked if none is given.
    /// Returns the host's port.
    ///
    /// # Errors
    /// The host's port is taken; the guest's port is forwarded already.
    async fn add_forward(
        &self,
        attachment: &NetworkRecord,
        guest: GuestPort,
        host: Option<HostPort>,
    ) -> Result<HostPort, NetworkError>;

    /// Ends a forward and its connections. No such forward: no effect.
    async fn remove_forward(&self, attachment: &NetworkRecord, guest: GuestPort) -> Result<(), NetworkError>;

    /// The forwards in force.
    async fn forwards(
        &self,
        attachment: &NetworkRecord,
    ) -> Result<BTreeMap<GuestPort, HostPort>, NetworkError>;

    /// Whether the attachment still works, as after a restart of the host's processes.
    async fn is_alive(&self, attachment: &NetworkRecord) -> Result<bool, NetworkError>;

    /// Removes the card and everything made for it. Already gone: no effect.
    async fn detach(&self, attachment: &NetworkRecord) -> Result<(), NetworkError>;

    /// Processes that this network started for this state folder. For finding those that no record knows.
    async fn processes(&self) -> Result<Vec<(WorkspaceId, ProcessRef)>, NetworkError>;

    /// Ends a process that [`Network::processes`] listed, and waits until it is gone. Gone already, or another process
    /// has its number by now: no effect.
    async fn kill_process(&self, process: &ProcessRef) -> Result<(), NetworkError>;

    /// Attachments of this state folder that were made and not detached, other than by a process that
    /// [`Network::processes`] lists. For finding those that no record knows: [`Network::detach`] removes them.
    async fn leftovers(&self) -> Result<Vec<NetworkRecord>, NetworkError>;
}

/// What a network is and can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkCapabilities {
    /// For people.
    pub name: String,
    /// Whether internet access can be changed while a machine runs.
    pub live_policy: bool,
    /// Whether forwards can be added and removed while a machine runs.
    pub live_forwards: bool,
    /// Whether machines can be let through to each other.
    pub inter_vm: bool,
    /// What a machine can reach that it should not, one line each; for the isolation label.
    pub open: Vec<String>,
}

/// What is attached.
#[derive(Clone, Debug)]
pub struct AttachSpec {
    /// Whose card.
    pub id: WorkspaceId,
    /// The user its processes run under; `Some` exactly when the caller is root.
    pub uid: Option<MachineUid>,
    /// What it may reach.
    pub policy: NetworkPolicy,
    /// Forwards that are in force from the start; a port that is taken meanwhile is an error.
    pub forwards: BTreeMap<GuestPort, HostPort>,
    /// Existing folder, private to the state folder's owner, for sockets.
    pub run_dir: PathBuf,
}

/// What a machine may reach. Everything else is dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkPolicy {
    /// Whatever the host reaches, except the host itself, its own addresses and link-local ones.
    pub allow_internet: bool,
    /// Other machines of the same state folder.
    pub allow_inter_vm: bool,
    /// With `allow_internet`: only these destination ports, TCP and UDP; all if empty. DNS goes through always.
    pub allowed_ports: Vec<u16>,
    /// At most [`MAX_GROUPS`], of at most [`MAX_GROUP_MEMBERS`] machines each: machines of the same state folder that
    /// share one may talk to each other, by everything that IPv4 carries. A network that does not let machines through
    /// to each other refuses them.
    pub groups: BTreeSet<GroupName>,
}

/// Groups that a machine can be in at once.
pub const MAX_GROUPS: usize = 8;

/// Machines that can be in a group at once, running ones. Each pair of them is known to the kernel.
pub const MAX_GROUP_MEMBERS: usize = 64;

impl NetworkPolicy {
    /// Whether any network could put it in force.
    ///
    /// # Errors
    /// [`NetworkError::TooManyGroups`].
    pub fn check(&self) -> Result<(), NetworkError> {
        if self.groups.len() > MAX_GROUPS {
            return Err(NetworkError::TooManyGroups { count: self.groups.len() });
        }
        Ok(())
    }
}

/// A card that was made.
#[derive(Debug)]
pub struct Attachment {
    /// For the hypervisor.
    pub nic: Nic,
    /// For the records.
    pub record: NetworkRecord,
    /// For the agent's configure.
    pub guest: NetworkConfiguration,
}

/// The host's end of a network card.
#[derive(Debug)]
pub struct Nic {
    /// The guest's MAC address.
    pub mac: MacAddress,
    /// What the hypervisor connects to.
    pub backend: NicBackend,
}

/// What a hypervisor connects a network card to.
#[derive(Debug)]
pub enum NicBackend {
    /// A connected stream socket that carries each frame behind its 4-byte big-endian length (QEMU's `-netdev stream`).
    Stream(OwnedFd),
    /// An open TAP device.
    Tap(OwnedFd),
}

/// Six bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MacAddress(pub [u8; 6]);

impl std::fmt::Display for MacAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An attachment, as recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// Whose card.
    pub id: WorkspaceId,
    /// The guest's address, for people.
    pub address: String,
    /// What the backend needs to find the rest again.
    pub details: serde_json::Value,
}

/// Why a network could not do something.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The host's port is taken.
    #[error("host port {port} is in use: choose another or leave it out to have a free one picked")]
    PortTaken {
        /// The port.
        port: HostPort,
    },
    /// The guest's port is forwarded already.
    #[error("guest port {guest} is already forwarded from host port {host}")]
    AlreadyForwarded {
        /// The guest's port.
        guest: GuestPort,
        /// The host's port.
        host: HostPort,
    },
    /// More than a machine can be in.
    #[error(
        "a workspace can be in {MAX_GROUPS} groups at most, and not in {count}: take it out of some, or let some share one"
    )]
    TooManyGroups {
        /// How many were asked for.
        count: usize,
    },
    /// The group has no room for another machine.
    #[error(
        "the group {group} has {MAX_GROUP_MEMBERS} running workspaces, the most it can have: stop some, take some out \
         of it, or make smaller groups that share some members"
    )]
    GroupFull {
        /// Which.
        group: GroupName,
    },
    /// This network cannot do that.
    #[error("{what} is not possible with this network: {remedy}")]
    Unsupported {
        /// What was asked.
        what: String,
        /// What to do instead.
        remedy: String,
    },
    /// The network process of the machine is gone.
    #[error("the network process of machine {id} is gone: stop and start the workspace to get a new one")]
    Gone {
        /// Whose card.
        id: WorkspaceId,
    },
    /// A program or device this host lacks, with the remedy.
    #[error("{what} is missing: {remedy}")]
    Missing {
        /// What.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// A file, socket or process of the host.
    #[error("could not {operation} {object}")]
    Io {
        /// What was being done, as in "start".
        operation: &'static str,
        /// To what.
        object: String,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
}
