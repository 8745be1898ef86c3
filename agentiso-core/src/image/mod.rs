//! What machines begin with: kernel, initramfs and base images.

mod catalog;

pub use catalog::{Catalog, CatalogError, ImageEntry};
