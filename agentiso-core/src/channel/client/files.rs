use agentiso_guest::{
    limits::MAX_ENTRIES_PER_REPLY,
    message::{Compression, Entry, Reply, Request},
};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    CHUNK_DEADLINE, DataSink, DataStream, GuestClient, GuestError, ProtocolError, SHORT_REPLY, clean_text,
    error::Call, session::kind,
};

/// Most entries of a folder that are listed.
pub const MAX_LISTED_ENTRIES: usize = 100_000;

/// Most bytes of names and link targets in one listing.
const MAX_LISTED_BYTES: usize = 32 * 1024 * 1024;

/// Longest part of a list, in bytes.
const ENTRIES_REPLY: u32 = 4 * 1024 * 1024;

/// Which bytes of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileRange {
    /// The first.
    pub offset: u64,
    /// How many at most; all if `None`.
    pub limit: Option<u64>,
}

/// How to write a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Permission bits, at most 0o7777; without it a new file gets 0o644 and an old one keeps its own.
    pub mode: Option<u32>,
    /// Make missing parent folders, mode 0o755.
    pub parents: bool,
}

impl GuestClient {
    /// Streams a regular file of the guest.
    ///
    /// # Errors
    /// See [`GuestError`]. What is wrong with the path is told by the stream.
    pub async fn open_file(
        &self,
        path: impl Into<String>,
        range: FileRange,
    ) -> Result<DataStream, GuestError> {
        let request = Request::FileRead { path: path.into(), offset: range.offset, limit: range.limit };
        Ok(DataStream::new(self.open("read a file", &request, SHORT_REPLY).await?, range.limit))
    }

