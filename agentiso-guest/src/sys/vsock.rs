//! AF_VSOCK, which rustix does not know.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use super::last_error;

/// The host's address.
const HOST_CID: u32 = libc::VMADDR_CID_HOST;
const BACKLOG: libc::c_int = 128;

fn address_length() -> libc::socklen_t {
    const _: () = assert!(size_of::<libc::sockaddr_vm>() == 16);
    16
}

/// `IOCTL_VM_SOCKETS_GET_LOCAL_CID`.
const GET_LOCAL_CID: u32 = 7 << 8 | 0xb9;
/// Smallest address that a guest can have.
const FIRST_GUEST_CID: u32 = 3;

/// Whether the machine has a vsock device, and so an address. The kernel's module alone gives it none.
pub(crate) fn has_address() -> bool {
    let Ok(device) = std::fs::File::open("/dev/vsock") else { return false };
    let mut cid = libc::VMADDR_CID_ANY;
    // SAFETY: the request writes one u32.
    let known = unsafe { libc::ioctl(device.as_raw_fd(), GET_LOCAL_CID as _, &raw mut cid) };
    known == 0 && (FIRST_GUEST_CID..libc::VMADDR_CID_ANY).contains(&cid)
}

/// A listening socket on a vsock port, of any local address.
///
/// # Errors
/// The kernel has no vsock, or the port is taken.
pub(crate) fn listen(port: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: socket takes integers; a descriptor it returns is new and owned by nobody else.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(last_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: all fields of sockaddr_vm are integers, for which zero is valid.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).map_err(|_| Errno::AFNOSUPPORT)?;
    address.svm_cid = libc::VMADDR_CID_ANY;
    address.svm_port = port;
    // SAFETY: the address lives through the call and the length is its own.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), address_length()) };
    if bound < 0 {
        return Err(last_error());
    }
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Whether the other end of a connection is the host. A process in this guest is not.
pub(crate) fn peer_is_host(connection: impl AsFd) -> bool {
    // SAFETY: all fields of sockaddr_vm are integers, for which zero is valid.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    let mut length = address_length();
    // SAFETY: the kernel writes at most `length` bytes, the size of the address, and the length itself.
    let known = unsafe {
        libc::getpeername(connection.as_fd().as_raw_fd(), (&raw mut address).cast(), &raw mut length)
    };
    known == 0 && i32::from(address.svm_family) == libc::AF_VSOCK && address.svm_cid == HOST_CID
}
