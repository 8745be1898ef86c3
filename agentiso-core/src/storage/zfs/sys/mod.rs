//! The ZFS libraries and requests of block devices: all that is unsafe of this storage.
//!
//! The libraries are loaded when the first storage is opened, so that one program serves hosts with and without ZFS.

mod device;
mod library;
mod nvlist;

pub(super) use self::device::volume_name;
pub(super) use self::library::{LoadError, Zfs};
pub(super) use self::nvlist::{Map, Value};
