//! A difference: what a machine's memory holds that its base does not.
//!
//! The file begins with its magic, the number of runs and each run's place and length, little-endian; their content
//! follows on the next page boundary, one after another.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
};

use super::{PAGE, Run, copy, pages::RamMapping, total};

const MAGIC: &[u8; 16] = b"agentiso-diff-1\n";

/// Bytes that are put into a machine's memory at a time.
const CHUNK: u64 = 4 * 1024 * 1024;

/// Writes a difference.
pub(super) fn write(file: &mut File, runs: &[Run], bytes: &[u8]) -> io::Result<()> {
    let mut index = Vec::with_capacity(32 + runs.len() * 16);
    index.extend_from_slice(MAGIC);
    index.extend_from_slice(&u64::try_from(runs.len()).map_err(io::Error::other)?.to_le_bytes());
    for run in runs {
        index.extend_from_slice(&run.offset.to_le_bytes());
        index.extend_from_slice(&run.bytes.to_le_bytes());
    }
    index.resize(index.len().next_multiple_of(usize::try_from(PAGE).unwrap_or(4096)), 0);
    file.write_all(&index)?;
    file.write_all(bytes)
}

/// Puts a difference into a machine's memory.
pub(in super::super) fn apply(file: &mut File, ram: &RamMapping, ram_bytes: u64) -> io::Result<()> {
    let runs = read_index(file, ram_bytes)?;
    let mut buffer = Vec::new();
    for batch in batches(&runs) {
        let length = usize::try_from(total(&batch)).map_err(io::Error::other)?;
        buffer.resize(length, 0);
        file.read_exact(&mut buffer)?;
        copy::write(ram, &batch, &buffer)?;
    }
    Ok(())
}

/// Cuts runs into batches of at most [`CHUNK`] bytes.
fn batches(runs: &[Run]) -> Vec<Vec<Run>> {
    let mut batches = vec![Vec::new()];
    let mut room = CHUNK;
    for run in runs {
        let mut rest = *run;
        while rest.bytes > 0 {
            let taken = rest.bytes.min(room);
            if let Some(batch) = batches.last_mut() {
                batch.push(Run { offset: rest.offset, bytes: taken });
            }
            rest = Run { offset: rest.offset + taken, bytes: rest.bytes - taken };
            room -= taken;
            if room == 0 {
                batches.push(Vec::new());
                room = CHUNK;
            }
        }
    }
    batches.retain(|batch| !batch.is_empty());
    batches
}

/// Reads the runs and leaves the file at their content.
fn read_index(file: &mut File, ram_bytes: u64) -> io::Result<Vec<Run>> {
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("the difference {what}"));
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(0))?;
    let mut head = [0; 24];
    file.read_exact(&mut head)?;
    let (magic, count) = head.split_at(16);
    if magic != MAGIC {
        return Err(damaged("is of another kind"));
    }
    let count = u64::from_le_bytes(count.try_into().map_err(io::Error::other)?);
    // No more runs than pages: nothing is allocated for a count that cannot be true.
    if count > ram_bytes / PAGE {
        return Err(damaged("has more runs than the machine has pages"));
    }
    let mut index = vec![0; usize::try_from(count * 16).map_err(io::Error::other)?];
    file.read_exact(&mut index)?;
    let mut runs = Vec::new();
    let mut end = 0;
    for entry in index.as_chunks::<16>().0 {
        let (offset, bytes) = entry.split_at(8);
        let run = Run {
            offset: u64::from_le_bytes(offset.try_into().map_err(io::Error::other)?),
            bytes: u64::from_le_bytes(bytes.try_into().map_err(io::Error::other)?),
        };
        let last = run.offset.checked_add(run.bytes).ok_or_else(|| damaged("has a run without end"))?;
        let aligned = run.offset.is_multiple_of(PAGE) && run.bytes.is_multiple_of(PAGE);
        if !aligned || run.bytes == 0 || run.offset < end || last > ram_bytes {
            return Err(damaged("has runs that are not in the machine's memory"));
        }
        end = last;
        runs.push(run);
    }
    let content = (24 + count * 16).next_multiple_of(PAGE);
    if length != content + total(&runs) {
        return Err(damaged("is not as long as its runs"));
    }
    file.seek(SeekFrom::Start(content))?;
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;

    const RAM: u64 = 64 * PAGE;

    fn written(runs: &[Run]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        write(&mut file, runs, &vec![5; usize::try_from(total(runs)).unwrap()]).unwrap();
        file
    }

    proptest! {
        #[test]
        fn index_is_read_as_written(gaps in proptest::collection::vec((0_u64..3, 1_u64..4), 0..10)) {
            let mut runs = Vec::new();
            let mut next = 0;
            for (gap, pages) in gaps {
                runs.push(Run { offset: (next + gap) * PAGE, bytes: pages * PAGE });
                next += gap + pages;
            }
            let mut file = written(&runs);
            prop_assert_eq!(read_index(&mut file, RAM).unwrap(), runs);
            let mut content = Vec::new();
            file.read_to_end(&mut content).unwrap();
            prop_assert!(content.iter().all(|byte| *byte == 5));
        }

        #[test]
        fn damaged_index_is_refused_or_still_in_bounds(at in 0_u64..120, value: u8) {
            let mut file = written(&[Run { offset: PAGE, bytes: PAGE }, Run { offset: 5 * PAGE, bytes: 2 * PAGE }]);
            file.write_all_at(&[value], at).unwrap();
            if let Ok(runs) = read_index(&mut file, RAM) {
                prop_assert!(runs.iter().all(|run| run.offset + run.bytes <= RAM));
            }
        }
    }

    #[test]
    fn batches_cover_all_runs_and_stay_small() {
        let runs = [Run { offset: 0, bytes: CHUNK + PAGE }, Run { offset: 3 * CHUNK, bytes: 2 * CHUNK }];

        let batches = batches(&runs);

        assert!(batches.iter().all(|batch| total(batch) <= CHUNK));
        assert_eq!(batches.iter().map(|batch| total(batch)).sum::<u64>(), total(&runs));
    }

    #[test]
    fn truncated_file_is_refused() {
        let mut file = written(&[Run { offset: PAGE, bytes: PAGE }]);
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        assert!(read_index(&mut file, RAM).is_err());
    }
}
