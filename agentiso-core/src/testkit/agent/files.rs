//! Files of a fake guest.

use std::collections::BTreeMap;

use agentiso_guest::{
    limits::{MAX_ENTRIES_PER_REPLY, MAX_PATH_BYTES},
    message::{Entry, EntryKind, ErrorCode, Input, Reply},
};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    Answer, Refusal,
    wire::{Disconnected, Wire},
};
use crate::testkit::{FakeFile, FakeGuest, guest::Files};

/// Bytes in one reply.
const CHUNK: usize = 256 * 1024;

/// What an archive is kept as, below the folder it was unpacked to.
const ARCHIVE: &str = ".archive";

fn not_found(path: &str) -> Refusal {
    Refusal::new(ErrorCode::NotFound, format!("open {path}: there is no such file"))
}

fn check(path: &str) -> Result<(), Refusal> {
    if !path.starts_with('/') || path.len() > MAX_PATH_BYTES || path.contains('\0') {
        return Err(Refusal::new(ErrorCode::Invalid, "a path must be absolute and at most 4095 bytes long"));
    }
    Ok(())
}

/// The path of a folder, with the slash that its members' paths go on with.
fn folder_prefix(path: &str) -> String {
    format!("{}/", path.trim_end_matches('/'))
}

fn is_folder(files: &Files, path: &str) -> bool {
    path == "/" || files.keys().any(|file| file.starts_with(&folder_prefix(path)))
}

async fn send_bytes<S: AsyncRead + AsyncWrite + Unpin + Send>(
    wire: &mut Wire<S>,
    bytes: &[u8],
) -> Result<Answer, Disconnected> {
    for chunk in bytes.chunks(CHUNK) {
        let payload = u32::try_from(chunk.len()).map_err(|_| Disconnected)?;
        wire.send(Reply::Data { payload }, chunk).await?;
    }
    Ok(Ok(Reply::Done))
}

/// Everything up to the end that the client announces.
async fn receive_bytes<S: AsyncRead + AsyncWrite + Unpin + Send>(
    wire: &mut Wire<S>,
) -> Result<Vec<u8>, Disconnected> {
    let mut bytes = Vec::new();
    loop {
        let frame = wire.input().await?;
        match frame.message {
            Input::Data { .. } => bytes.extend(frame.payload),
            Input::End => return Ok(bytes),
            _ => return Err(Disconnected),
        }
    }
}

pub(super) async fn read<S: AsyncRead + AsyncWrite + Unpin + Send>(
    wire: &mut Wire<S>,
    guest: &FakeGuest,
    path: &str,
    offset: u64,
    limit: Option<u64>,
) -> Result<Answer, Disconnected> {
    let Some(file) = guest.file(path) else { return Ok(Err(not_found(path))) };
    let length = file.content.len();
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(length);
    let most = limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let end = start.saturating_add(most).min(length);
    send_bytes(wire, &file.content[start..end]).await
}

pub(super) async fn write<S: AsyncRead + AsyncWrite + Unpin + Send>(
    wire: &mut Wire<S>,
    guest: &FakeGuest,
    path: &str,
    mode: Option<u32>,
    parents: bool,
) -> Result<Answer, Disconnected> {
    let folder = path.rsplit_once('/').map_or("/", |(folder, _)| folder);
    if let Err(refusal) = check(path) {
        return Ok(Err(refusal));
    }
    if !parents && !folder.is_empty() && !is_folder(&guest.state().files, folder) {
        return Ok(Err(not_found(folder)));
    }
    let content = receive_bytes(wire).await?;
    let mut state = guest.state();
    let file = state.files.entry(path.to_owned()).or_insert(FakeFile { content: Vec::new(), mode: 0o644 });
    file.content = content;
    file.mode = mode.unwrap_or(file.mode);
    Ok(Ok(Reply::Done))
}

pub(super) fn edit(guest: &FakeGuest, path: &str, old: &str, new: &str) -> Answer {
    let mut state = guest.state();
    let file = state.files.get_mut(path).ok_or_else(|| not_found(path))?;
    let text = std::str::from_utf8(&file.content)
        .map_err(|_| Refusal::new(ErrorCode::Invalid, format!("edit {path}: it is not text")))?;
    if old.is_empty() || !text.contains(old) {
        return Err(Refusal::new(ErrorCode::NotFound, format!("edit {path}: the text does not occur in it")));
    }
    file.content = text.replacen(old, new, 1).into_bytes();
    Ok(Reply::Done)
}

fn entry(name: &str, file: Option<&FakeFile>) -> Entry {
    Entry {
        name: name.to_owned(),
        kind: if file.is_some() { EntryKind::File } else { EntryKind::Directory },
        size: file.map_or(0, |file| file.content.len() as u64),
        mode: file.map_or(0o755, |file| file.mode),
        modified: 0,
        target: None,
    }
}

pub(super) async fn list<S: AsyncRead + AsyncWrite + Unpin + Send>(
    wire: &mut Wire<S>,
    guest: &FakeGuest,
    path: &str,
) -> Result<Answer, Disconnected> {
    let prefix = folder_prefix(path);
    let entries: Vec<Entry> = {
        let state = guest.state();
        if !is_folder(&state.files, path) {
            return Ok(Err(not_found(path)));
        }
        let mut members: BTreeMap<&str, Option<&FakeFile>> = BTreeMap::new();
        for (file_path, file) in &state.files {
            let Some(rest) = file_path.strip_prefix(&prefix) else { continue };
            match rest.split_once('/') {
                Some((folder, _)) => members.insert(folder, None),
                None => members.insert(rest, Some(file)),
            };
        }
        members.into_iter().map(|(name, file)| entry(name, file)).collect()
    };
    for part in entries.chunks(MAX_ENTRIES_PER_REPLY) {
        wire.send(Reply::Entries { entries: part.to_vec() }, &[]).await?;
    }
    Ok(Ok(Reply::Done))
}

pub(super) fn stat(guest: &FakeGuest, path: &str) -> Answer {
    let state = guest.state();
    let name = path.rsplit('/').next().unwrap_or_default();
    match state.files.get(path) {
        Some(file) => Ok(Reply::Entry { entry: entry(name, Some(file)) }),
        None if is_folder(&state.files, path) => Ok(Reply::Entry { entry: entry(name, None) }),
        None => Err(not_found(path)),
    }
}

pub(super) async fn archive_write<S: AsyncRead + AsyncWrite + Unpin + Send>(
    wire: &mut Wire<S>,
    guest: &FakeGuest,
    path: &str,
) -> Result<Answer, Disconnected> {
    if let Err(refusal) = check(path) {
        return Ok(Err(refusal));
    }
    let content = receive_bytes(wire).await?;
    guest.write_file(&format!("{}{ARCHIVE}", folder_prefix(path)), content);
    Ok(Ok(Reply::Done))
}

pub(super) async fn archive_read<S: AsyncRead + AsyncWrite + Unpin + Send>(
    wire: &mut Wire<S>,
    guest: &FakeGuest,
    path: &str,
) -> Result<Answer, Disconnected> {
    let archive = guest.file(&format!("{}{ARCHIVE}", folder_prefix(path)));
    match archive {
        Some(file) => send_bytes(wire, &file.content).await,
        None => Ok(Err(not_found(path))),
    }
}
