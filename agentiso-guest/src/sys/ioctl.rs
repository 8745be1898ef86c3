//! Device requests.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::last_error;
use agentiso_guest::limits::MAX_ENTROPY_BYTES;

// asm-generic ioctl numbers: direction << 30 | size << 16 | type << 8 | number.
const EXT4_IOC_RESIZE_FS: u32 = 1 << 30 | 8 << 16 | (b'f' as u32) << 8 | 16;
const BLKGETSIZE64: u32 = 2 << 30 | 8 << 16 | 0x12 << 8 | 114;
const RNDADDENTROPY: u32 = 1 << 30 | 8 << 16 | (b'R' as u32) << 8 | 3;
const RNDRESEEDCRNG: u32 = (b'R' as u32) << 8 | 7;
const KEY_BITS_BYTES: u32 = 96;
const EVIOCGBIT_KEY: u32 = 2 << 30 | KEY_BITS_BYTES << 16 | (b'E' as u32) << 8 | 0x21;

/// `KEY_POWER` of the kernel's input event codes.
pub(crate) const KEY_POWER: usize = 116;

/// Calls ioctl with a pointer to `argument`.
///
/// # Safety
/// The kernel reads and writes no more than `T` for this request on this kind of device.
unsafe fn request<T>(fd: BorrowedFd<'_>, number: u32, argument: *mut T) -> Result<(), Errno> {
    // SAFETY: as this function demands. The number's type differs between C libraries.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), number as _, argument) };
    if result < 0 { Err(last_error()) } else { Ok(()) }
}

/// Makes the mounted ext4 file system that `root` is on `blocks` blocks long.
///
/// # Errors
/// It is no ext4, or cannot grow that far.
pub(crate) fn ext4_resize(root: impl AsFd, mut blocks: u64) -> Result<(), Errno> {
    // SAFETY: the request reads one u64; a file system that does not know it answers ENOTTY without touching it.
    unsafe { request(root.as_fd(), EXT4_IOC_RESIZE_FS, &raw mut blocks) }
}

/// Size of a block device in bytes.
///
/// # Errors
/// It is no block device.
pub(crate) fn block_device_bytes(device: impl AsFd) -> Result<u64, Errno> {
    let mut bytes = 0_u64;
    // SAFETY: the request writes one u64.
    unsafe { request(device.as_fd(), BLKGETSIZE64, &raw mut bytes) }?;
    Ok(bytes)
}

/// Mixes bytes into the kernel's entropy pool, credits them in full, and reseeds the generator.
///
/// # Errors
/// `random` is not /dev/random or /dev/urandom, or the caller is not root.
pub(crate) fn add_entropy(random: impl AsFd, entropy: &[u8]) -> Result<(), Errno> {
    #[repr(C)]
    struct PoolInfo {
        entropy_bits: libc::c_int,
        bytes: libc::c_int,
        data: [u8; MAX_ENTROPY_BYTES],
    }
    let mut info = PoolInfo { entropy_bits: 0, bytes: 0, data: [0; MAX_ENTROPY_BYTES] };
    info.data.get_mut(..entropy.len()).ok_or(Errno::INVAL)?.copy_from_slice(entropy);
    info.bytes = libc::c_int::try_from(entropy.len()).map_err(|_| Errno::INVAL)?;
    info.entropy_bits = info.bytes * 8;
    // SAFETY: the kernel reads two integers and then `bytes` bytes, which lie within `data` as just checked. The
    // second request takes no argument and ignores the pointer.
    unsafe {
        request(random.as_fd(), RNDADDENTROPY, &raw mut info)?;
        request(random.as_fd(), RNDRESEEDCRNG, std::ptr::null_mut::<u8>())
    }
}

/// Whether an input device has the given key.
pub(crate) fn has_key(device: impl AsFd, key: usize) -> bool {
    let mut bits = [0_u8; KEY_BITS_BYTES as usize];
    // SAFETY: the request's number carries the buffer's length, and the kernel writes at most that.
    let known = unsafe { request(device.as_fd(), EVIOCGBIT_KEY, bits.as_mut_ptr()) }.is_ok();
    known && bits[key / 8] & (1 << (key % 8)) != 0
}
