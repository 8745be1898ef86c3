//! The key of a machine, in a file of its run folder. The folder is private to its owner; the file's mode says so once more.

use std::io::{Read as _, Write as _};

use agentiso_guest::key::{KEY_BYTES, MachineKey};
use rustix::{
    io::Errno,
    rand::{GetRandomFlags, getrandom},
};

use super::super::{ChannelError, lanes::RunDir};

const FILE: &str = "vsock.key";

/// What is removed with the lanes.
pub(super) fn files() -> impl Iterator<Item = String> {
    std::iter::once(FILE.to_owned())
}

/// Makes a key, and its file, of which there must be none.
pub(super) fn make(folder: &RunDir) -> Result<MachineKey, ChannelError> {
    let failed = |errno| folder.error("make a random key for", FILE, errno);
    let mut bytes = [0; KEY_BYTES];
    let mut filled = 0;
    while filled < KEY_BYTES {
        filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty()).map_err(failed)?;
    }
    let mut file = folder.create(FILE)?;
    file.write_all(&bytes).map_err(|error| folder.error("write", FILE, errno_of(&error)))?;
    Ok(MachineKey::from_bytes(bytes))
}

/// A machine's key; `None` once its channel was released.
pub(super) fn read(folder: &RunDir) -> Result<Option<MachineKey>, ChannelError> {
    let Some(mut file) = folder.open_file(FILE)? else { return Ok(None) };
    let mut bytes = [0; KEY_BYTES];
    file.read_exact(&mut bytes).map_err(|error| folder.error("read", FILE, errno_of(&error)))?;
    Ok(Some(MachineKey::from_bytes(bytes)))
}

/// What the kernel said; a file that is too short is a damaged one.
fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
