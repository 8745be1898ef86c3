use std::os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream};

use agentiso_guest::limits::SERIAL_SLOTS;
use rustix::{
    fs::Mode,
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use tokio::net::UnixStream;

use crate::channel::{ChannelError, lanes::RunDir};

/// Clients that may wait in front of one socket. The lock lets one at a time through; the rest is room for those that
/// were killed before QEMU saw them.
const BACKLOG: i32 = 16;

/// Read and write for the owner alone.
const PRIVATE: Mode = Mode::from_raw_mode(0o600);

fn socket_name(slot: u32) -> String {
    format!("s{slot:02}")
}

fn address(run_dir: &RunDir, slot: u32) -> Result<SocketAddrUnix, Errno> {
    SocketAddrUnix::new(format!("{}/{}", run_dir.short_path(), socket_name(slot)))
}

/// Binds every slot's socket and makes its lane. On failure all of them are removed again.
pub(super) fn bind_all(run_dir: &RunDir) -> Result<Vec<OwnedFd>, ChannelError> {
    remove_all(run_dir)?;
    let made = (0..SERIAL_SLOTS).map(|slot| bind(run_dir, slot)).collect::<Result<Vec<_>, _>>();
    if made.is_err()
        && let Err(cleanup) = remove_all(run_dir)
    {
        tracing::warn!(error = %cleanup, "could not remove the sockets of a channel that was not made");
    }
    made
}

fn bind(run_dir: &RunDir, slot: u32) -> Result<OwnedFd, ChannelError> {
    run_dir.make_lane(slot)?;
    let listen = || {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // Linux gives the file of a bound socket the mode of the socket: no moment at which others may connect.
        rustix::fs::fchmod(&socket, PRIVATE)?;
        rustix::net::bind(&socket, &address(run_dir, slot)?)?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(socket)
    };
    listen().map_err(|errno| run_dir.error("listen on", &socket_name(slot), errno))
}

/// Removes every socket and lane. Those that are gone already are no error; all are tried.
pub(super) fn remove_all(run_dir: &RunDir) -> Result<(), ChannelError> {
    run_dir.remove_lanes(SERIAL_SLOTS, (0..SERIAL_SLOTS).map(socket_name))
}

/// Connects to a slot's socket, without waiting.
pub(super) fn connect(run_dir: &RunDir, slot: u32) -> Result<UnixStream, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address(run_dir, slot)?)?;
    UnixStream::from_std(StdUnixStream::from(socket))
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
