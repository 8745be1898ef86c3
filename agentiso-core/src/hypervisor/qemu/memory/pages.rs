//! Which pages of its memory a machine has written since it was started.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::FileExt},
};

use super::{PAGE, Run, sys};

/// Regions that are asked for at a time.
const REGIONS: usize = 8192;

/// Pagemap entries that are read at a time, on kernels that cannot scan.
const ENTRIES: usize = 65536;

/// A pagemap entry: the page is in swap. (Documentation/admin-guide/mm/pagemap.rst)
const SWAPPED: u64 = 1 << 62;
/// It is present.
const PRESENT: u64 = 1 << 63;
/// It is of the mapped file, or shared.
const FILE: u64 = 1 << 61;

/// Where a machine's RAM is in its process.
#[derive(Clone, Debug)]
pub(in super::super) struct RamMapping {
    pid: u32,
    parts: Vec<Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    address: u64,
    bytes: u64,
    offset: u64,
}

impl RamMapping {
    /// Finds the mapping of a file, all of it. By its inode: the path that the process opened is one of its own.
    pub(in super::super) fn find(pid: u32, inode: u64, bytes: u64) -> io::Result<Self> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let mut parts: Vec<Part> = maps.lines().filter_map(|line| parse(line, inode)).collect();
        parts.sort_by_key(|part| part.offset);
        let mut end = 0;
        for part in &parts {
            if part.offset != end {
                break;
            }
            end += part.bytes;
        }
        if end != bytes {
            return Err(io::Error::other(format!(
                "the process maps {end} of the {bytes} bytes of its memory"
            )));
        }
        Ok(Self { pid, parts })
    }

    /// The process.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Where a run of RAM is in the process: in one piece nearly always, in more where the mapping is split.
    pub(super) fn pieces(&self, run: Run) -> impl Iterator<Item = sys::Piece> + '_ {
        self.parts.iter().filter_map(move |part| {
            let from = run.offset.max(part.offset);
            let to = (run.offset + run.bytes).min(part.offset + part.bytes);
            (from < to).then(|| sys::Piece { address: part.address + (from - part.offset), bytes: to - from })
        })
    }

    /// The pages that the process has written, in order.
    pub(in super::super) fn written(&self) -> io::Result<Vec<Run>> {
        let pagemap = sys::open_pagemap(self.pid)?;
        let mut runs = Runs(Vec::new());
        for part in &self.parts {
            match scan(&pagemap, *part, REGIONS, &mut runs) {
                Ok(()) => {}
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
                    read(&pagemap, *part, &mut runs)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(runs.0)
    }
}

/// The part of a mapping that a line of /proc/PID/maps describes, if it is of that file.
fn parse(line: &str, inode: u64) -> Option<Part> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let offset = fields.nth(1)?;
    if fields.nth(1)?.parse::<u64>().ok()? != inode {
        return None;
    }
    let number = |text| u64::from_str_radix(text, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    Some(Part { address: start, bytes: end.checked_sub(start)?, offset: number(offset)? })
}

/// Runs, with neighbours joined.
struct Runs(Vec<Run>);

impl Runs {
    fn push(&mut self, offset: u64, bytes: u64) {
        match self.0.last_mut() {
            Some(last) if last.offset + last.bytes == offset => last.bytes += bytes,
            _ => self.0.push(Run { offset, bytes }),
        }
    }
}

/// Asks the kernel (6.7 and later) for the pages, so many regions at a time. It looks at no more than there are.
fn scan(pagemap: &File, part: Part, at_a_time: usize, runs: &mut Runs) -> io::Result<()> {
    let mut regions = vec![sys::Region::default(); at_a_time];
    let end = part.address + part.bytes;
    let mut next = part.address;
    loop {
        let found = sys::scan_private_pages(pagemap.as_fd(), next, end, &mut regions)?;
        let found = regions.get(..found).unwrap_or_default();
        for region in found {
            runs.push(part.offset + (region.start - part.address), region.end - region.start);
        }
        // Fewer than there was room for: it has seen all. (Where it says it has got to is not to be relied on then: it
        // may be a place on the way.)
        match found.last() {
            Some(last) if found.len() == at_a_time && last.end > next => next = last.end,
            _ => return Ok(()),
        }
    }
}

/// Reads the entry of every page.
fn read(pagemap: &File, part: Part, runs: &mut Runs) -> io::Result<()> {
    let mut buffer = vec![0; ENTRIES * 8];
    let (mut index, pages) = (part.address / PAGE, part.bytes / PAGE);
    let last = index + pages;
    while index < last {
        let wanted =
            usize::try_from((last - index).saturating_mul(8)).unwrap_or(usize::MAX).min(buffer.len());
        let chunk = buffer.get_mut(..wanted).ok_or(io::ErrorKind::InvalidInput)?;
        pagemap.read_exact_at(chunk, index * 8)?;
        for entry in chunk.as_chunks::<8>().0 {
            let entry = u64::from_ne_bytes(*entry);
            if entry & SWAPPED != 0 || entry & (PRESENT | FILE) == PRESENT {
                runs.push(part.offset + index * PAGE - part.address, PAGE);
            }
            index += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapping_is_found_by_its_inode_in_all_its_parts() {
        let maps = "7f0000000000-7f0000004000 rw-p 00000000 fe:00 77 /x/ram\n\
                    7f0000004000-7f0000006000 rw-p 00004000 fe:00 77 /x/ram (deleted)\n\
                    7f0000010000-7f0000011000 r--p 00000000 fe:00 78 /x/other\n\
                    7ffd00000000-7ffd00001000 rw-p 00000000 00:00 0 [stack]\n";
        let parts: Vec<Part> = maps.lines().filter_map(|line| parse(line, 77)).collect();
        assert_eq!(
            parts,
            [
                Part { address: 0x7f00_0000_0000, bytes: 0x4000, offset: 0 },
                Part { address: 0x7f00_0000_4000, bytes: 0x2000, offset: 0x4000 },
            ]
        );
        let mapping = RamMapping { pid: 1, parts };
        let pieces: Vec<_> = mapping.pieces(Run { offset: 0x3000, bytes: 0x2000 }).collect();
        assert_eq!(
            pieces.iter().map(|piece| (piece.address, piece.bytes)).collect::<Vec<_>>(),
            [(0x7f00_0000_3000, 0x1000), (0x7f00_0000_4000, 0x1000)]
        );
    }

    /// More regions than the kernel gathers at a time (512), and than are asked for.
    #[test]
    fn scan_finds_what_every_single_entry_says() {
        const PAGES: usize = 8192;
        let file = tempfile::tempfile().unwrap();
        file.set_len(PAGES as u64 * PAGE).unwrap();
        let mapping = sys::PrivateMapping::new(&file, PAGES * 4096);
        for page in (0..PAGES).filter(|page| page % 3 == 1 && page % 1000 > 50) {
            mapping.write(page * 4096, &[1]);
        }
        let inode = std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
        let ram = RamMapping::find(std::process::id(), inode, PAGES as u64 * PAGE).unwrap();
        let pagemap = sys::open_pagemap(std::process::id()).unwrap();
        let mut expected = Runs(Vec::new());
        read(&pagemap, ram.parts[0], &mut expected).unwrap();
        assert!(expected.0.len() > 2000);

        for at_a_time in [1, 7, 600, REGIONS] {
            let mut found = Runs(Vec::new());
            match scan(&pagemap, ram.parts[0], at_a_time, &mut found) {
                Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => return,
                outcome => outcome.unwrap(),
            }
            assert_eq!(found.0, expected.0, "{at_a_time}");
        }
    }

    #[test]
    fn neighbours_are_one_run() {
        let mut runs = Runs(Vec::new());
        runs.push(0, PAGE);
        runs.push(PAGE, PAGE);
        runs.push(3 * PAGE, PAGE);
        assert_eq!(runs.0, [Run { offset: 0, bytes: 2 * PAGE }, Run { offset: 3 * PAGE, bytes: PAGE }]);
    }
}
