//! Bases: files that machines' memories are private mappings of, written once.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
};

use rustix::fs::{SeekFrom, ioctl_ficlone, seek};

use super::{Run, copy};

/// Bytes that a file takes up on the host's disk: what is not in it was never written, and reads as zero.
pub(in super::super) fn used_bytes(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.blocks() * 512)
}

/// Makes a new base of an old one and of what a machine has written since. `old` is `None` where the machine began with
/// nothing in its memory.
pub(super) fn write(
    file: &File,
    old: Option<&File>,
    ram_bytes: u64,
    runs: &[Run],
    bytes: &[u8],
) -> io::Result<()> {
    match old {
        None => {
            file.set_len(ram_bytes)?;
            for (offset, content) in copy::without_zero_pages(runs, bytes) {
                file.write_all_at(content, offset)?;
            }
        }
        Some(old) => {
            copy_file(old, file, ram_bytes)?;
            let mut rest = bytes;
            for run in runs {
                let length = usize::try_from(run.bytes).map_err(io::Error::other)?;
                let (content, after) = rest.split_at_checked(length).ok_or(io::ErrorKind::InvalidInput)?;
                file.write_all_at(content, run.offset)?;
                rest = after;
            }
        }
    }
    Ok(())
}

/// Copies a file with holes: shared where the file system can, else only what is in it.
fn copy_file(from: &File, to: &File, bytes: u64) -> io::Result<()> {
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    to.set_len(bytes)?;
    let mut position = 0;
    loop {
        let start = match seek(from, SeekFrom::Data(position)) {
            Ok(start) => start,
            // Nothing more in it.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = seek(from, SeekFrom::Hole(start))?;
        let (mut read, mut written) = (start, start);
        while read < end {
            let length = usize::try_from(end - read).unwrap_or(usize::MAX);
            let copied = rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut written), length)?;
            if copied == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        position = end;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::super::PAGE;
    use super::*;

    fn content(mut file: File) -> Vec<u8> {
        let mut bytes = Vec::new();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn first_base_holds_what_was_written_and_no_zero_page() {
        let file = tempfile::tempfile().unwrap();
        let runs = [Run { offset: 4 * PAGE, bytes: 3 * PAGE }];
        let mut bytes = vec![0; 3 * 4096];
        bytes[2 * 4096] = 8;

        write(&file, None, 1024 * PAGE, &runs, &bytes).unwrap();

        assert!(used_bytes(&file).unwrap() <= 2 * PAGE);
        let content = content(file);
        assert_eq!((content.len(), content[6 * 4096]), (1024 * 4096, 8));
    }

    #[test]
    fn later_base_is_the_old_one_with_the_difference_on_top() {
        let old = tempfile::tempfile().unwrap();
        old.set_len(64 * PAGE).unwrap();
        old.write_all_at(&[1; 8192], 10 * PAGE).unwrap();
        let file = tempfile::tempfile().unwrap();
        // A page that became zero must be zero.
        let runs = [Run { offset: 11 * PAGE, bytes: PAGE }, Run { offset: 63 * PAGE, bytes: PAGE }];
        let mut bytes = vec![0; 4096];
        bytes.extend([2; 4096]);

        write(&file, Some(&old), 64 * PAGE, &runs, &bytes).unwrap();

        let content = content(file);
        let at = |page: usize| content[page * 4096];
        assert_eq!([at(9), at(10), at(11), at(63)], [0, 1, 0, 2]);
        assert_eq!(content.len(), 64 * 4096);
    }
}
