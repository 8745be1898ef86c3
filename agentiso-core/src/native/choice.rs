//! Which backend of each kind is used, and why.

use serde::{Deserialize, Serialize};

use crate::channel::ChannelError;
use crate::config::{Backend, BackendKind, Config, ConfigError};
use crate::hypervisor::{Accelerator, Hypervisor as _, qemu::Qemu};

/// The backend of one kind that is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendChoice {
    /// Of which kind.
    pub kind: BackendKind,
    /// The one that is used.
    pub used: Backend,
    /// Why, for people.
    pub why: String,
    /// The one that is not.
    pub passed_over: PassedOver,
}

/// A backend that is not used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassedOver {
    /// Which.
    pub backend: Backend,
    /// Why, for people.
    pub why: String,
    /// What to do to have it used, where that would be better.
    pub remedy: Option<String>,
}

const CONFIGURED: &str = "configured";
const OTHER_CONFIGURED: &str = "the other one is configured";

impl BackendChoice {
    fn new(used: Backend, why: impl Into<String>, other: (&str, Option<String>)) -> Self {
        let kind = used.kind();
        let backend = Backend::ALL.into_iter().find(|one| one.kind() == kind && *one != used).unwrap_or(used);
        let (why_not, remedy) = other;
        let passed_over = PassedOver { backend, why: why_not.to_owned(), remedy };
        Self { kind, used, why: why.into(), passed_over }
    }

    fn configured(used: Backend) -> Self {
        Self::new(used, CONFIGURED, (OTHER_CONFIGURED, None))
    }
}

/// What runs guests in this QEMU.
pub(crate) fn cpu(config: &Config, qemu: &Qemu) -> BackendChoice {
    let used = match qemu.capabilities().accelerator {
        Accelerator::Kvm => Backend::Kvm,
        Accelerator::Tcg | Accelerator::Fake => Backend::Tcg,
    };
    if config.accelerator.is_some() || config.choices.forced_of(BackendKind::Cpu).is_some() {
        return BackendChoice::configured(used);
    }
    match qemu.why_not_kvm() {
        Some(reason) => BackendChoice::new(
            used,
            "it works everywhere",
            (&reason, Some("use a host with KVM, or enable nested virtualisation".to_owned())),
        ),
        None => BackendChoice::new(used, "the CPU can run guests", ("it is several times slower", None)),
    }
}

/// How agents are reached, where this keeps vsock from being used.
pub(crate) fn channel(config: &Config, obstacle: Option<ChannelError>) -> Result<BackendChoice, ConfigError> {
    let shown = obstacle.as_ref().map(|error| match error {
        ChannelError::Missing { what, remedy } => (what.clone(), remedy.clone()),
        error => (error.to_string(), "mend it, or use the serial channel".to_owned()),
    });
    match (config.choices.forced_of(BackendKind::Channel), shown) {
        (Some(Backend::Vsock), Some((what, remedy))) => {
            Err(ConfigError::Unusable { backend: Backend::Vsock, reason: format!("{what}: {remedy}") })
        }
        (Some(forced), _) => Ok(BackendChoice::configured(forced)),
        (None, None) => {
            Ok(BackendChoice::new(Backend::Vsock, "/dev/vhost-vsock opens", ("it is slower", None)))
        }
        (None, Some((what, remedy))) => Ok(BackendChoice::new(
            Backend::Serial,
            "it works everywhere",
            (&format!("missing: {what}"), Some(remedy)),
        )),
    }
}

/// What connects machines. That of root is never used without having been asked for.
pub(crate) fn network(config: &Config) -> BackendChoice {
    match config.choices.forced_of(BackendKind::Network) {
        Some(forced) => BackendChoice::configured(forced),
        None => {
            let remedy = match (cfg!(feature = "netlink"), rustix::process::geteuid().is_root()) {
                (false, _) => "build agentiso with the feature `netlink`",
                (true, false) => "run agentiso as root, with `use = [\"netlink\"]` in its configuration",
                (true, true) => "`use = [\"netlink\"]` in the configuration",
            };
            BackendChoice::new(
                Backend::User,
                "it works everywhere and leaves the host's network as it is",
                (
                    "it gives the host a bridge and tables of nftables, and lets it forward packets: only where configured",
                    Some(remedy.to_owned()),
                ),
            )
        }
    }
}