    /// Reads a file of the guest into memory, at most `limit` bytes from `offset` on.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub async fn read_file(
        &self,
        path: impl Into<String>,
        offset: u64,
        limit: u64,
    ) -> Result<Vec<u8>, GuestError> {
        let mut stream = self.open_file(path, FileRange { offset, limit: Some(limit) }).await?;
        let mut content = Vec::new();
        while let Some(chunk) = stream.chunk().await? {
            content.extend_from_slice(&chunk);
        }
        Ok(content)
    }

    /// Copies a file of the guest to `out`. Returns how many bytes there were.
    ///
    /// # Errors
    /// See [`GuestError`]; part of the bytes may have been written then.
    pub async fn read_file_to<W: AsyncWrite + Unpin>(
        &self,
        path: impl Into<String>,
        range: FileRange,
        out: &mut W,
    ) -> Result<u64, GuestError> {
        self.open_file(path, range).await?.copy_to(out).await
    }

    /// Begins to write a file of the guest, which appears all at once when the sink is finished.
    ///
    /// # Errors
    /// See [`GuestError`]. What is wrong with the path is told by the sink.
    pub async fn create_file(
        &self,
        path: impl Into<String>,
        options: WriteOptions,
    ) -> Result<DataSink, GuestError> {
        let request = Request::FileWrite { path: path.into(), mode: options.mode, parents: options.parents };
        Ok(DataSink::new(self.open("write a file", &request, SHORT_REPLY).await?))
    }

    /// Writes a file of the guest from `input`. Returns how many bytes there were.
    ///
    /// # Errors
    /// See [`GuestError`]. The file is as it was then.
    pub async fn write_file<R: AsyncRead + Unpin>(
        &self,
        path: impl Into<String>,
        options: WriteOptions,
        input: &mut R,
    ) -> Result<u64, GuestError> {
        let mut sink = self.create_file(path, options).await?;
        let total = sink.copy_from(input).await?;
        sink.finish().await?;
        Ok(total)
    }

    /// Replaces the first exact occurrence of `old` in a file of the guest. Sent at most once.
    ///
    /// # Errors
    /// See [`GuestError`]; `old` must occur and not be empty.
    pub async fn edit_file(
        &self,
        path: impl Into<String>,
        old: impl Into<String>,
        new: impl Into<String>,
    ) -> Result<(), GuestError> {
        let request = Request::FileEdit { path: path.into(), old: old.into(), new: new.into() };
        self.done("edit a file", request, CHUNK_DEADLINE).await
    }

    /// Lists a folder of the guest, in no particular order. Every name is a single path component, but may hold
    /// characters that a terminal obeys.
    ///
    /// # Errors
    /// See [`GuestError`]; more than 100,000 entries, or names of more than 32 MiB, are refused.
    pub async fn list_files(&self, path: impl Into<String>) -> Result<Vec<Entry>, GuestError> {
        let request = Request::FileList { path: path.into() };
        let mut session = self.open("list a folder", &request, ENTRIES_REPLY).await?;
        let call = session.replies.call();
        let mut listed = Vec::new();
        let mut listed_bytes = 0;
        loop {
            match session.replies.next_within(CHUNK_DEADLINE).await?.message {
                Reply::Entries { entries } => {
                    if entries.is_empty() {
                        return Err(call.unexpected("an empty part of a list"));
                    }
                    if entries.len() > MAX_ENTRIES_PER_REPLY {
                        return Err(call.too_much(MAX_ENTRIES_PER_REPLY as u64, "entries in one reply"));
                    }
                    for entry in &entries {
                        if !is_component(&entry.name) {
                            return Err(bad_name(call, &entry.name));
                        }
                        listed_bytes += entry.name.len() + entry.target.as_ref().map_or(0, String::len);
                    }
                    if listed.len() + entries.len() > MAX_LISTED_ENTRIES {
                        return Err(call.too_much(MAX_LISTED_ENTRIES as u64, "entries"));
                    }
                    if listed_bytes > MAX_LISTED_BYTES {
                        return Err(call.too_much(MAX_LISTED_BYTES as u64, "bytes of names"));
                    }
                    listed.extend(entries);
                }
                Reply::Done => return Ok(listed),
                other => return Err(call.unexpected(kind(&other))),
            }
        }
    }

    /// Describes one path of the guest, without following a symbolic link at its end.
    ///
    /// # Errors
    /// See [`GuestError`]. Nothing in the guest is changed.
    pub async fn stat_file(&self, path: impl Into<String>) -> Result<Entry, GuestError> {
        let request = Request::FileStat { path: path.into() };
        let (call, reply) = self
            .ask("describe a file", &request, CHUNK_DEADLINE, |reply| matches!(reply, Reply::Entry { .. }))
            .await?;
        match reply {
            // The root has no last component.
            Reply::Entry { entry } if is_component(&entry.name) || matches!(&*entry.name, "" | "/") => {
                Ok(entry)
            }
            Reply::Entry { entry } => Err(bad_name(call, &entry.name)),
            other => Err(call.unexpected(kind(&other))),
        }
    }

    /// Streams a file or folder of the guest as tar. Entries are named from the path's last component on; but whoever
    /// unpacks the stream must trust none of its names.
    ///
    /// # Errors
    /// See [`GuestError`]. What is wrong with the path is told by the stream.
    pub async fn read_archive(
        &self,
        path: impl Into<String>,
        follow: bool,
    ) -> Result<DataStream, GuestError> {
        let request = Request::ArchiveRead { path: path.into(), follow };
        Ok(DataStream::new(self.open("copy from the guest", &request, SHORT_REPLY).await?, None))
    }

    /// Begins to unpack a tar stream below a folder of the guest, which is made if missing. With `preserve` owners,
    /// device nodes and extended attributes are kept.
    ///
    /// # Errors
    /// See [`GuestError`]. What is wrong with the path or the stream is told by the sink.
    pub async fn write_archive(
        &self,
        path: impl Into<String>,
        compression: Compression,
        preserve: bool,
    ) -> Result<DataSink, GuestError> {
        let request = Request::ArchiveWrite { path: path.into(), compression, preserve };
        Ok(DataSink::new(self.open("copy to the guest", &request, SHORT_REPLY).await?))
    }
}

/// Whether a name is one path component, so that joined to a folder it stays in it.
fn is_component(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

fn bad_name(call: Call, name: &str) -> GuestError {
    call.protocol(ProtocolError::FileName { name: clean_text(name) })
}
