use std::collections::VecDeque;

use agentiso_guest::{
    limits::{HASH_PROGRESS_BYTES, MAX_ENTRIES_PER_REPLY, MAX_HASHED_FILES, MAX_PATH_BYTES},
    message::{Reply, Request},
    tree::{FileTime, RawPath, TreeEntry, TreeKind},
};

use super::{
    CHUNK_DEADLINE, GuestClient, GuestError, ProtocolError, SHORT_REPLY, clean_text,
    error::Call,
    session::{Session, kind},
};

/// Most entries of one walk: several times what the largest disk has inodes for.
pub const MAX_TREE_ENTRIES: u64 = 20_000_000;

/// Longest file that is hashed, in bytes: as long as the largest disk. What says it is longer is mostly holes.
pub const MAX_HASHED_BYTES: u64 = 100 << 30;

/// Longest part of a walk, in bytes: the paths of one, each byte escaped, and 512 times the rest of an entry.
const TREE_REPLY: u32 = 1024 * 1024;

/// SHA-256 of a file's content.
pub type FileHash = [u8; 32];

/// The entries of a tree, as they come from the guest. Dropping it closes the connection.
///
/// Holds one part of at most 512 entries; what is not taken stays in the guest. The paths are relative, each a proper
/// one below the first, and strictly in order: a guest that says anything else gets an error. Whether they are there is
/// only as true as the guest is honest.
pub struct TreeStream {
    session: Session,
    part: VecDeque<TreeEntry>,
    last: Option<RawPath>,
    count: u64,
    is_over: bool,
}

impl std::fmt::Debug for TreeStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TreeStream")
            .field("last", &self.last)
            .field("count", &self.count)
            .field("is_over", &self.is_over)
            .finish_non_exhaustive()
    }
}

impl TreeStream {
    /// The next entry; `None` at the end. Cancelled: nothing is lost.
    ///
    /// # Errors
    /// See [`GuestError`]; the next part must come within 30 s, and there may be 20,000,000 entries. After an error the
    /// stream is at its end.
    pub async fn next(&mut self) -> Result<Option<TreeEntry>, GuestError> {
        if self.part.is_empty() && !self.is_over {
            let part = self.next_part().await;
            self.is_over = !matches!(part, Ok(Some(_)));
            self.part = part?.unwrap_or_default().into();
        }
        Ok(self.part.pop_front())
    }

    async fn next_part(&mut self) -> Result<Option<Vec<TreeEntry>>, GuestError> {
        let call = self.session.replies.call();
        let entries = match self.session.replies.next_within(CHUNK_DEADLINE).await?.message {
            Reply::Tree { entries } => entries,
            Reply::Done if self.last.is_some() => return Ok(None),
            other => return Err(call.unexpected(kind(&other))),
        };
        if entries.is_empty() {
            return Err(call.unexpected("an empty part of a tree"));
        }
        if entries.len() > MAX_ENTRIES_PER_REPLY {
            return Err(call.too_much(MAX_ENTRIES_PER_REPLY as u64, "entries in one reply"));
        }
        self.count += entries.len() as u64;
        if self.count > MAX_TREE_ENTRIES {
            return Err(call.too_much(MAX_TREE_ENTRIES, "entries"));
        }
        for entry in &entries {
            check(call, entry)?;
            let in_order = match &self.last {
                None => entry.path.as_bytes().is_empty(),
                Some(last) => *last < entry.path,
            };
            if !in_order {
                return Err(call.protocol(ProtocolError::OutOfOrder { path: shown(&entry.path) }));
            }
            self.last = Some(entry.path.clone());
        }
        Ok(Some(entries))
    }
}

/// Refuses an entry that no walk can have found.
fn check(call: Call, entry: &TreeEntry) -> Result<(), GuestError> {
    if !entry.path.is_relative() || entry.path.as_bytes().len() > MAX_PATH_BYTES {
        return Err(call.protocol(ProtocolError::FileName { name: shown(&entry.path) }));
    }
    let is_time = |FileTime(_, nanoseconds): FileTime| nanoseconds < 1_000_000_000;
    let target_is_due = (entry.kind == TreeKind::Symlink) == entry.target.is_some();
    let target_is_short = entry.target.as_ref().is_none_or(|to| to.as_bytes().len() <= MAX_PATH_BYTES);
    let is_device = matches!(entry.kind, TreeKind::Block | TreeKind::Character);
    if entry.mode > 0o7777
        || !is_time(entry.modified)
        || !is_time(entry.changed)
        || !target_is_due
        || !target_is_short
        || is_device != entry.device.is_some()
    {
        return Err(call.unexpected("an impossible entry of a tree"));
    }
    Ok(())
}

fn shown(path: &RawPath) -> String {
    clean_text(&path.to_string())
}

impl GuestClient {
    /// Streams a description of a file, or of a folder and all that is below it on the root file system, in order.
    /// Nothing in the guest is changed, access times included.
    ///
    /// # Errors
    /// See [`GuestError`]. What is wrong with the path is told by the stream.
    pub async fn walk(&self, path: RawPath) -> Result<TreeStream, GuestError> {
        let request = Request::Walk { path, root_file_system: true };
        let session = self.open("walk a tree", &request, TREE_REPLY).await?;
        Ok(TreeStream { session, part: VecDeque::new(), last: None, count: 0, is_over: false })
    }

    /// Has the guest read files whole. `root` is where a walk began, the files are named as it named them; at most 256.
    /// Returns one hash for each, in the same order; `None` for what is no regular file any more.
    ///
    /// # Errors
    /// See [`GuestError`]; the guest must have read at least 4 MiB more, or a file to its end, every 30 s.
    pub async fn hash_files(
        &self,
        root: RawPath,
        files: Vec<RawPath>,
    ) -> Result<Vec<Option<FileHash>>, GuestError> {
        let due = files.len();
        debug_assert!(due <= MAX_HASHED_FILES);
        let request = Request::Hash { root, files };
        let mut session = self.open("hash files", &request, SHORT_REPLY).await?;
        let call = session.replies.call();
        let mut hashes = Vec::with_capacity(due);
        let mut read = 0_u64;
        loop {
            match session.replies.next_within(CHUNK_DEADLINE).await?.message {
                Reply::Hashing { bytes } if bytes < HASH_PROGRESS_BYTES => {
                    return Err(call.unexpected("a smaller step than agreed"));
                }
                Reply::Hashing { bytes } => {
                    read = read.saturating_add(bytes);
                    if read > MAX_HASHED_BYTES {
                        return Err(call.too_much(MAX_HASHED_BYTES, "bytes of one file"));
                    }
                }
                Reply::Hashed { .. } if hashes.len() == due => {
                    return Err(call.too_much(due as u64, "hashes"));
                }
                Reply::Hashed { sha256 } => {
                    let hash = sha256
                        .map(|text| parse_hash(&text).ok_or_else(|| call.unexpected("a hash that is none")));
                    hashes.push(hash.transpose()?);
                    read = 0;
                }
                Reply::Done if hashes.len() == due => return Ok(hashes),
                other => return Err(call.unexpected(kind(&other))),
            }
        }
    }
}

fn parse_hash(text: &str) -> Option<FileHash> {
    let mut hash = FileHash::default();
    if text.len() != 2 * hash.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}
