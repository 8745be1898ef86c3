//! Writes what the kernel unpacks as its first root: a cpio archive in the "newc" format.

use std::io::{self, Write};

/// Kinds of entry, as in a file's mode.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Writes entries in the order given, all of them root's, all of the year 1970: the same entries make the same bytes.
pub(super) struct CpioWriter<W> {
    out: W,
    inode: u32,
}

impl<W: Write> CpioWriter<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, inode: 0 }
    }

    pub(super) fn directory(&mut self, name: &str, permissions: u32) -> io::Result<()> {
        self.entry(name, DIRECTORY | permissions, 2, (0, 0), &[])
    }

    pub(super) fn file(&mut self, name: &str, permissions: u32, content: &[u8]) -> io::Result<()> {
        self.entry(name, REGULAR | permissions, 1, (0, 0), content)
    }

    pub(super) fn character_device(
        &mut self,
        name: &str,
        permissions: u32,
        major_minor: (u32, u32),
    ) -> io::Result<()> {
        self.entry(name, CHARACTER_DEVICE | permissions, 1, major_minor, &[])
    }

    /// Writes the end mark and gives the output back.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, 1, (0, 0), &[])?;
        Ok(self.out)
    }

    /// A header of 14 fields of 8 hexadecimal digits, the name with its NUL, the content; both padded to 4 bytes.
    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        links: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        let size = |bytes: usize| {
            u32::try_from(bytes)
                .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "too large for cpio"))
        };
        let (name_size, content_size) = (size(name.len() + 1)?, size(content.len())?);
        let (uid, gid, time, checksum) = (0, 0, 0, 0);
        let (on_major, on_minor) = (0, 0);
        let fields = [
            self.inode,
            mode,
            uid,
            gid,
            links,
            time,
            content_size,
            on_major,
            on_minor,
            device.0,
            device.1,
            name_size,
            checksum,
        ];
        self.inode += 1;
        self.out.write_all(b"070701")?;
        for field in fields {
            write!(self.out, "{field:08x}")?;
        }
        const HEADER_BYTES: usize = 6 + 13 * 8;
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&[0; 4][..1 + padding(HEADER_BYTES + name.len() + 1)])?;
        self.out.write_all(content)?;
        self.out.write_all(&[0; 4][..padding(content.len())])
    }
}

fn padding(length: usize) -> usize {
    length.wrapping_neg() % 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writer_makes_what_cpio_reads() {
        let mut writer = CpioWriter::new(Vec::new());
        writer.directory("modules", 0o755).unwrap();
        for (name, content) in [("init", &b"four"[..]), ("modules/order", b"12345"), ("x", b"")] {
            writer.file(name, 0o755, content).unwrap();
        }
        let archive = writer.finish().unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("archive"), &archive).unwrap();
        let output = std::process::Command::new("cpio")
            .args(["-i", "-t", "-v", "-n", "--quiet", "-F", "archive"])
            .current_dir(folder.path())
            .env("TZ", "UTC")
            .output();
        let Ok(output) = output else { return eprintln!("skipped: cpio is not installed") };
        let listing = String::from_utf8(output.stdout).unwrap();
        let entries: Vec<Vec<&str>> = listing.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(output.status.success());
        let expected = [
            ("drwxr-xr-x", "0", "modules"),
            ("-rwxr-xr-x", "4", "init"),
            ("-rwxr-xr-x", "5", "modules/order"),
            ("-rwxr-xr-x", "0", "x"),
        ];
        let seen: Vec<(&str, &str, &str)> =
            entries.iter().map(|e| (e[0], e[4], *e.last().unwrap())).collect();
        assert_eq!(seen, expected);
        assert!(entries.iter().all(|entry| entry[2] == "0" && entry[3] == "0" && entry[7] == "1970"));
    }

    #[test]
    fn every_part_is_padded_to_four_bytes() {
        for length in 0..9 {
            let mut writer = CpioWriter::new(Vec::new());
            writer.file(&"n".repeat(length + 1), 0o644, &vec![7; length]).unwrap();
            assert_eq!(writer.finish().unwrap().len() % 4, 0);
        }
    }
}
