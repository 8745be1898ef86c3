//! Which backends must be used, and which must not.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What a backend is one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendKind {
    /// What runs the guests' code.
    Cpu,
    /// What keeps disks.
    Disks,
    /// What connects machines.
    Network,
    /// How agents are reached.
    Channel,
    /// What limits what a machine's process uses of the host.
    Limits,
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Disks => "disks",
            Self::Network => "network",
            Self::Channel => "channel",
            Self::Limits => "limits",
        })
    }
}

/// A backend, by the name that it has in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The CPU, through /dev/kvm.
    Kvm,
    /// QEMU's emulator.
    Tcg,
    /// Volumes of a ZFS pool.
    Zfs,
    /// Files.
    Qcow2,
    /// TAP devices, a bridge and nftables, as root.
    Netlink,
    /// A confined process beside each machine.
    User,
    /// vhost-vsock.
    Vsock,
    /// virtio-serial ports.
    Serial,
    /// Groups of cgroup v2.
    Cgroup,
    /// Limits of the process itself.
    Rlimits,
}

impl Backend {
    /// All, the better one of each kind first.
    pub const ALL: [Self; 10] = [
        Self::Kvm,
        Self::Tcg,
        Self::Zfs,
        Self::Qcow2,
        Self::Netlink,
        Self::User,
        Self::Vsock,
        Self::Serial,
        Self::Cgroup,
        Self::Rlimits,
    ];

    /// What it is one of.
    pub const fn kind(self) -> BackendKind {
        match self {
            Self::Kvm | Self::Tcg => BackendKind::Cpu,
            Self::Zfs | Self::Qcow2 => BackendKind::Disks,
            Self::Netlink | Self::User => BackendKind::Network,
            Self::Vsock | Self::Serial => BackendKind::Channel,
            Self::Cgroup | Self::Rlimits => BackendKind::Limits,
        }
    }

    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
            Self::Zfs => "zfs",
            Self::Qcow2 => "qcow2",
            Self::Netlink => "netlink",
            Self::User => "user",
            Self::Vsock => "vsock",
            Self::Serial => "serial",
            Self::Cgroup => "cgroup",
            Self::Rlimits => "rlimits",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Backend {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|backend| backend.name() == name).ok_or(())
    }
}

/// What must hold, or no machine is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Requirement {
    /// Guests run on the CPU, not in an emulator.
    Kvm,
    /// The host's kernel limits what each machine's process uses.
    Limits,
    /// Each machine has a user id of its own: agentiso runs as root.
    OwnUser,
    /// Nothing is open that should not be: [`Isolation::open`](crate::Isolation::open) is empty.
    NothingOpen,
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Limits => "limits",
            Self::OwnUser => "own-user",
            Self::NothingOpen => "nothing-open",
        })
    }
}

/// Which backends must be used, and which must not. Of a kind that neither says anything about, the best is used that
/// the host offers and that changes nothing of the host's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// Those that must be used.
    pub forced: BTreeSet<Backend>,
    /// Those that must not.
    pub forbidden: BTreeSet<Backend>,
}

impl Choices {
    /// The one of a kind that must be used.
    pub fn forced_of(&self, kind: BackendKind) -> Option<Backend> {
        let forced = self.forced.iter().copied().find(|backend| backend.kind() == kind);
        // There are two of each: forbidding one forces the other.
        forced.or_else(|| {
            let of_kind = || Backend::ALL.into_iter().filter(|backend| backend.kind() == kind);
            let is_forbidden = of_kind().any(|backend| self.forbidden.contains(&backend));
            of_kind().find(|backend| is_forbidden && !self.forbidden.contains(backend))
        })
    }

    /// Whether a backend may be used.
    pub fn allows(&self, backend: Backend) -> bool {
        self.forced_of(backend.kind()).is_none_or(|forced| forced == backend)
            && !self.forbidden.contains(&backend)
    }

    /// Whether they can all be followed.
    ///
    /// # Errors
    /// Two of one kind are forced; one is forced and forbidden; all of a kind are forbidden.
    pub fn check(&self) -> Result<(), Contradiction> {
        for backend in Backend::ALL {
            let kind = backend.kind();
            if self.forced.contains(&backend) && self.forbidden.contains(&backend) {
                return Err(Contradiction::Both { backend });
            }
            let other = |candidate: &&Backend| candidate.kind() == kind && **candidate != backend;
            if let Some(second) = self.forced.iter().find(other).filter(|_| self.forced.contains(&backend)) {
                return Err(Contradiction::TwoForced { kind, first: backend, second: *second });
            }
            if self.forbidden.iter().any(|forbidden| other(&forbidden)) && self.forbidden.contains(&backend) {
                return Err(Contradiction::NoneLeft { kind });
            }
        }
        Ok(())
    }
}

/// Choices that cannot all be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// Two of one kind are to be used.
    #[error("{first} and {second} are both to be used, and there is one for {kind}: take one out of `use`")]
    TwoForced {
        /// Of which kind.
        kind: BackendKind,
        /// One.
        first: Backend,
        /// The other.
        second: Backend,
    },
    /// One is to be used and forbidden.
    #[error("{backend} is to be used and forbidden: take it out of `use` or out of `forbid`")]
    Both {
        /// Which.
        backend: Backend,
    },
    /// Nothing of a kind is left.
    #[error("everything there is for {kind} is forbidden: take one out of `forbid`")]
    NoneLeft {
        /// Of which kind.
        kind: BackendKind,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choices(forced: &[Backend], forbidden: &[Backend]) -> Choices {
        Choices { forced: forced.iter().copied().collect(), forbidden: forbidden.iter().copied().collect() }
    }

    #[test]
    fn name_leads_back_to_its_backend() {
        for backend in Backend::ALL {
            assert_eq!(backend.name().parse(), Ok(backend));
        }
        assert_eq!("KVM".parse::<Backend>(), Err(()));
    }

    #[test]
    fn nothing_said_allows_everything_and_forces_nothing() {
        let choices = Choices::default();

        assert!(Backend::ALL.into_iter().all(|backend| choices.allows(backend)));
        assert_eq!(choices.forced_of(BackendKind::Cpu), None);
        assert_eq!(choices.check(), Ok(()));
    }

    #[test]
    fn forbidding_one_forces_the_other() {
        let choices = choices(&[Backend::Vsock], &[Backend::Tcg]);

        assert_eq!(choices.forced_of(BackendKind::Cpu), Some(Backend::Kvm));
        assert_eq!(choices.forced_of(BackendKind::Channel), Some(Backend::Vsock));
        assert!(!choices.allows(Backend::Tcg) && !choices.allows(Backend::Serial));
        assert!(choices.allows(Backend::Kvm) && choices.allows(Backend::Qcow2));
        assert_eq!(choices.check(), Ok(()));
    }

    #[test]
    fn contradictions_are_refused_and_say_what_to_take_out() {
        let cases = [
            (choices(&[Backend::Kvm, Backend::Tcg], &[]), "take one out of `use`"),
            (choices(&[Backend::Zfs], &[Backend::Zfs]), "out of `use` or out of `forbid`"),
            (choices(&[], &[Backend::Vsock, Backend::Serial]), "take one out of `forbid`"),
        ];
        for (choices, remedy) in cases {
            let error = choices.check().unwrap_err();
            assert!(error.to_string().contains(remedy), "{error}");
        }
    }
}
