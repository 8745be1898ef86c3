//! The backends that a host gets without asking for others.

use std::sync::Arc;

use crate::backends::Backends;
use crate::channel::serial::SerialChannel;
use crate::config::Config;
use crate::error::EngineError;
use crate::hypervisor::HypervisorError;
use crate::hypervisor::qemu::{Qemu, QemuConfig};
use crate::network::user::{UserNetwork, UserNetworkConfig};
use crate::storage::qcow2::{Qcow2Config, Qcow2Storage};

/// The best backends this host offers.
pub(crate) async fn backends(config: &Config, state_id: &str) -> Result<Backends, EngineError> {
    let layout = config.layout();
    Ok(Backends {
        hypervisor: Arc::new(qemu(config, state_id).await?),
        storage: Arc::new(Qcow2Storage::open(Qcow2Config::new(layout.disks())).await?),
        network: Arc::new(UserNetwork::open(UserNetworkConfig {
            state_id: state_id.to_owned(),
            shim: layout.shim(),
        })?),
        channel: Arc::new(SerialChannel::new()),
    })
}

/// QEMU as this configuration wants it.
pub(crate) async fn qemu(config: &Config, state_id: &str) -> Result<Qemu, HypervisorError> {
    Qemu::open(QemuConfig {
        state_dir: config.state_dir.clone(),
        state_id: state_id.to_owned(),
        program: config.qemu.clone(),
        shim: config.layout().shim(),
        accelerator: config.accelerator,
    })
    .await
}
