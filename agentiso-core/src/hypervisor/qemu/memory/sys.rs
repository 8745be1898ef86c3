//! System calls on another process's memory, for which no library has safe forms.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// Most pieces that one system call takes (UIO_MAXIOV).
pub(super) const MAX_PIECES: usize = 1024;

/// A piece of another process's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) address: u64,
    pub(super) bytes: u64,
}

/// Reads pieces of a process's memory one after another into `into`, which is as long as all of them. Returns how many
/// bytes were read: fewer if a piece is not mapped.
pub(super) fn read_memory(pid: u32, pieces: &[Piece], into: &mut [u8]) -> io::Result<usize> {
    let (pid, remote) = (process(pid)?, remote(pieces)?);
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    // SAFETY: `local` describes `into`, which is borrowed mutably for the whole call; the kernel writes there and
    // nowhere else in this process. The remote addresses mean something in the other process only, where the kernel
    // checks them.
    let read = unsafe { libc::process_vm_readv(pid, &local, 1, remote.as_ptr(), count(&remote), 0) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Writes `from` to pieces of a process's memory, one after another, which together are as long. Returns how many bytes
/// were written: fewer if a piece is not mapped for writing.
pub(super) fn write_memory(pid: u32, pieces: &[Piece], from: &[u8]) -> io::Result<usize> {
    let (pid, remote) = (process(pid)?, remote(pieces)?);
    let local = libc::iovec { iov_base: from.as_ptr().cast_mut().cast(), iov_len: from.len() };
    // SAFETY: `local` describes `from`, borrowed for the whole call, which only reads it. The remote addresses mean
    // something in the other process only, where the kernel checks them; this process's memory is not written.
    let written = unsafe { libc::process_vm_writev(pid, &local, 1, remote.as_ptr(), count(&remote), 0) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

fn process(pid: u32) -> io::Result<libc::pid_t> {
    libc::pid_t::try_from(pid).map_err(io::Error::other)
}

fn count(pieces: &[libc::iovec]) -> libc::c_ulong {
    // Never lossy: there are at most MAX_PIECES.
    libc::c_ulong::try_from(pieces.len()).unwrap_or(0)
}

fn remote(pieces: &[Piece]) -> io::Result<Vec<libc::iovec>> {
    if pieces.len() > MAX_PIECES {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let one = |piece: &Piece| {
        let address = usize::try_from(piece.address).map_err(io::Error::other)?;
        let iov_len = usize::try_from(piece.bytes).map_err(io::Error::other)?;
        Ok(libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len })
    };
    pieces.iter().map(one).collect()
}

/// `struct page_region` of linux/fs.h: pages side by side.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Region {
    pub(super) start: u64,
    pub(super) end: u64,
    categories: u64,
}

/// `struct pm_scan_arg` of linux/fs.h.
#[repr(C)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `PAGEMAP_SCAN`, _IOWR('f', 16, struct pm_scan_arg).
const PAGEMAP_SCAN: libc::c_ulong = (3 << 30) | (96 << 16) | (0x66 << 8) | 16;

// Categories of pages (linux/fs.h).
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;

/// Finds pages between two addresses that the process has a copy of its own of: those present or swapped that are not
/// of the mapped file. Fills `regions` from the front and returns how many: if that is fewer than there is room for, there
/// are no more.
///
/// # Errors
/// ENOTTY or EINVAL from kernels before 6.7, which do not know the call.
pub(super) fn scan_private_pages(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    regions: &mut [Region],
) -> io::Result<usize> {
    let mut arguments = ScanArguments {
        size: u64::try_from(size_of::<ScanArguments>()).unwrap_or(0),
        flags: 0,
        start,
        end,
        walk_end: 0,
        vec: u64::try_from(regions.as_mut_ptr().expose_provenance()).map_err(io::Error::other)?,
        vec_len: u64::try_from(regions.len()).map_err(io::Error::other)?,
        max_pages: 0,
        category_inverted: PAGE_IS_FILE,
        category_mask: PAGE_IS_FILE,
        category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        return_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
    };
    // SAFETY: the argument is the structure that the request's number says (its size is part of the number and checked
    // below), alive and borrowed mutably for the call. The kernel writes at most `vec_len` regions at `vec`, which is
    // `regions`, borrowed mutably as well; every bit pattern is a valid region.
    let found = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arguments) };
    usize::try_from(found).map_err(|_| io::Error::last_os_error())
}

const _: () = assert!(size_of::<ScanArguments>() == 96 && size_of::<Region>() == 24);

/// A process's pagemap.
pub(super) fn open_pagemap(pid: u32) -> io::Result<File> {
    File::open(format!("/proc/{pid}/pagemap"))
}

/// A private, writable mapping of a file in this process, as a machine has one of its base.
#[cfg(test)]
pub(super) struct PrivateMapping {
    start: *mut u8,
    bytes: usize,
}

#[cfg(test)]
impl PrivateMapping {
    pub(super) fn new(file: &File, bytes: usize) -> Self {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
        // SAFETY: a new mapping at an address of the kernel's choice, of a file that is as long.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, file.as_raw_fd(), 0) };
        assert_ne!(start, libc::MAP_FAILED);
        Self { start: start.cast(), bytes }
    }

    pub(super) fn write(&self, at: usize, content: &[u8]) {
        assert!(at + content.len() <= self.bytes);
        // SAFETY: inside the mapping, as just checked, which lives as long as `self` and which no reference points to.
        unsafe { std::ptr::copy_nonoverlapping(content.as_ptr(), self.start.add(at), content.len()) };
    }

    pub(super) fn read(&self, at: usize) -> u8 {
        assert!(at < self.bytes);
        // SAFETY: inside the mapping, as just checked. Volatile: the kernel may have written there meanwhile.
        unsafe { self.start.add(at).read_volatile() }
    }
}

#[cfg(test)]
impl Drop for PrivateMapping {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, unmapped once; nothing points into it.
        unsafe { libc::munmap(self.start.cast(), self.bytes) };
    }
}
