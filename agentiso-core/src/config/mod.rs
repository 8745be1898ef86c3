//! Where things are, and what may be used.

mod choices;
mod file;

use std::{
    collections::BTreeSet,
    env,
    net::Ipv4Addr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

pub use self::choices::{Backend, BackendKind, Choices, Contradiction, Requirement};
pub use self::file::ConfigError;
pub(crate) use self::file::OF_THE_HOST as FILE_OF_THE_HOST;
use crate::channel::vsock::CIDS;
use crate::error::EngineError;
use crate::hypervisor::{Accelerator, qemu::MachineLimits};
use crate::storage::zfs::DEFAULT_RESERVE_BYTES;

/// How a [`Host`](crate::Host) is opened.
#[derive(Clone, Debug)]
pub struct Config {
    /// The state folder: records, disks, images, sockets. Private to one user.
    pub state_dir: PathBuf,
    /// The QEMU to use; `qemu-system-x86_64` in PATH if none.
    pub qemu: Option<PathBuf>,
    /// What must run the guests; what [`Config::choices`] say, or the best this host offers, if none.
    pub accelerator: Option<Accelerator>,
    /// How long a machine may take from its start until its agent answers. The emulator is slow on a busy host.
    pub boot_timeout: Duration,
    /// How long an operation waits for another one on the same workspace.
    pub lock_timeout: Duration,
    /// Whether workspaces are made from templates, machines that have booted already, and not by booting. The first
    /// one of each image and size takes a boot and a little more.
    pub templates: bool,
    /// How long user processes have to end themselves when a machine is stopped.
    pub stop_grace: Duration,
    /// Which backends must be used, and which must not.
    pub choices: Choices,
    /// What must hold, or no machine is started.
    pub require: BTreeSet<Requirement>,
    /// Disks on ZFS.
    pub zfs: ZfsSettings,
    /// The network of root.
    pub netlink: NetlinkSettings,
    /// Context ids that machines get which are reached over vsock.
    pub vsock_cids: RangeInclusive<u32>,
    /// What machines may use of the host, where its kernel can limit them.
    pub limits: MachineLimits,
}

/// Disks on ZFS, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZfsSettings {
    /// The dataset; with one, disks are kept there.
    pub dataset: Option<String>,
    /// Space that must be left in the pool beside a new disk's full size, in bytes.
    pub reserve_bytes: u64,
}

impl Default for ZfsSettings {
    fn default() -> Self {
        Self { dataset: None, reserve_bytes: DEFAULT_RESERVE_BYTES }
    }
}

/// The network of root, as configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetlinkSettings {
    /// Addresses of the machines, as in `10.99.0.0/16`, which is what they are if there is none.
    pub range: Option<String>,
    /// Whether forwards are reached at any address of the host, and not at its loopback alone.
    pub forwards_from_anywhere: bool,
    /// The name server of machines with internet access; the host's own if none.
    pub resolver: Option<Ipv4Addr>,
}

