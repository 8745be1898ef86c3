//! What machines begin with: the kernel and the initramfs ([`assets`]) and base images.
//!
//! The host never mounts, unpacks or parses what a guest or an image author made: it formats an empty file, and a
//! machine unpacks the tar stream onto it. What the host does unpack is a distribution's signed kernel package.

pub mod assets;
mod command;
mod cpio;
mod files;
mod initramfs;
pub mod kernel;
mod modules_tar;
mod progress;

pub use command::CommandError;
pub use files::Sha256Digest;
pub use progress::{Progress, ProgressSink, Stage};
