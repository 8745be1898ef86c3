//! Reads tar: plain, ustar, GNU long names and PAX, in bounded memory. The `tar` crate parses each header; what it would
//! collect without a limit (long names, PAX records) is collected here.

use std::io::{self, Read};

use agentiso_guest::limits::MAX_PATH_BYTES;
use tar::{EntryType, Header};

use crate::failure::Failure;

const BLOCK: usize = 512;
/// Most bytes of PAX records for one entry.
const MAX_PAX_BYTES: u64 = 1024 * 1024;
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
const SPARSE_PREFIX: &[u8] = b"GNU.sparse.";

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    CharacterDevice,
    BlockDevice,
    Fifo,
}

/// One entry, without its data.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    /// None if it is no number that a user can have.
    pub(super) uid: Option<u32>,
    /// None if it is no number that a group can have.
    pub(super) gid: Option<u32>,
    pub(super) modified: i64,
    pub(super) device: (u32, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// Its name for errors.
    pub(super) fn name(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}

/// What extension headers say of the entry behind them.
#[derive(Debug, Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    modified: Option<i64>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A tar stream, entry by entry.
pub(super) struct TarStream<R> {
    source: R,
    /// Bytes of data and padding behind the last header that were not read.
    data_left: u64,
    padding_left: u64,
}

impl<R: Read> TarStream<R> {
    pub(super) fn new(source: R) -> Self {
        Self { source, data_left: 0, padding_left: 0 }
    }

    /// The next entry; data of the one before that was not read is passed over. `None` at the end of the archive.
    ///
    /// # Errors
    /// The stream ends too early, is no tar, or holds an entry of an unsupported kind.
    pub(super) fn next_entry(&mut self) -> Result<Option<Entry>, Failure> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_rest()?;
            let Some(header) = self.read_header()? else { return Ok(None) };
            let size = header.entry_size().map_err(|error| broken(&error))?;
            self.announce(size)?;
            match header.entry_type() {
                EntryType::GNULongName => extensions.path = Some(self.read_name()?),
                EntryType::GNULongLink => extensions.link = Some(self.read_name()?),
                EntryType::XHeader => {
                    let records = self.read_all(MAX_PAX_BYTES, "PAX records")?;
                    read_pax(&records, &mut extensions)?;
                }
                EntryType::XGlobalHeader => {}
                EntryType::GNUSparse => {
                    return Err(Failure::invalid(format!(
                        "the archive holds a sparse file ({}), which is not supported: pack it without --sparse",
                        String::from_utf8_lossy(&header.path_bytes())
                    )));
                }
                other => {
                    if let Some(size) = extensions.size {
                        self.announce(size)?;
                    }
                    if let Some(kind) = kind_of(other, &header) {
                        return Ok(Some(self.entry(&header, kind, extensions)?));
                    }
                    // Volume labels and the like describe no file.
                    extensions = Extensions::default();
                }
            }
        }
    }

    fn entry(&self, header: &Header, kind: Kind, extensions: Extensions) -> Result<Entry, Failure> {
        let id = |of_extensions: Option<u32>, of_header: io::Result<u64>| {
            let id = match of_extensions {
                Some(id) => Some(id),
                None => u32::try_from(of_header.map_err(|error| broken(&error))?).ok(),
            };
            // The system calls take the highest number for "as it is".
            Ok(id.filter(|id| *id != u32::MAX))
        };
        let device = match kind {
            Kind::CharacterDevice | Kind::BlockDevice => (
                header.device_major().map_err(|error| broken(&error))?.unwrap_or(0),
                header.device_minor().map_err(|error| broken(&error))?.unwrap_or(0),
            ),
            _ => (0, 0),
        };
        Ok(Entry {
            path: extensions.path.unwrap_or_else(|| header.path_bytes().into_owned()),
            link: extensions.link.unwrap_or_else(|| {
                header.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default()
            }),
            kind,
            mode: header.mode().map_err(|error| broken(&error))? & 0o7777,
            uid: id(extensions.uid, header.uid())?,
            gid: id(extensions.gid, header.gid())?,
            modified: extensions.modified.unwrap_or_else(|| {
                header.mtime().ok().and_then(|time| i64::try_from(time).ok()).unwrap_or(0)
            }),
            device,
            xattrs: extensions.xattrs,
        })
    }

    fn announce(&mut self, size: u64) -> Result<(), Failure> {
        let whole = size.checked_next_multiple_of(BLOCK as u64).ok_or_else(|| {
            Failure::invalid(format!("the archive holds an entry of {size} bytes, more than there can be"))
        })?;
        self.data_left = size;
        self.padding_left = whole - size;
        Ok(())
    }

    fn read_header(&mut self) -> Result<Option<Header>, Failure> {
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        let mut have = 0;
        while have < BLOCK {
            match self.source.read(&mut block[have..]) {
                // An archive without its closing zero blocks, as some programs write it.
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(broken(&io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => have += count,
                Err(error) => return Err(broken(&error)),
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        // The checksum counts its own field as spaces.
        let sum: u32 =
            block[..148].iter().chain(&block[156..]).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
        if header.cksum().ok() != Some(sum) {
            return Err(Failure::invalid(
                "the stream is no tar archive, or a damaged one: a header's checksum is wrong",
            ));
        }
        Ok(Some(header))
    }

    fn read_name(&mut self) -> Result<Vec<u8>, Failure> {
        let mut name = self.read_all(MAX_PATH_BYTES as u64 + 1, "a name")?;
        if let Some(end) = name.iter().position(|byte| *byte == 0) {
            name.truncate(end);
        }
        Ok(name)
    }

    fn read_all(&mut self, most: u64, what: &str) -> Result<Vec<u8>, Failure> {
        if self.data_left > most {
            return Err(Failure::invalid(format!(
                "the archive holds {what} of {} bytes, more than {most}",
                self.data_left
            )));
        }
        let mut all = Vec::new();
        self.data().read_to_end(&mut all).map_err(|error| broken(&error))?;
        Ok(all)
    }

    /// The data of the entry that was given out last.
    pub(super) fn data(&mut self) -> Data<'_, R> {
        Data(self)
    }

    fn skip_rest(&mut self) -> Result<(), Failure> {
        io::copy(&mut self.data(), &mut io::sink()).map_err(|error| broken(&error))?;
        let padding = std::mem::take(&mut self.padding_left);
        let skipped = io::copy(&mut (&mut self.source).take(padding), &mut io::sink());
        skipped.map(drop).map_err(|error| broken(&error))
    }
}

/// Reads the data of one entry; its end before all is there is an error.
pub(super) struct Data<'a, R>(&'a mut TarStream<R>);

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.0.data_left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.0.source.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.0.data_left -= count as u64;
        Ok(count)
    }
}

