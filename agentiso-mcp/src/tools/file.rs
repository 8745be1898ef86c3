//! Files in a workspace.

use agentiso_core::channel::client::{FileRange, WriteOptions};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Call, Class, Effect, Group, Tool,
    params::{absolute, bounded, mode},
    text::whole_characters,
};
use crate::failure::Failure;

/// Most bytes of a file that one call writes.
const MAX_WRITE_BYTES: usize = 8 * 1024 * 1024;

/// Most bytes of a file that one call reads.
const MAX_READ_BYTES: u64 = 8 * 1024 * 1024;

/// Bytes that one call reads unless it says otherwise.
const DEFAULT_READ_BYTES: u64 = 256 * 1024;

/// Longest character of UTF-8, less its first byte.
const REST_OF_CHARACTER: usize = 3;

/// Most entries of a folder in one answer.
const MAX_ENTRIES: usize = 10_000;

pub(crate) struct Read;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReadParams {
    /// The workspace: its UUID, 8 or more of the UUID's first digits, or its name.
    workspace_id: String,
    /// The file, an absolute path.
    path: String,
    /// The first byte to read; 0 unless given.
    offset: Option<u64>,
    /// How many bytes to read; 262144 unless given. Some clients take no answer of more than 1 MiB over HTTP: read longer
    /// files in parts.
    #[schemars(range(min = 1, max = 8_388_608))]
    limit: Option<u64>,
}

impl Tool for Read {
    type Params = ReadParams;
    const NAME: &'static str = "file_read";
    const TITLE: &'static str = "Read a file";
    const GROUP: Group = Group::File;
    const CLASS: Class = Class::Other;
    const EFFECT: Effect = Effect::Reads;
    const DESCRIPTION: &'static str = "Reads a text file (UTF-8) of a workspace, or a part of it, without a shell. Returns \
        path, content, offset, bytes, and next_offset: where to read on, null at the end. Never cuts a character. What \
        is no text is refused: use file_transfer, or a command, for it.";
    const EXAMPLES: &'static [&'static str] = &[
        r#"{"workspace_id":"build","path":"/etc/os-release"}"#,
        r#"{"workspace_id":"build","path":"/var/log/build.log","offset":262144,"limit":65536}"#,
    ];

    async fn call(call: &Call<'_>, params: ReadParams) -> Result<Value, Failure> {
        let ReadParams { workspace_id, path, offset, limit } = params;
        absolute("path", &path)?;
        let limit = bounded("limit", limit.unwrap_or(DEFAULT_READ_BYTES), 1, MAX_READ_BYTES)?;
        let asked = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut offset = offset.unwrap_or_default();
        let workspace = call.caller.workspace(&workspace_id).await?;
        let failed = |error| Failure::guest(&workspace, &error);
        let guest = workspace.guest().await?;
        // One byte more says whether there is more, and the rest of a character that the limit cuts belongs to it.
        let range = FileRange { offset, limit: Some(limit + 1 + REST_OF_CHARACTER as u64) };
        let mut stream = guest.open_file(path.clone(), range).await.map_err(failed)?;
        let mut content = Vec::new();
        while let Some(chunk) = stream.chunk().await.map_err(failed)? {
            content.extend_from_slice(&chunk);
        }
        if offset > 0 {
            // An offset inside a character: the file is read from the next one on.
            let inside =
                content.iter().take(REST_OF_CHARACTER).take_while(|byte| is_continuation(**byte)).count();
            content.drain(..inside);
            offset += inside as u64;
        }
        let is_more = content.len() > asked;
        let mut shown = &content[..content.len().min(asked)];
        if is_more {
            shown = whole_characters(shown);
            if shown.is_empty() {
                // A limit smaller than one character.
                let length = (1..=content.len()).find(|end| std::str::from_utf8(&content[..*end]).is_ok());
                shown = &content[..length.unwrap_or(content.len())];
            }
        }
        let text = match std::str::from_utf8(shown) {
            Ok(text) if !text.contains('\0') => text,
            _ => {
                return Err(Failure::request(
                    format!("{path} is no text (UTF-8 without NUL characters)"),
                    "copy it to the host with file_transfer, or look at it with exec, as in `xxd FILE | head`",
                ));
            }
        };
        let next = offset + shown.len() as u64;
        Ok(json!({
            "path": path,
            "content": text,
            "offset": offset,
            "bytes": shown.len(),
            "next_offset": (shown.len() < content.len()).then_some(next),
        }))
    }
}

fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

pub(crate) struct Write;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WriteParams {
    /// The workspace: its UUID, 8 or more of the UUID's first digits, or its name.
    workspace_id: String,
    /// The file, an absolute path. Missing folders are made.
    path: String,
    /// All of the file's new content; at most 8 MiB.
    content: String,
    /// Permission bits in octal, as in "0644" or "755"; a new file gets 0644, an old one keeps its own unless given.
    mode: Option<String>,
}

