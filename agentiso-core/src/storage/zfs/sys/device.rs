//! What a block device says of itself.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd},
};

/// Longest name of a dataset with its NUL, in bytes.
const NAME_BYTES: u16 = 256;

/// `_IOR(0x12, 125, char[256])`: direction << 30 | size << 16 | type << 8 | number.
const BLKZNAME: u32 = 2 << 30 | (NAME_BYTES as u32) << 16 | 0x12 << 8 | 125;

/// The volume that a block device is.
///
/// # Errors
/// It is none of ZFS.
pub(in super::super) fn volume_name(device: impl AsFd) -> io::Result<String> {
    let mut name = [0_u8; NAME_BYTES as usize];
    // SAFETY: the request writes at most `NAME_BYTES` bytes, and there are as many; a device that does not know it
    // answers ENOTTY without touching them. The number's type differs between C libraries.
    let done = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), BLKZNAME as _, name.as_mut_ptr()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    let name = CStr::from_bytes_until_nul(&name).map_err(io::Error::other)?;
    name.to_str().map(str::to_owned).map_err(io::Error::other)
}