/// What keeps disks.
pub(crate) fn disks(config: &Config) -> Result<BackendChoice, ConfigError> {
    let setup = "`agentiso init --zfs POOL`";
    match (config.choices.forced_of(BackendKind::Disks), &config.zfs.dataset) {
        (Some(Backend::Zfs), None) => Err(ConfigError::Unusable {
            backend: Backend::Zfs,
            reason: format!("no dataset is configured: {setup} makes one and configures it"),
        }),
        (Some(forced), _) => Ok(BackendChoice::configured(forced)),
        (None, Some(dataset)) => Ok(BackendChoice::new(
            Backend::Zfs,
            format!("the dataset {dataset} is configured"),
            (OTHER_CONFIGURED, None),
        )),
        (None, None) => Ok(BackendChoice::new(
            Backend::Qcow2,
            "it works everywhere",
            ("no dataset is configured", Some(format!("{setup}, where there is a pool"))),
        )),
    }
}

/// What limits machines, where this keeps groups from being used.
pub(crate) fn limits(config: &Config, obstacle: Option<String>) -> BackendChoice {
    match (config.choices.forced_of(BackendKind::Limits), obstacle) {
        (Some(forced), None) => BackendChoice::configured(forced),
        (None, None) => BackendChoice::new(
            Backend::Cgroup,
            "groups of cgroup v2 can be made",
            ("they limit less, and are in force beside the groups", None),
        ),
        (_, Some(obstacle)) => {
            // As in "cgroup v2 is not mounted: boot the host with it".
            let (what, remedy) = obstacle
                .split_once(": ")
                .map_or((obstacle.as_str(), None), |(what, remedy)| (what, Some(remedy.to_owned())));
            BackendChoice::new(Backend::Rlimits, "they work everywhere", (what, remedy))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing() -> Option<ChannelError> {
        Some(ChannelError::Missing { what: "the device".to_owned(), remedy: "load the module".to_owned() })
    }

    #[test]
    fn vsock_is_used_where_it_is_there_and_allowed() {
        let config = Config::at("/state");

        assert_eq!(channel(&config, None).unwrap().used, Backend::Vsock);
        let passed = channel(&config, missing()).unwrap();
        assert_eq!((passed.used, passed.passed_over.backend), (Backend::Serial, Backend::Vsock));
        assert_eq!(passed.passed_over.remedy.as_deref(), Some("load the module"));
        let forbidden = config.clone().forbid(Backend::Vsock);
        assert_eq!(channel(&forbidden, None).unwrap().used, Backend::Serial);
        let error = channel(&config.forbid(Backend::Serial), missing()).unwrap_err();
        assert!(error.to_string().contains("load the module"), "{error}");
    }

    #[test]
    fn zfs_is_used_where_a_dataset_is_configured_and_not_forbidden() {
        let config = Config::at("/state");

        assert_eq!(disks(&config).unwrap().used, Backend::Qcow2);
        assert_eq!(disks(&config.clone().zfs("tank/a")).unwrap().used, Backend::Zfs);
        assert_eq!(disks(&config.clone().zfs("tank/a").force(Backend::Qcow2)).unwrap().used, Backend::Qcow2);
        let error = disks(&config.force(Backend::Zfs)).unwrap_err();
        assert!(error.to_string().contains("init --zfs"), "{error}");
    }

    #[test]
    fn network_of_root_is_used_only_where_configured() {
        let config = Config::at("/state");

        let choice = network(&config);
        assert_eq!((choice.used, choice.passed_over.backend), (Backend::User, Backend::Netlink));
        assert!(choice.passed_over.remedy.is_some());
        assert_eq!(network(&config.force(Backend::Netlink)).used, Backend::Netlink);
    }

    #[test]
    fn limits_of_the_process_are_used_where_there_are_no_groups() {
        let config = Config::at("/state");

        let choice = limits(&config, Some("no groups: mount them".to_owned()));
        assert_eq!((choice.used, choice.passed_over.why.as_str()), (Backend::Rlimits, "no groups"));
        assert_eq!(choice.passed_over.remedy.as_deref(), Some("mount them"));
        assert_eq!(limits(&config, None).used, Backend::Cgroup);
        assert_eq!(limits(&config.force(Backend::Rlimits), None).used, Backend::Rlimits);
    }
}
