//! Where things are, and what may be used.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::error::EngineError;
use crate::hypervisor::Accelerator;

/// How a [`Host`](crate::Host) is opened.
#[derive(Clone, Debug)]
pub struct Config {
    /// The state folder: records, disks, images, sockets. Private to one user.
    pub state_dir: PathBuf,
    /// The QEMU to use; `qemu-system-x86_64` in PATH if none.
    pub qemu: Option<PathBuf>,
    /// What must run the guests; the best this host offers if none.
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
        }
    }

    /// The defaults, with the state folder that the environment names: AGENTISO_HOME, else /var/lib/agentiso for root,
    /// else `agentiso` in XDG_DATA_HOME or ~/.local/share. AGENTISO_QEMU names a QEMU; AGENTISO_TEMPLATES=off does without
    /// templates.
    ///
    /// # Errors
    /// [`EngineError::NoStateDir`] if nothing names a folder.
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
        let templates = env::var_os("AGENTISO_TEMPLATES").is_none_or(|value| value != "off");
        Ok(Self { qemu: variable("AGENTISO_QEMU"), templates, ..Self::at(state_dir) })
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
