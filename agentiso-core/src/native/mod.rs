//! The backends that a host gets: looked for on this host, within what the configuration says.
//!
//! * `choice`: which, why, and what was passed over.
//! * `disks`: the storage, of which a state folder has one for good. `setup`: the first use of ZFS.
//! * `mixed`: a channel and a network of two backends each, so that machines that were started with the other one are
//!   still reached and tidied up when the choice changes.
//! * `requirements`: what the configuration wants to hold.

pub(crate) mod choice;
mod disks;
mod mixed;
mod requirements;
pub(crate) mod setup;

use std::sync::Arc;

pub use self::choice::{BackendChoice, PassedOver};
use self::mixed::{MixedChannel, MixedNetwork};
use crate::backends::Backends;
use crate::channel::GuestChannel;
use crate::channel::vsock::VsockChannel;
use crate::config::{Backend, BackendKind, Config, ConfigError, Requirement};
use crate::error::EngineError;
use crate::hypervisor::{
    Accelerator, Hypervisor as _, HypervisorError,
    qemu::{ChannelKind, DeviceKinds, MachineLimits, NicKind, Qemu, QemuConfig},
};
use crate::leases::Leases;
use crate::network::Network;
use crate::network::user::{UserNetwork, UserNetworkConfig};
use crate::store::Store;

pub(crate) use self::requirements::unmet;

/// The backends of this host, and why it is these.
pub(crate) async fn backends(
    config: &Config,
    store: &Arc<Store>,
) -> Result<(Backends, Vec<BackendChoice>), EngineError> {
    config.choices.check().map_err(ConfigError::from)?;
    let (channel, channel_choice) = channel(config, store)?;
    let (network, network_choice) = network(config, store).await?;
    let devices = DeviceKinds {
        channel: if channel_choice.used == Backend::Vsock { ChannelKind::Vsock } else { ChannelKind::Serial },
        nic: if network_choice.used == Backend::Netlink { NicKind::Tap } else { NicKind::Stream },
    };
    let qemu = qemu(config, store.state_id()).await?.with_devices(devices);
    let (qemu, limits_choice) = limits(config, qemu)?;
    let cpu_choice = choice::cpu(config, &qemu);
    let (storage, disks_choice) = disks::open(config, store).await?;
    let backends = Backends { hypervisor: Arc::new(qemu), storage, network, channel };
    Ok((backends, vec![cpu_choice, disks_choice, network_choice, channel_choice, limits_choice]))
}

/// QEMU as this configuration wants it.
pub(crate) async fn qemu(config: &Config, state_id: &str) -> Result<Qemu, HypervisorError> {
    let configured = match config.choices.forced_of(BackendKind::Cpu) {
        Some(Backend::Kvm) => Some(Accelerator::Kvm),
        Some(_) => Some(Accelerator::Tcg),
        None => None,
    };
    Qemu::open(QemuConfig {
        state_dir: config.state_dir.clone(),
        state_id: state_id.to_owned(),
        program: config.qemu.clone(),
        shim: config.layout().shim(),
        accelerator: config.accelerator.or(configured),
    })
    .await
}

/// Opens the configured backends that only show whether they can be used when they are opened, where there is a state
/// folder already.
pub(crate) async fn try_open(config: &Config) -> Vec<(Backend, Result<(), EngineError>)> {
    let database = config.layout().database();
    if !database.exists() {
        return Vec::new();
    }
    let opened = tokio::task::spawn_blocking(move || Store::open(&database)).await;
    let Ok(Ok(store)) = opened else { return Vec::new() };
    let store = Arc::new(store);
    let mut tried = Vec::new();
    if choice::disks(config).is_ok_and(|choice| choice.used == Backend::Zfs) {
        tried.push((Backend::Zfs, disks::try_open(config, &store).await));
    }
    if choice::network(config).used == Backend::Netlink {
        tried.push((Backend::Netlink, netlink(config, &store).await.map(drop)));
    }
    tried
}

fn channel(
    config: &Config,
    store: &Arc<Store>,
) -> Result<(Arc<dyn GuestChannel>, BackendChoice), EngineError> {
    let leases: Arc<dyn Leases> = store.clone();
    let choice = choice::channel(config, VsockChannel::obstacle())?;
    let vsock =
        VsockChannel::unchecked(leases).with_cids(config.vsock_cids.clone()).of_state(store.state_id());
    Ok((Arc::new(MixedChannel::new(vsock, choice.used == Backend::Vsock)), choice))
}

async fn network(
    config: &Config,
    store: &Arc<Store>,
) -> Result<(Arc<dyn Network>, BackendChoice), EngineError> {
    let user = UserNetwork::new(UserNetworkConfig {
        state_id: store.state_id().to_owned(),
        shim: config.layout().shim(),
    });
    let choice = choice::network(config);
    let is_used = choice.used == Backend::Netlink;
    let netlink = match netlink(config, store).await {
        Ok(netlink) => Ok(netlink),
        Err(error) if is_used => return Err(error),
        Err(error) => Err(error.report()),
    };
    Ok((Arc::new(MixedNetwork::new(user, netlink, is_used)), choice))
}

/// The network of root, where it is used or was.
#[cfg(feature = "netlink")]
async fn netlink(config: &Config, store: &Arc<Store>) -> Result<Option<Arc<dyn Network>>, EngineError> {
    use crate::network::netlink::{ForwardsFrom, NetlinkConfig, NetlinkNetwork};
    let is_used = choice::network(config).used == Backend::Netlink;
    // Where it keeps what it has made.
    if !is_used && !config.state_dir.join("network").exists() {
        return Ok(None);
    }
    let mut wanted = NetlinkConfig::new(store.state_id().to_owned(), config.state_dir.clone(), store.clone());
    if let Some(range) = &config.netlink.range {
        wanted.range = range.parse().map_err(|error: crate::network::netlink::InvalidRange| {
            ConfigError::Unusable { backend: Backend::Netlink, reason: error.to_string() }
        })?;
    }
    if config.netlink.forwards_from_anywhere {
        wanted.forwards_from = ForwardsFrom::Anywhere;
    }
    wanted.resolver = config.netlink.resolver;
    Ok(Some(Arc::new(NetlinkNetwork::open(wanted).await?)))
}

#[cfg(not(feature = "netlink"))]
async fn netlink(config: &Config, _: &Arc<Store>) -> Result<Option<Arc<dyn Network>>, EngineError> {
    if choice::network(config).used != Backend::Netlink {
        return Ok(None);
    }
    let reason = "this program was built without it: build with the feature `netlink`".to_owned();
    Err(ConfigError::Unusable { backend: Backend::Netlink, reason }.into())
}

fn limits(config: &Config, qemu: Qemu) -> Result<(Qemu, BackendChoice), EngineError> {
    if !config.choices.allows(Backend::Cgroup) {
        return Ok((qemu, choice::limits(config, None)));
    }
    let required = config.choices.forced_of(BackendKind::Limits) == Some(Backend::Cgroup)
        || config.require.contains(&Requirement::Limits);
    let qemu = qemu.with_limits(MachineLimits { required, ..config.limits.clone() })?;
    let obstacle = (!qemu.capabilities().limited).then(|| qemu.why_not_limited().to_owned());
    let choice = choice::limits(config, obstacle);
    Ok((qemu, choice))
}
