//! What machines begin with: the kernel and the initramfs ([`assets`]) and base images.
//!
//! The host never mounts, unpacks or parses what a guest or an image author made: it formats an empty file, and a
//! machine unpacks the tar stream onto it. What the host does unpack is a distribution's signed kernel package.

pub mod assets;
mod builder;
mod catalog;
mod command;
mod cpio;
mod debian;
mod disk;
mod error;
mod files;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod images;
mod initramfs;
pub mod kernel;
mod modules_tar;
mod progress;

pub use assets::{AssetError, Assets};
pub use catalog::{CatalogError, CataloguedBases, Image, ImageSource};
pub use command::CommandError;
pub use error::ImageError;
pub use files::Sha256Digest;
pub use images::{BuildProgress, DebianSpec, Images, ImportInput, ImportSpec};
pub use progress::{Progress, ProgressSink, Stage};