impl Config {
    /// The defaults, with the state folder at `state_dir`.
    pub fn at(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            qemu: None,
            accelerator: None,
            boot_timeout: Duration::from_secs(120),
            lock_timeout: Duration::from_secs(60),
            templates: true,
            stop_grace: Duration::from_secs(5),
            choices: Choices::default(),
            require: BTreeSet::new(),
            zfs: ZfsSettings::default(),
            netlink: NetlinkSettings::default(),
            vsock_cids: CIDS,
            limits: MachineLimits::default(),
        }
    }

    /// Uses a backend, or does not open the state folder. In place of another one of its kind that was forced before.
    #[must_use]
    pub fn force(mut self, backend: Backend) -> Self {
        self.choices.forced.retain(|forced| forced.kind() != backend.kind());
        self.choices.forced.insert(backend);
        self
    }

    /// Does without a backend.
    #[must_use]
    pub fn forbid(mut self, backend: Backend) -> Self {
        self.choices.forbidden.insert(backend);
        self
    }

    /// Starts no machine where this does not hold.
    #[must_use]
    pub fn require(mut self, requirement: Requirement) -> Self {
        self.require.insert(requirement);
        self
    }

    /// Keeps disks in this dataset of a ZFS pool, which `agentiso init --zfs` or
    /// [`ZfsStorage::prepare`](crate::storage::zfs::ZfsStorage::prepare) has made.
    #[must_use]
    pub fn zfs(mut self, dataset: impl Into<String>) -> Self {
        self.zfs.dataset = Some(dataset.into());
        self
    }

    /// Takes what a configuration file says, in place of what was said before. `path` is for errors.
    ///
    /// # Errors
    /// A key, a type or a value is wrong, with its line; choices contradict each other. Nothing was taken then.
    pub fn with_file(self, path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut config = self;
        file::apply(&mut config, path, text).map(|()| config)
    }

    /// Where `agentiso.toml` of this state folder is, or would be.
    pub fn file(&self) -> PathBuf {
        self.state_dir.join(file::IN_STATE_DIR)
    }

    /// The configuration of this host: the defaults, changed by the configuration file, changed by the environment.
    ///
    /// The environment names the state folder: AGENTISO_HOME, else /var/lib/agentiso for root, else `agentiso` in
    /// XDG_DATA_HOME or ~/.local/share. The file is `agentiso.toml` in there, else /etc/agentiso.toml; they are not
    /// joined. AGENTISO_QEMU names a QEMU; AGENTISO_TEMPLATES=off does without templates.
    ///
    /// # Errors
    /// [`EngineError::NoStateDir`] if nothing names a folder; [`EngineError::Config`] if the file is not valid.
    pub fn from_env() -> Result<Self, EngineError> {
        let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let state_dir = if let Some(home) = variable("AGENTISO_HOME") {
            home
        } else if rustix::process::geteuid().is_root() {
            PathBuf::from("/var/lib/agentiso")
        } else {
            variable("XDG_DATA_HOME")
                .filter(|path| path.is_absolute())
                .or_else(|| variable("HOME").map(|home| home.join(".local/share")))
                .ok_or(EngineError::NoStateDir)?
                .join("agentiso")
        };
        let state_dir = std::path::absolute(&state_dir)
            .map_err(|source| EngineError::StateDir { path: show(&state_dir), source })?;
        let mut config = Self::at(state_dir);
        if let Some((path, text)) = file::find(&config.state_dir)? {
            config = config.with_file(&path, &text)?;
        }
        config.qemu = variable("AGENTISO_QEMU").or(config.qemu);
        if let Some(templates) = env::var_os("AGENTISO_TEMPLATES").filter(|value| !value.is_empty()) {
            config.templates = templates != "off";
        }
        Ok(config)
    }

    pub(crate) fn layout(&self) -> Layout {
        Layout { root: self.state_dir.clone() }
    }
}

/// What is where in a state folder.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout of the state folder at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The state folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The records.
    pub fn database(&self) -> PathBuf {
        self.root.join("agentiso.db")
    }

    /// Kernel, initramfs, agent and companion binary.
    pub fn lib(&self) -> PathBuf {
        self.root.join("lib")
    }

    /// The kernel that machines boot, uncompressed.
    pub fn kernel(&self) -> PathBuf {
        self.lib().join("vmlinux")
    }

    /// The initial RAM file system with the agent.
    pub fn initramfs(&self) -> PathBuf {
        self.lib().join("initramfs")
    }

    /// The companion binary of machines.
    pub fn shim(&self) -> PathBuf {
        self.lib().join("agentiso-shim")
    }

    /// The catalogue of base images.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// The qcow2 storage.
    pub fn disks(&self) -> PathBuf {
        self.root.join("disks")
    }

    /// Files that RAM is mapped from.
    pub fn memory(&self) -> PathBuf {
        self.root.join("memory")
    }

    /// Sockets and logs of each machine.
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// One lock file for each workspace.
    pub fn locks(&self) -> PathBuf {
        self.root.join("locks")
    }

    /// Makes the state folder and its folders, or checks that they are private.
    ///
    /// # Errors
    /// They cannot be made, belong to somebody else, or others may enter.
    pub fn prepare(&self) -> Result<(), EngineError> {
        use std::os::unix::fs::{DirBuilderExt, MetadataExt};
        let failed = |path: &Path, source| EngineError::StateDir { path: show(path), source };
        let make = |path: &Path| {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(|source| failed(path, source))
        };
        make(&self.root)?;
        let metadata = std::fs::metadata(&self.root).map_err(|source| failed(&self.root, source))?;
        let user = rustix::process::geteuid().as_raw();
        let problem = if metadata.uid() != user {
            Some(format!("it belongs to user {}, you are user {user}", metadata.uid()))
        } else if metadata.mode() & 0o077 != 0 {
            Some(format!("its mode is {:o}", metadata.mode() & 0o7777))
        } else {
            None
        };
        if let Some(reason) = problem {
            return Err(EngineError::StateDirNotPrivate { path: show(&self.root), reason });
        }
        for folder in [self.lib(), self.images(), self.disks(), self.memory(), self.run(), self.locks()] {
            make(&folder)?;
        }
        Ok(())
    }
}

fn show(path: &Path) -> String {
    path.display().to_string()
}
