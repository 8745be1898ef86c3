//! From a distribution's kernel package to what a machine boots: an uncompressed vmlinux and its modules.
//!
//! A package is trusted as far as its distribution's signature reaches; what is read of it is bounded and checked
//! all the same, so that a damaged or foreign file is an error with a name and not a machine that hangs.

mod bzimage;
mod decompress;
mod elf;
mod modules;
mod package;

#[cfg(feature = "fuzzing")]
pub(super) use bzimage::extract_limited;
pub use bzimage::{Vmlinux, extract_vmlinux};
pub use decompress::PackedAs;
pub use modules::{ModuleFile, ModuleTree};
pub use package::{KernelSource, KernelTree, unpack};

#[cfg(test)]
pub(super) use elf::tests::elf_with_note;

use std::path::PathBuf;

/// Why a kernel could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Not a kernel that agentiso can boot.
    #[error("{file} is no kernel that agentiso can boot: {reason}")]
    NotBootable {
        /// Which file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The data did not unpack.
    #[error("could not decompress {file} ({packed})")]
    Decompress {
        /// Which file.
        file: PathBuf,
        /// How it is packed.
        packed: PackedAs,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
    /// A driver that no guest can do without is neither built in nor a module of this kernel.
    #[error(
        "kernel {release} has no {module}, built in or as a module, and a guest cannot do without it: use a distribution's standard or cloud kernel"
    )]
    NoModule {
        /// The kernel's release, as `uname -r`.
        release: String,
        /// The module's name.
        module: &'static str,
    },
    /// A list of modules makes no sense.
    #[error("{file} is damaged: {reason}")]
    Damaged {
        /// Which file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The package could not be fetched or unpacked.
    #[error(transparent)]
    Command(#[from] super::command::CommandError),
    /// A file of the host.
    #[error("could not {operation} {path}")]
    Io {
        /// What was being done, as in "read".
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
}

impl KernelError {
    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }
}
