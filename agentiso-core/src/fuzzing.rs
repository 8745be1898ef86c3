//! Doors to decoders that are private, for `fuzz/` alone: each takes any bytes, hands them to the real decoder, and
//! panics if what must always hold does not. Not part of the public interface, whatever their visibility says.

pub use crate::hypervisor::qemu::fuzzing::qmp;
pub use crate::image::fuzzing::{image_entry, import_beginning, kernel};
pub use crate::shim::net::fuzzing::network;
pub use crate::storage::qcow2::fuzzing::disk_manifest;
pub use crate::store::fuzzing::{workspace_columns, workspace_record};
