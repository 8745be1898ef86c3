//! Pages of a machine's memory, from its process and into it.

use std::io;

use super::{
    PAGE, Run,
    pages::RamMapping,
    sys::{self, MAX_PIECES, Piece},
    total,
};

/// Bytes that are worth a thread: starting one takes as long as copying a part of this.
const LEAST_SHARE: usize = 4 * 1024 * 1024;

/// Threads that copy at once. More than the memory can serve would only be in each other's way.
const MOST_COPIERS: usize = 4;

/// Memory for pages that are to be copied while a machine stands still: made ready before, so that nothing but the
/// copy happens then.
#[derive(Debug)]
pub(in super::super) struct Buffer(Vec<u8>);

impl Buffer {
    /// Room for that many bytes, all of it touched: the kernel has found the pages already.
    pub(in super::super) fn touched(bytes: u64) -> io::Result<Self> {
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
        let mut room = Vec::new();
        room.try_reserve_exact(bytes).map_err(io::Error::other)?;
        room.resize(bytes, 1);
        Ok(Self(room))
    }

    /// Copies runs of a process's memory here, one after another. What did not fit in the room that was made ready
    /// costs the finding of its pages.
    pub(in super::super) fn fill(&mut self, from: &RamMapping, runs: &[Run]) -> io::Result<()> {
        let bytes = usize::try_from(total(runs)).map_err(io::Error::other)?;
        self.0.resize(bytes, 0);
        // Its vCPUs stand still: nobody else wants the host's other CPUs on its behalf.
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let most = bytes.div_ceil(LEAST_SHARE).clamp(1, cpus.min(MOST_COPIERS));
        let mut rest = self.0.as_mut_slice();
        std::thread::scope(|scope| {
            let mut copiers = Vec::new();
            for share in shares(runs, most) {
                let length = usize::try_from(total(&share)).map_err(io::Error::other)?;
                let (into, after) = std::mem::take(&mut rest)
                    .split_at_mut_checked(length)
                    .ok_or(io::ErrorKind::InvalidInput)?;
                rest = after;
                if rest.is_empty() {
                    // The last one is this thread's.
                    read(from, &share, into)?;
                } else {
                    copiers.push(scope.spawn(move || read(from, &share, into)));
                }
            }
            copiers.into_iter().try_for_each(|copier| {
                copier
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("a thread that copied memory has ended")))
            })
        })
    }

    /// What was copied.
    pub(in super::super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Copies runs of a process's memory, one after another, into `into`, which is as long as all of them.
fn read(from: &RamMapping, runs: &[Run], into: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    in_batches(from, runs, |pieces, length| {
        let part = into.get_mut(filled..filled + length).ok_or(io::ErrorKind::InvalidInput)?;
        filled += length;
        whole(sys::read_memory(from.pid(), pieces, part)?, length)
    })
}

/// Splits runs, in their order, into at most so many shares of whole pages that are about as large.
fn shares(runs: &[Run], most: usize) -> Vec<Vec<Run>> {
    let most = u64::try_from(most.max(1)).unwrap_or(1);
    let share = total(runs).div_ceil(most).next_multiple_of(PAGE).max(PAGE);
    let mut shares = Vec::new();
    let (mut current, mut room) = (Vec::new(), share);
    for run in runs {
        let mut rest = *run;
        while rest.bytes > 0 {
            let bytes = rest.bytes.min(room);
            current.push(Run { offset: rest.offset, bytes });
            rest = Run { offset: rest.offset + bytes, bytes: rest.bytes - bytes };
            room -= bytes;
            if room == 0 {
                shares.push(std::mem::take(&mut current));
                room = share;
            }
        }
    }
    if !current.is_empty() {
        shares.push(current);
    }
    shares
}

/// Writes runs of pages, whose content lies one after another in `bytes`, into a process's memory.
pub(super) fn write(into: &RamMapping, runs: &[Run], bytes: &[u8]) -> io::Result<()> {
    let mut written = 0;
    in_batches(into, runs, |pieces, length| {
        let from = bytes.get(written..written + length).ok_or(io::ErrorKind::InvalidInput)?;
        written += length;
        whole(sys::write_memory(into.pid(), pieces, from)?, length)
    })
}

fn whole(done: usize, wanted: usize) -> io::Result<()> {
    match done == wanted {
        true => Ok(()),
        false => {
            Err(io::Error::other(format!("only {done} of {wanted} bytes of a machine's memory were copied")))
        }
    }
}

/// Calls `copy` with as many pieces as one system call takes, and their length together.
fn in_batches(
    mapping: &RamMapping,
    runs: &[Run],
    mut copy: impl FnMut(&[Piece], usize) -> io::Result<()>,
) -> io::Result<()> {
    let mut batch = Vec::with_capacity(MAX_PIECES);
    let mut length = 0;
    for piece in runs.iter().flat_map(|run| mapping.pieces(*run)) {
        batch.push(piece);
        length += usize::try_from(piece.bytes).map_err(io::Error::other)?;
        if batch.len() == MAX_PIECES {
            copy(&batch, length)?;
            batch.clear();
            length = 0;
        }
    }
    if batch.is_empty() { Ok(()) } else { copy(&batch, length) }
}

/// Splits runs, with their content one after another in `bytes`, into those whose pages are not all zero.
pub(super) fn without_zero_pages<'a>(runs: &[Run], bytes: &'a [u8]) -> Vec<(u64, &'a [u8])> {
    let page = usize::try_from(PAGE).unwrap_or(usize::MAX);
    let mut kept: Vec<(u64, &[u8])> = Vec::new();
    let mut rest = bytes;
    for run in runs {
        let length = usize::try_from(run.bytes).unwrap_or(usize::MAX).min(rest.len());
        let (content, after) = rest.split_at(length);
        rest = after;
        let (mut offset, mut begin) = (run.offset, 0);
        for (index, page_bytes) in content.chunks(page).enumerate() {
            if page_bytes.iter().all(|byte| *byte == 0) {
                let here = index * page;
                if let Some(part) = content.get(begin..here).filter(|part| !part.is_empty()) {
                    kept.push((offset, part));
                }
                begin = here + page_bytes.len();
                offset = run.offset + u64::try_from(begin).unwrap_or(0);
            }
        }
        if let Some(part) = content.get(begin..).filter(|part| !part.is_empty()) {
            kept.push((offset, part));
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_whole_pages_in_order_and_lose_nothing() {
        let runs =
            [(0, 5), (100, 1), (200, 3)].map(|(at, pages)| Run { offset: at * PAGE, bytes: pages * PAGE });

        let shown = |most| -> Vec<Vec<(u64, u64)>> {
            let pages = |run: &Run| (run.offset / PAGE, run.bytes / PAGE);
            shares(&runs, most).iter().map(|share| share.iter().map(pages).collect()).collect()
        };

        assert_eq!(shown(2), [vec![(0, 5)], vec![(100, 1), (200, 3)]]);
        assert_eq!(shown(4), [vec![(0, 3)], vec![(3, 2), (100, 1)], vec![(200, 3)]]);
        assert_eq!(shown(1).len(), 1);
        assert!(shares(&[], 4).is_empty());
    }

    #[test]
    fn what_is_worth_several_threads_is_copied_whole_and_in_order() {
        const PAGES: usize = 4 * LEAST_SHARE / 4096 + 3;
        let bytes = PAGES as u64 * PAGE;
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        let mapping = sys::PrivateMapping::new(&file, PAGES * 4096);
        for page in 0..PAGES {
            mapping.write(page * 4096, &page.to_le_bytes());
        }
        let inode = std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
        let ram = RamMapping::find(std::process::id(), inode, bytes).unwrap();
        let mut buffer = Buffer::touched(bytes).unwrap();

        buffer.fill(&ram, &ram.written().unwrap()).unwrap();

        let numbers = buffer.bytes().chunks(4096).map(|page| page[..8].try_into().unwrap());
        assert!(numbers.map(usize::from_le_bytes).eq(0..PAGES));
    }

    #[test]
    fn zero_pages_are_left_out_and_the_others_keep_their_place() {
        let mut bytes = vec![0; 5 * 4096];
        bytes[4096] = 1;
        bytes[2 * 4096 + 7] = 2;
        bytes[4 * 4096 + 4095] = 3;
        let runs = [Run { offset: 0, bytes: 4 * PAGE }, Run { offset: 100 * PAGE, bytes: PAGE }];

        let kept = without_zero_pages(&runs, &bytes);

        let shape: Vec<_> = kept.iter().map(|(offset, part)| (*offset, part.len(), part[0])).collect();
        assert_eq!(shape, [(PAGE, 2 * 4096, 1), (100 * PAGE, 4096, 0)]);
    }

    #[test]
    fn pages_written_in_a_private_mapping_are_found_and_copied_both_ways() {
        // A mapping of this very process serves as a machine's.
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 * PAGE).unwrap();
        let mapping = sys::PrivateMapping::new(&file, 64 * 4096);
        mapping.write(5 * 4096, &[7; 4096]);
        mapping.write(9 * 4096 + 100, &[9; 8192]);
        let inode = std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap());
        let ram = RamMapping::find(std::process::id(), inode, 64 * PAGE).unwrap();

        let runs = ram.written().unwrap();
        let mut buffer = Buffer::touched(PAGE).unwrap();
        buffer.fill(&ram, &runs).unwrap();

        let expected = [Run { offset: 5 * PAGE, bytes: PAGE }, Run { offset: 9 * PAGE, bytes: 3 * PAGE }];
        assert_eq!(runs, expected);
        assert_eq!(buffer.bytes().len(), 4 * 4096);
        assert!(buffer.bytes()[..4096].iter().all(|byte| *byte == 7));
        assert_eq!((buffer.bytes()[4096 + 99], buffer.bytes()[4096 + 100]), (0, 9));

        write(&ram, &[Run { offset: 20 * PAGE, bytes: PAGE }], &[3; 4096]).unwrap();
        assert_eq!(mapping.read(20 * 4096 + 11), 3);
        assert_eq!(ram.written().unwrap().len(), 3);
    }
}