impl Tool for Write {
    type Params = WriteParams;
    const NAME: &'static str = "file_write";
    const TITLE: &'static str = "Write a file";
    const GROUP: Group = Group::File;
    const CLASS: Class = Class::Other;
    const EFFECT: Effect = Effect::Changes;
    const DESCRIPTION: &'static str = "Writes a text file of a workspace, new or not. The new content appears all at once; \
        a call that fails changes nothing. At most 8 MiB: use file_transfer for more, and for what is no text. Returns \
        path and bytes_written.";
    const EXAMPLES: &'static [&'static str] = &[
        r##"{"workspace_id":"build","path":"/root/run.sh","content":"#!/bin/sh\necho hello\n","mode":"0755"}"##,
    ];

    async fn call(call: &Call<'_>, params: WriteParams) -> Result<Value, Failure> {
        let WriteParams { workspace_id, path, content, mode: bits } = params;
        absolute("path", &path)?;
        if content.len() > MAX_WRITE_BYTES {
            return Err(Failure::parameter(
                format!(
                    "content is {} bytes, more than the {MAX_WRITE_BYTES} that file_write takes",
                    content.len()
                ),
                "put the file into the transfer folder of the host and upload it with file_transfer",
            ));
        }
        let options = WriteOptions { mode: bits.as_deref().map(mode).transpose()?, parents: true };
        let workspace = call.caller.workspace(&workspace_id).await?;
        let mut bytes = content.as_bytes();
        let written = workspace.guest().await?.write_file(path.clone(), options, &mut bytes).await;
        let written = written.map_err(|error| Failure::guest(&workspace, &error))?;
        Ok(json!({ "path": path, "bytes_written": written }))
    }
}

pub(crate) struct Edit;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EditParams {
    /// The workspace: its UUID, 8 or more of the UUID's first digits, or its name.
    workspace_id: String,
    /// The file, an absolute path.
    path: String,
    /// The text to replace: the first place where it occurs exactly so, white space included.
    #[schemars(length(min = 1))]
    old_string: String,
    /// What takes its place.
    new_string: String,
}

impl Tool for Edit {
    type Params = EditParams;
    const NAME: &'static str = "file_edit";
    const TITLE: &'static str = "Edit a file";
    const GROUP: Group = Group::File;
    const CLASS: Class = Class::Other;
    const EFFECT: Effect = Effect::Changes;
    const DESCRIPTION: &'static str = "Replaces the first exact occurrence of old_string in a text file by new_string. An \
        error if it does not occur; the file is unchanged then. Give enough of the text around to hit the right place.";
    const EXAMPLES: &'static [&'static str] = &[
        r#"{"workspace_id":"build","path":"/root/run.sh","old_string":"hello","new_string":"hello, world"}"#,
    ];

    async fn call(call: &Call<'_>, params: EditParams) -> Result<Value, Failure> {
        let EditParams { workspace_id, path, old_string, new_string } = params;
        absolute("path", &path)?;
        if old_string.is_empty() {
            return Err(Failure::parameter(
                "old_string is empty",
                "give the text to replace; file_write writes a whole file",
            ));
        }
        let workspace = call.caller.workspace(&workspace_id).await?;
        let edited = workspace.guest().await?.edit_file(path.clone(), old_string, new_string).await;
        edited.map_err(|error| Failure::guest(&workspace, &error))?;
        Ok(json!({ "path": path, "replaced": 1 }))
    }
}

pub(crate) struct List;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListParams {
    /// The workspace: its UUID, 8 or more of the UUID's first digits, or its name.
    workspace_id: String,
    /// The folder, an absolute path.
    path: String,
}

impl Tool for List {
    type Params = ListParams;
    const NAME: &'static str = "file_list";
    const TITLE: &'static str = "List a folder";
    const GROUP: Group = Group::File;
    const CLASS: Class = Class::Other;
    const EFFECT: Effect = Effect::Reads;
    const DESCRIPTION: &'static str = "Lists a folder of a workspace, by name: path, total, truncated, and entries [{name, \
        kind, size, permissions, modified, target}], with kind file, directory, symlink or another, permissions in \
        octal, modified in seconds since 1970, target only for symbolic links. At most 10000 entries.";
    const EXAMPLES: &'static [&'static str] = &[r#"{"workspace_id":"build","path":"/workspace"}"#];

    async fn call(call: &Call<'_>, params: ListParams) -> Result<Value, Failure> {
        absolute("path", &params.path)?;
        let workspace = call.caller.workspace(&params.workspace_id).await?;
        let listed = workspace.guest().await?.list_files(params.path.clone()).await;
        let mut entries = listed.map_err(|error| Failure::guest(&workspace, &error))?;
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let total = entries.len();
        let shown: Vec<Value> = entries
            .into_iter()
            .take(MAX_ENTRIES)
            .map(|entry| {
                let mut line = json!({
                    "name": entry.name,
                    "kind": entry.kind,
                    "size": entry.size,
                    "permissions": format!("{:04o}", entry.mode),
                    "modified": entry.modified,
                });
                if let Some(target) = entry.target {
                    line["target"] = target.into();
                }
                line
            })
            .collect();
        Ok(json!({ "path": params.path, "total": total, "truncated": total > shown.len(), "entries": shown }))
    }
}
