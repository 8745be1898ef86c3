//! What is at a path of a guest, symbolic links followed.

use std::path::PathBuf;

use agentiso_core::channel::client::{EntryKind, ErrorCode, GuestClient, GuestError};

use super::rules::Existing;
use crate::error::CliError;

/// Most symbolic links followed, as the kernel does.
const MAX_LINKS: usize = 40;

/// A path of a guest with the symbolic links at its end followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// Where they lead.
    pub(crate) path: String,
    /// What is there.
    pub(crate) found: Found,
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing.
    Nothing,
    /// A regular file of so many bytes.
    File(u64),
    /// A folder.
    Folder,
    /// A symbolic link, where it was not to be followed.
    Link,
    /// A device, a socket, a FIFO.
    Other,
}

/// Looks at a path. With `follow` the links at its end are followed, to nothing if that is where they lead.
pub(crate) async fn resolve(guest: &GuestClient, path: &str, follow: bool) -> Result<Resolved, CliError> {
    let mut path = path.to_owned();
    for _ in 0..=MAX_LINKS {
        let entry = match guest.stat_file(path.clone()).await {
            Ok(entry) => entry,
            Err(GuestError::Refused { code: ErrorCode::NotFound, .. }) => {
                return Ok(Resolved { path, found: Found::Nothing });
            }
            Err(error) => return Err(error.into()),
        };
        let found = match entry.kind {
            EntryKind::File => Found::File(entry.size),
            EntryKind::Directory => Found::Folder,
            EntryKind::Other => Found::Other,
            EntryKind::Symlink if !follow => Found::Link,
            EntryKind::Symlink => {
                path = join(&path, &entry.target.unwrap_or_default());
                continue;
            }
        };
        return Ok(Resolved { path, found });
    }
    Err(CliError::request(
        format!("{path} is behind more than {MAX_LINKS} symbolic links"),
        "name the file itself",
    ))
}

/// What the destination of a copy is.
pub(crate) async fn destination(guest: &GuestClient, path: &str) -> Result<(String, Existing), CliError> {
    let Resolved { path, found } = resolve(guest, path, true).await?;
    let existing = match found {
        Found::File(_) => Existing::File,
        Found::Folder => Existing::Folder,
        Found::Link | Found::Other => Existing::Other,
        Found::Nothing => {
            let parent = resolve(guest, &parent(&path), true).await?;
            Existing::Nothing { parent_exists: parent.found == Found::Folder }
        }
    };
    Ok((path, existing))
}

fn parent(path: &str) -> String {
    super::rules::parent(&PathBuf::from(path)).to_string_lossy().into_owned()
}

/// The path that a link's target means.
fn join(link: &str, target: &str) -> String {
    if target.starts_with('/') { target.to_owned() } else { format!("{}/{target}", parent(link)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_targets_begin_where_the_link_is() {
        for (link, target, expected) in
            [("/a/b", "c", "/a/c"), ("/a/b", "../c", "/a/../c"), ("/a/b", "/c", "/c"), ("/b", "c", "//c")]
        {
            assert_eq!(join(link, target), expected, "{link} -> {target}");
        }
    }
}
