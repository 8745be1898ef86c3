use serde::Serialize;

/// A step of long work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The kernel package is fetched and unpacked.
    Kernel,
    /// The kernel's modules are packed for machines.
    Modules,
    /// The first root of machines is written.
    Initramfs,
    /// A distribution's packages are fetched and installed into a tree.
    Packages,
    /// The machine that fills the image boots.
    Boot,
    /// The machine unpacks the root file system.
    Unpack,
    /// The machine unpacks the kernel's modules.
    InstallModules,
    /// The machine tries what it unpacked.
    Check,
    /// The machine writes everything to its disk and ends, and the image is made immutable.
    Seal,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kernel => "fetching and unpacking the kernel",
            Self::Modules => "packing the kernel's modules",
            Self::Initramfs => "writing the initramfs",
            Self::Packages => "installing packages",
            Self::Boot => "booting the builder machine",
            Self::Unpack => "unpacking the root file system",
            Self::InstallModules => "unpacking the kernel's modules",
            Self::Check => "checking the image",
            Self::Seal => "writing the image to disk",
        })
    }
}

/// How far long work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// How much of it is done, in bytes; 0 in a stage that is not counted.
    pub done: u64,
    /// How much there is, in bytes, where that is known.
    pub total: Option<u64>,
}

impl Progress {
    pub(super) fn begin(stage: Stage) -> Self {
        Self { stage, done: 0, total: None }
    }
}

/// Who is told how far long work is. Called often and from the work itself: it should return at once.
pub type ProgressSink<'a> = &'a (dyn Fn(Progress) + Send + Sync);
