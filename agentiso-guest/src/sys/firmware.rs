//! QEMU's firmware configuration device (fw_cfg): files that the host gives to a machine, read through two I/O ports.
//!
//! The device belongs to the QEMU that runs the machine now, so a machine that was restored or forked reads what its own
//! QEMU was started with. The ports are reached directly, for the kernel's driver is a module that an image need not have.

use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

use super::last_error;

const SELECTOR_PORT: u16 = 0x510;
const DATA_PORT: u16 = 0x511;

/// Items with fixed numbers: what tells the device from an empty bus, and the list of files.
const SIGNATURE: u16 = 0;
const DIRECTORY: u16 = 0x19;

/// An entry of the list: size and item (big-endian), two bytes of nothing, name.
const ENTRY_BYTES: usize = 64;
const NAME_AT: usize = 8;
/// More files than any machine of ours has.
const MOST_FILES: u32 = 256;

/// One conversation with the device at a time: it has one position.
static DEVICE: Mutex<()> = Mutex::new(());

/// Fills `content` from a file; `false` if the machine has no such file of exactly that length.
///
/// # Errors
/// The caller is not root, or the kernel does not let processes use I/O ports.
pub(crate) fn read_file(name: &str, content: &mut [u8]) -> Result<bool, Errno> {
    let _alone = DEVICE.lock().unwrap_or_else(PoisonError::into_inner);
    let ports = Ports::open()?;
    let mut signature = [0; 4];
    ports.select(SIGNATURE);
    ports.read(&mut signature);
    if &signature != b"QEMU" {
        return Ok(false);
    }
    let mut count = [0; 4];
    ports.select(DIRECTORY);
    ports.read(&mut count);
    for _ in 0..u32::from_be_bytes(count).min(MOST_FILES) {
        let mut entry = [0; ENTRY_BYTES];
        ports.read(&mut entry);
        let (numbers, own_name) = entry.split_at(NAME_AT);
        if own_name.split(|byte| *byte == 0).next() != Some(name.as_bytes()) {
            continue;
        }
        let [a, b, c, d, e, f, ..] = *numbers else { return Ok(false) };
        if u32::from_be_bytes([a, b, c, d]) as usize != content.len() {
            return Ok(false);
        }
        ports.select(u16::from_be_bytes([e, f]));
        ports.read(content);
        return Ok(true);
    }
    Ok(false)
}

/// The right of this thread to use the device's ports. Given back when dropped: what a thread starts would inherit it.
struct Ports(PhantomData<*const ()>);

#[cfg(target_arch = "x86_64")]
impl Ports {
    fn open() -> Result<Self, Errno> {
        // SAFETY: ioperm takes integers and changes what this thread may do, not what it has in memory.
        let allowed = unsafe { libc::ioperm(SELECTOR_PORT.into(), 2, 1) };
        if allowed < 0 { Err(last_error()) } else { Ok(Self(PhantomData)) }
    }

    /// Chooses an item and goes to its first byte.
    fn select(&self, item: u16) {
        // SAFETY: that a `Ports` exists means that this thread may use this port (it is neither Send nor kept), and a
        // number written to it moves the device's position and touches no memory.
        unsafe {
            std::arch::asm!("out dx, ax", in("dx") SELECTOR_PORT, in("ax") item, options(nomem, nostack, preserves_flags));
        }
    }

    /// Reads the next bytes; zeros past the end of an item.
    fn read(&self, buffer: &mut [u8]) {
        // SAFETY: this thread may use this port, as above. `rep insb` writes as many bytes as rcx says upwards from rdi
        // (the ABI keeps the direction flag clear), which is exactly the buffer, borrowed mutably here.
        unsafe {
            std::arch::asm!(
                "rep insb",
                in("dx") DATA_PORT,
                inout("rdi") buffer.as_mut_ptr() => _,
                inout("rcx") buffer.len() => _,
                options(nostack, preserves_flags)
            );
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for Ports {
    fn drop(&mut self) {
        // Giving up a right that one has cannot fail.
        // SAFETY: as in `open`.
        let _ = unsafe { libc::ioperm(SELECTOR_PORT.into(), 2, 0) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl Ports {
    fn open() -> Result<Self, Errno> {
        Err(Errno::NOSYS)
    }

    fn select(&self, _item: u16) {}

    fn read(&self, _buffer: &mut [u8]) {}
}
