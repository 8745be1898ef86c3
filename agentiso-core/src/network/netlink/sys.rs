//! TAP devices.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

/// Where TAP devices come from.
pub(super) const TUN: &str = "/dev/net/tun";

/// Makes a TAP device of this name, of at most 15 bytes. It goes with its last descriptor. Frames carry a virtio
/// header of ten bytes, unless the holder asks for another.
pub(super) fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let tun = File::options().read(true).write(true).open(TUN)?;
    // SAFETY: all of ifreq is plain data for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    if name.len() > room {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    let flags = u16::try_from(flags).map_err(io::Error::other)?;
    request.ifr_ifru.ifru_flags = libc::c_short::from_ne_bytes(flags.to_ne_bytes());
    // SAFETY: the descriptor is open, and the request is of the type that this ioctl reads and writes.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(tun.into())
}