/// The archive cannot be read on.
pub(super) fn broken(error: &io::Error) -> Failure {
    Failure::invalid(format!("reading the archive: {error}"))
}

fn kind_of(entry_type: EntryType, header: &Header) -> Option<Kind> {
    Some(match entry_type {
        // Before ustar, a folder was a file whose name ends in a slash.
        EntryType::Regular if header.path_bytes().ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::HardLink,
        EntryType::Char => Kind::CharacterDevice,
        EntryType::Block => Kind::BlockDevice,
        EntryType::Fifo => Kind::Fifo,
        _ => return None,
    })
}

/// Reads PAX records: `LENGTH KEY=VALUE\n`, where the length counts the whole record and the value may hold anything.
fn read_pax(mut records: &[u8], extensions: &mut Extensions) -> Result<(), Failure> {
    let malformed = || Failure::invalid("the archive holds malformed PAX records");
    while !records.is_empty() {
        let space = records.iter().position(|byte| *byte == b' ').ok_or_else(malformed)?;
        let length: usize = number(&records[..space]).ok_or_else(malformed)?;
        let record = records.get(space + 1..length).ok_or_else(malformed)?;
        let record = record.strip_suffix(b"\n").ok_or_else(malformed)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(malformed)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        records = &records[length..];
        match key {
            b"path" => extensions.path = Some(value.to_vec()),
            b"linkpath" => extensions.link = Some(value.to_vec()),
            b"size" => extensions.size = Some(number(value).ok_or_else(malformed)?),
            b"uid" => extensions.uid = Some(number(value).ok_or_else(malformed)?),
            b"gid" => extensions.gid = Some(number(value).ok_or_else(malformed)?),
            b"mtime" => {
                let seconds = value.split(|byte| *byte == b'.').next().unwrap_or_default();
                extensions.modified = Some(number(seconds).ok_or_else(malformed)?);
            }
            _ if key.starts_with(SPARSE_PREFIX) => {
                return Err(Failure::invalid(
                    "the archive holds a sparse file, which is not supported: pack it without --sparse",
                ));
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                    extensions.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
    }
    Ok(())
}

fn number<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}
