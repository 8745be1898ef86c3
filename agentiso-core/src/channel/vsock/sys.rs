use std::{fs::File, io, os::fd::AsRawFd};

/// `VHOST_VSOCK_SET_GUEST_CID` of linux/vhost.h: `_IOW(0xaf, 0x60, u64)`.
const SET_GUEST_CID: libc::c_ulong = 1 << 30 | 8 << 16 | 0xaf << 8 | 0x60;

/// Gives an open /dev/vhost-vsock its guest's context id.
///
/// # Errors
/// EADDRINUSE if another one has it, EINVAL if no guest can have it.
pub(super) fn set_guest_cid(device: &File, cid: u32) -> io::Result<()> {
    let cid = u64::from(cid);
    // SAFETY: the request reads one u64, which lives through the call; the descriptor is the file's own.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), SET_GUEST_CID, &raw const cid) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
