//! What `agentiso init` puts into the state folder's `lib`: everything that a machine is started with but its disk.

mod install;
mod locate;
mod manifest;

pub use install::{InstallOptions, InstallReport, install};
pub use locate::BinaryKind;
pub use manifest::{FileRecord, KernelRecord, Manifest};

use std::path::{Path, PathBuf};

use super::{command::CommandError, kernel::KernelError};

/// Folder of the state folder that holds the assets.
pub(crate) const LIB_FOLDER: &str = "lib";

const VMLINUX: &str = "vmlinux";
const INITRAMFS: &str = "initramfs";
pub(super) const MODULES_TAR: &str = "modules.tar";
const AGENT: &str = "agentiso-guest";
const SHIM: &str = "agentiso-shim";
const MANIFEST: &str = "manifest.json";

/// What machines are started with, installed and complete.
#[derive(Clone, Debug)]
pub struct Assets {
    /// The uncompressed kernel.
    pub kernel: PathBuf,
    /// The first root: agent and modules.
    pub initramfs: PathBuf,
    /// All modules of the kernel, for a machine's /lib/modules.
    pub modules_tar: PathBuf,
    /// The agent, which the initramfs holds too.
    pub agent: PathBuf,
    /// The companion program of each machine.
    pub shim: PathBuf,
    /// What they were made from.
    pub manifest: Manifest,
}

impl Assets {
    /// Finds what is installed in a state folder. Sizes are compared with the manifest, contents are not read:
    /// [`install`] does that.
    ///
    /// # Errors
    /// Something is missing or has another size than was installed; the error names `agentiso init`.
    pub fn load(state: &Path) -> Result<Self, AssetError> {
        let lib = state.join(LIB_FOLDER);
        let manifest = Manifest::read(&lib.join(MANIFEST))?
            .ok_or_else(|| AssetError::NotInstalled { missing: lib.join(MANIFEST) })?;
        for (name, record) in &manifest.files {
            let path = lib.join(name);
            match std::fs::metadata(&path) {
                Ok(metadata) if metadata.len() == record.bytes => {}
                Ok(_) => {
                    return Err(AssetError::Damaged {
                        path,
                        reason: "it has another size than was installed".into(),
                    });
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Err(AssetError::NotInstalled { missing: path });
                }
                Err(source) => return Err(AssetError::Io { operation: "read", path, source }),
            }
        }
        Ok(Self {
            kernel: lib.join(VMLINUX),
            initramfs: lib.join(INITRAMFS),
            modules_tar: lib.join(MODULES_TAR),
            agent: lib.join(AGENT),
            shim: lib.join(SHIM),
            manifest,
        })
    }
}

/// Why the assets could not be installed or found.
#[derive(Debug, thiserror::Error)]
pub enum AssetError {
    /// Nothing, or not all, was installed.
    #[error("{missing} is missing: run `agentiso init`")]
    NotInstalled {
        /// The first file that is not there.
        missing: PathBuf,
    },
    /// What is there is not what was installed.
    #[error("{path} is damaged ({reason}): run `agentiso init`")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A later version of agentiso wrote it.
    #[error(
        "{path} was written by a later version of agentiso (format {found}, this one knows {known}): use that version, or another state folder"
    )]
    TooNew {
        /// Which file.
        path: PathBuf,
        /// The format it has.
        found: u32,
        /// The newest format that this version knows.
        known: u32,
    },
    /// The agent or the shim is nowhere.
    #[error("{binary} was not found (looked for {}): build it with\n  {}", listed(.searched), .binary.build_command())]
    NoBinary {
        /// Which of the two.
        binary: BinaryKind,
        /// Where it was looked for.
        searched: Vec<PathBuf>,
    },
    /// It cannot do its work.
    #[error("{path} cannot be {binary}: {reason}; build it with\n  {}", .binary.build_command())]
    WrongBinary {
        /// Which of the two.
        binary: BinaryKind,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A program of the host.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A file of the host.
    #[error("could not {operation} {path}")]
    Io {
        /// What was being done, as in "write".
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
}

impl AssetError {
    fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }
}

fn listed(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
pub(super) mod tests;
