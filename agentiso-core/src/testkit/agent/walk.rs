//! Walks of a fake guest's files. It keeps no times: every file counts as just written, so that contents decide.

use std::collections::BTreeMap;

use agentiso_guest::{
    limits::{MAX_ENTRIES_PER_REPLY, MAX_HASHED_FILES},
    message::{ErrorCode, Reply},
    tree::{FileTime, RawPath, TreeEntry, TreeKind},
};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    Answer, Refusal,
    wire::{Disconnected, Wire},
};
use crate::testkit::{FakeFile, FakeGuest, guest::Files};

pub(super) async fn walk<S: AsyncRead + AsyncWrite + Unpin + Send>(
    wire: &mut Wire<S>,
    guest: &FakeGuest,
    path: &RawPath,
) -> Result<Answer, Disconnected> {
    let entries = match text(path) {
        Ok(path) => entries(&guest.state().files, path),
        Err(refusal) => return Ok(Err(refusal)),
    };
    if entries.is_empty() {
        return Ok(Err(Refusal::new(ErrorCode::NotFound, format!("opening {path}: there is nothing"))));
    }
    for part in entries.chunks(MAX_ENTRIES_PER_REPLY) {
        wire.send(Reply::Tree { entries: part.to_vec() }, &[]).await?;
    }
    Ok(Ok(Reply::Done))
}

pub(super) async fn hash<S: AsyncRead + AsyncWrite + Unpin + Send>(
    wire: &mut Wire<S>,
    guest: &FakeGuest,
    root: &RawPath,
    files: &[RawPath],
) -> Result<Answer, Disconnected> {
    let root = match text(root) {
        Ok(root) => root.trim_end_matches('/'),
        Err(refusal) => return Ok(Err(refusal)),
    };
    if files.len() > MAX_HASHED_FILES || !files.iter().all(RawPath::is_relative) {
        return Ok(Err(Refusal::new(ErrorCode::Invalid, "hash: too many files, or not below the root")));
    }
    for file in files {
        let path = match String::from_utf8_lossy(file.as_bytes()) {
            name if name.is_empty() => root.to_owned(),
            name => format!("{root}/{name}"),
        };
        let sha256 = guest.file(&path).map(|file| {
            Sha256::digest(&file.content).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        });
        wire.send(Reply::Hashed { sha256 }, &[]).await?;
    }
    Ok(Ok(Reply::Done))
}

/// Paths of fake guests are text.
fn text(path: &RawPath) -> Result<&str, Refusal> {
    std::str::from_utf8(path.as_bytes())
        .ok()
        .filter(|path| path.starts_with('/'))
        .ok_or_else(|| Refusal::new(ErrorCode::Invalid, "a path must be absolute"))
}

/// What is at a path and below it, in order.
fn entries(files: &Files, root: &str) -> Vec<TreeEntry> {
    let root = root.trim_end_matches('/');
    let mut found: BTreeMap<RawPath, Option<&FakeFile>> = BTreeMap::new();
    if root.is_empty() {
        found.insert(RawPath::default(), None);
    }
    for (path, file) in files {
        let Some(rest) = path.strip_prefix(root) else { continue };
        if rest.is_empty() {
            found.insert(RawPath::default(), Some(file));
        } else if let Some(rest) = rest.strip_prefix('/') {
            found.insert(RawPath::new(rest), Some(file));
            found.insert(RawPath::default(), None);
            for (at, _) in rest.match_indices('/') {
                found.insert(RawPath::new(&rest.as_bytes()[..at]), None);
            }
        }
    }
    found.into_iter().map(|(path, file)| entry(path, file)).collect()
}

fn entry(path: RawPath, file: Option<&FakeFile>) -> TreeEntry {
    TreeEntry {
        path,
        kind: if file.is_some() { TreeKind::File } else { TreeKind::Directory },
        size: file.map_or(0, |file| file.content.len() as u64),
        mode: file.map_or(0o755, |file| file.mode),
        uid: 0,
        gid: 0,
        modified: FileTime::default(),
        changed: FileTime::default(),
        fresh: true,
        target: None,
        device: None,
    }
}
