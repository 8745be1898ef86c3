//! Two backends of a kind at once: one for machines that are started from now on, and whichever made it for what is there
//! already. Which that was is told by the record, for no two backends write the same fields.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::channel::{
    ChannelCapabilities, ChannelError, ChannelRecord, ChannelSpec, GuestChannel, GuestStream, Lane,
    PreparedChannel, serial::SerialChannel, vsock::VsockChannel,
};
use crate::network::{
    AttachSpec, Attachment, Network, NetworkCapabilities, NetworkError, NetworkPolicy, NetworkRecord,
    user::UserNetwork,
};
use crate::types::{GuestPort, HostPort, ProcessRef, WorkspaceId};

/// Both channels.
#[derive(Debug)]
pub(super) struct MixedChannel {
    serial: SerialChannel,
    vsock: VsockChannel,
    uses_vsock: bool,
}

impl MixedChannel {
    /// New machines are reached over vsock, or by serial ports.
    pub(super) fn new(vsock: VsockChannel, uses_vsock: bool) -> Self {
        Self { serial: SerialChannel::new(), vsock, uses_vsock }
    }

    fn used(&self) -> &dyn GuestChannel {
        if self.uses_vsock { &self.vsock } else { &self.serial }
    }

    fn of(&self, record: &ChannelRecord) -> &dyn GuestChannel {
        if record.details.get("cid").is_some() { &self.vsock } else { &self.serial }
    }
}

#[async_trait]
impl GuestChannel for MixedChannel {
    fn capabilities(&self) -> ChannelCapabilities {
        self.used().capabilities()
    }

    async fn prepare(&self, spec: ChannelSpec) -> Result<PreparedChannel, ChannelError> {
        self.used().prepare(spec).await
    }

    async fn connect(
        &self,
        channel: &ChannelRecord,
        lane: Lane,
        limit: Duration,
    ) -> Result<GuestStream, ChannelError> {
        self.of(channel).connect(channel, lane, limit).await
    }

    async fn release(&self, channel: &ChannelRecord) -> Result<(), ChannelError> {
        self.of(channel).release(channel).await
    }

    async fn leftovers(&self) -> Result<Vec<ChannelRecord>, ChannelError> {
        let mut found = self.serial.leftovers().await?;
        found.extend(self.vsock.leftovers().await?);
        Ok(found)
    }
}

/// Both networks.
pub(super) struct MixedNetwork {
    user: UserNetwork,
    /// The network of root; none if it was never used here, or why there is none although it was.
    netlink: Result<Option<Arc<dyn Network>>, String>,
    uses_netlink: bool,
}

impl MixedNetwork {
    /// New machines are connected to the network of root, which is there then, or to a process of their own.
    pub(super) fn new(
        user: UserNetwork,
        netlink: Result<Option<Arc<dyn Network>>, String>,
        uses_netlink: bool,
    ) -> Self {
        Self { user, netlink, uses_netlink }
    }

    fn netlink(&self) -> Result<&dyn Network, NetworkError> {
        match &self.netlink {
            Ok(Some(netlink)) => Ok(&**netlink),
            Ok(None) => Err(missing("it was never used with this state folder")),
            Err(reason) => Err(missing(reason)),
        }
    }

    fn used(&self) -> Result<&dyn Network, NetworkError> {
        if self.uses_netlink { self.netlink() } else { Ok(&self.user) }
    }

    fn of(&self, record: &NetworkRecord) -> Result<&dyn Network, NetworkError> {
        if record.details.get("tap").is_some() { self.netlink() } else { Ok(&self.user) }
    }
}

fn missing(reason: &str) -> NetworkError {
    NetworkError::Missing {
        what: "the network of root, which this machine was started with,".to_owned(),
        remedy: format!("{reason}. Open the state folder as it was opened then (`agentiso doctor`)"),
    }
}

#[async_trait]
impl Network for MixedNetwork {
    fn capabilities(&self) -> NetworkCapabilities {
        // It is there if it is used.
        self.used().map_or_else(|_| self.user.capabilities(), |network| network.capabilities())
    }

    async fn attach(&self, spec: AttachSpec) -> Result<Attachment, NetworkError> {
        self.used()?.attach(spec).await
    }

    async fn update_policy(
        &self,
        attachment: &NetworkRecord,
        policy: &NetworkPolicy,
    ) -> Result<(), NetworkError> {
        self.of(attachment)?.update_policy(attachment, policy).await
    }

    async fn add_forward(
        &self,
        attachment: &NetworkRecord,
        guest: GuestPort,
        host: Option<HostPort>,
    ) -> Result<HostPort, NetworkError> {
        self.of(attachment)?.add_forward(attachment, guest, host).await
    }

    async fn remove_forward(&self, attachment: &NetworkRecord, guest: GuestPort) -> Result<(), NetworkError> {
        self.of(attachment)?.remove_forward(attachment, guest).await
    }

    async fn forwards(
        &self,
        attachment: &NetworkRecord,
    ) -> Result<BTreeMap<GuestPort, HostPort>, NetworkError> {
        self.of(attachment)?.forwards(attachment).await
    }

    async fn is_alive(&self, attachment: &NetworkRecord) -> Result<bool, NetworkError> {
        self.of(attachment)?.is_alive(attachment).await
    }

    async fn detach(&self, attachment: &NetworkRecord) -> Result<(), NetworkError> {
        self.of(attachment)?.detach(attachment).await
    }

    async fn processes(&self) -> Result<Vec<(WorkspaceId, ProcessRef)>, NetworkError> {
        // The network of root has none.
        self.user.processes().await
    }

    async fn kill_process(&self, process: &ProcessRef) -> Result<(), NetworkError> {
        self.user.kill_process(process).await
    }

    async fn leftovers(&self) -> Result<Vec<NetworkRecord>, NetworkError> {
        let mut found = self.user.leftovers().await?;
        if let Ok(Some(netlink)) = &self.netlink {
            found.extend(netlink.leftovers().await?);
        }
        Ok(found)
    }
}
