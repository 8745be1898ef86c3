//! The four backends of a host.

use std::sync::Arc;

use crate::channel::GuestChannel;
use crate::hypervisor::{Accelerator, Hypervisor};
use crate::network::Network;
use crate::storage::Storage;
use crate::workspace::Isolation;

/// What a [`Host`](crate::Host) stands on: any implementation of the four traits.
#[derive(Clone)]
pub struct Backends {
    /// Runs machines.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Keeps disks.
    pub storage: Arc<dyn Storage>,
    /// Connects machines.
    pub network: Arc<dyn Network>,
    /// Reaches agents.
    pub channel: Arc<dyn GuestChannel>,
}

impl Backends {
    /// What stands between a workspace and the host with these backends.
    pub fn isolation(&self) -> Isolation {
        let hypervisor = self.hypervisor.capabilities();
        let network = self.network.capabilities();
        let channel = self.channel.capabilities();
        Isolation {
            level: match hypervisor.accelerator {
                Accelerator::Kvm => "vm-kvm",
                Accelerator::Tcg => "vm-tcg",
                Accelerator::Fake => "fake",
            }
            .to_owned(),
            hypervisor: hypervisor.name,
            storage: self.storage.capabilities().name,
            network: network.name,
            channel: channel.name,
            confinement: hypervisor.confinement,
            open: hypervisor.open.into_iter().chain(network.open).chain(channel.open).collect(),
            backends: Vec::new(),
        }
    }
}

impl std::fmt::Debug for Backends {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backends")
            .field("hypervisor", &self.hypervisor.capabilities().name)
            .field("storage", &self.storage.capabilities().name)
            .field("network", &self.network.capabilities().name)
            .field("channel", &self.channel.capabilities().name)
            .finish()
    }
}
