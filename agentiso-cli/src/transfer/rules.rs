//! Where a copy goes: the rules of `docker cp`, without any I/O.
//!
//! | source | destination | result |
//! |---|---|---|
//! | file | nothing there | a file of that name; an error if it ends with `/` or its folder is missing |
//! | file | a file | replaced |
//! | file | a folder | put into it under the source's name |
//! | folder | nothing there | a folder of that name with the source's contents |
//! | folder | a file | an error |
//! | folder | a folder | put into it under the source's name |
//! | folder, spelled `FOLDER/.` | a folder | its contents are put into it |

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use agentiso_core::types::is_valid_workspace_name;

/// One side of a copy, as it was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A path of this host.
    Host(PathBuf),
    /// A path in a workspace.
    Guest {
        /// The workspace.
        workspace: String,
        /// Absolute.
        path: String,
    },
    /// A tar stream on standard input or output.
    Stream,
}

/// Why a copy makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RuleError {
    #[error("{0:?} names a workspace but no path in it")]
    NoPath(String),
    #[error("the path in a workspace must be valid UTF-8")]
    NotUtf8,
    #[error("{} is a folder that does not exist", .0.display())]
    NoFolder(PathBuf),
    #[error("{} is not a folder", .0.display())]
    NotAFolder(PathBuf),
    #[error("a folder cannot take the place of {}, which is a file", .0.display())]
    FolderOntoFile(PathBuf),
    #[error("{} is neither a file nor a folder", .0.display())]
    NotAFile(PathBuf),
}

impl Place {
    /// Reads `PATH`, `WORKSPACE:PATH` or `-`.
    ///
    /// What begins with `/` or `.` or has a `/` before the first `:` is a path of the host, so `./a:b` is one. A path
    /// in a workspace begins at its root, with or without a leading `/`.
    pub(crate) fn parse(word: &OsStr) -> Result<Self, RuleError> {
        let bytes = word.as_bytes();
        if bytes == b"-" {
            return Ok(Self::Stream);
        }
        let host = || Ok(Self::Host(PathBuf::from(word)));
        if bytes.starts_with(b"/") || bytes.starts_with(b".") {
            return host();
        }
        let Some(colon) = bytes.iter().position(|byte| *byte == b':') else { return host() };
        let (workspace, path) = (&bytes[..colon], &bytes[colon + 1..]);
        let Some(workspace) =
            std::str::from_utf8(workspace).ok().filter(|name| is_valid_workspace_name(name))
        else {
            return host();
        };
        if path.is_empty() {
            return Err(RuleError::NoPath(workspace.to_owned()));
        }
        let path = std::str::from_utf8(path).map_err(|_| RuleError::NotUtf8)?;
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self::Guest { workspace: workspace.to_owned(), path })
    }
}

/// A path without the slashes and dots at its end, and what they said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spelled {
    /// The path.
    pub(crate) path: PathBuf,
    /// It ended with `/` or `/.`: it can only be a folder, and a symbolic link there is followed.
    pub(crate) is_folder: bool,
    /// It ended with `/.`: not the folder itself but its contents.
    pub(crate) is_contents: bool,
}

impl Spelled {
    /// Takes apart how a path is spelled.
    pub(crate) fn new(path: &Path) -> Self {
        let mut bytes = path.as_os_str().as_bytes();
        let (mut is_folder, mut is_contents) = (false, bytes == b".");
        loop {
            if bytes.len() > 1 && bytes.ends_with(b"/") {
                bytes = &bytes[..bytes.len() - 1];
                is_folder = true;
            } else if bytes.ends_with(b"/.") {
                bytes = if bytes.len() == 2 { b"/" } else { &bytes[..bytes.len() - 2] };
                (is_folder, is_contents) = (true, true);
            } else {
                break;
            }
        }
        if bytes == b"/" {
            is_folder = true;
        }
        Self { path: PathBuf::from(OsString::from_vec(bytes.to_vec())), is_folder, is_contents }
    }

    /// Its last component; none for `/` and for what ends in `..`.
    pub(crate) fn name(&self) -> Option<&OsStr> {
        self.path.file_name()
    }
}

/// What is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceKind {
    /// Anything but a folder: a regular file, or a symbolic link that is copied as such.
    File,
    /// A folder.
    Folder,
}

/// What is at the destination already, symbolic links followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    /// Nothing, and whether the folder it would be in exists.
    Nothing {
        /// Whether it does.
        parent_exists: bool,
    },
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A device, a socket, a FIFO.
    Other,
}

/// Where the copied things go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Into this folder, under this name.
    As {
        /// Exists.
        folder: PathBuf,
        /// One component.
        name: OsString,
    },
    /// The contents of the source go into this folder.
    ContentsInto {
        /// Exists.
        folder: PathBuf,
    },
}

/// Applies the rules. `source_name` is the source's own name; a source without one (`/`) is taken for its contents.
pub(crate) fn target(
    source: SourceKind,
    source_name: Option<&OsStr>,
    is_contents: bool,
    destination: &Spelled,
    existing: Existing,
) -> Result<Target, RuleError> {
    let path = || destination.path.clone();
    match (source, existing) {
        (_, Existing::Other) => Err(RuleError::NotAFile(path())),
        (SourceKind::File, Existing::Nothing { .. }) if destination.is_folder => {
            Err(RuleError::NoFolder(path()))
        }
        (_, Existing::Nothing { parent_exists: true }) => named(destination),
        (_, Existing::Nothing { parent_exists: false }) => {
            Err(RuleError::NoFolder(parent(&destination.path)))
        }
        (SourceKind::File, Existing::File) if destination.is_folder => Err(RuleError::NotAFolder(path())),
        (SourceKind::File, Existing::File) => named(destination),
        (SourceKind::Folder, Existing::File) => Err(RuleError::FolderOntoFile(path())),
        (_, Existing::Folder) => Ok(match source_name {
            Some(name) if !is_contents => Target::As { folder: path(), name: name.to_owned() },
            _ => Target::ContentsInto { folder: path() },
        }),
    }
}

fn named(destination: &Spelled) -> Result<Target, RuleError> {
    let name = destination.name().ok_or_else(|| RuleError::NoFolder(destination.path.clone()))?;
    Ok(Target::As { folder: parent(&destination.path), name: name.to_owned() })
}

/// The folder a path is in; `.` for a bare name.
pub(crate) fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(workspace: &str, path: &str) -> Place {
        Place::Guest { workspace: workspace.to_owned(), path: path.to_owned() }
    }

    #[test]
    fn places_are_told_apart_as_docker_does() {
        for (word, expected) in [
            ("-", Place::Stream),
            ("ws:/etc/hosts", guest("ws", "/etc/hosts")),
            ("ws:etc/hosts", guest("ws", "/etc/hosts")),
            ("ws:a:b", guest("ws", "/a:b")),
            ("ws:-", guest("ws", "/-")),
            ("my_project:/x", guest("my_project", "/x")),
            ("a.b:/x", guest("a.b", "/x")),
            ("plain", Place::Host("plain".into())),
            ("/a:b", Place::Host("/a:b".into())),
            ("./a:b", Place::Host("./a:b".into())),
            ("../a:b", Place::Host("../a:b".into())),
            ("a/b:c", Place::Host("a/b:c".into())),
            ("a b:c", Place::Host("a b:c".into())),
            (":c", Place::Host(":c".into())),
            ("./-", Place::Host("./-".into())),
        ] {
            assert_eq!(Place::parse(OsStr::new(word)), Ok(expected), "{word}");
        }
    }

    #[test]
    fn workspace_without_a_path_is_refused() {
        assert_eq!(Place::parse(OsStr::new("ws:")), Err(RuleError::NoPath("ws".to_owned())));
    }

    #[test]
    fn guest_path_that_is_not_utf8_is_refused() {
        assert_eq!(Place::parse(OsStr::from_bytes(b"ws:/\xff")), Err(RuleError::NotUtf8));
    }

    #[test]
    fn spelling_says_folder_and_contents() {
        for (word, path, is_folder, is_contents) in [
            ("a", "a", false, false),
            ("a/", "a", true, false),
            ("a//", "a", true, false),
            ("a/.", "a", true, true),
            ("a/./", "a", true, true),
            (".", ".", false, true),
            ("./", ".", true, false),
            ("/", "/", true, false),
            ("/.", "/", true, true),
            ("a.", "a.", false, false),
            ("..", "..", false, false),
        ] {
            let expected = Spelled { path: path.into(), is_folder, is_contents };
            assert_eq!(Spelled::new(Path::new(word)), expected, "{word}");
        }
    }

    const MISSING: Existing = Existing::Nothing { parent_exists: true };
    const NOWHERE: Existing = Existing::Nothing { parent_exists: false };

    fn into(folder: &str, name: &str) -> Result<Target, RuleError> {
        Ok(Target::As { folder: folder.into(), name: name.into() })
    }

    fn contents(folder: &str) -> Result<Target, RuleError> {
        Ok(Target::ContentsInto { folder: folder.into() })
    }

    #[test]
    fn targets_are_those_of_docker_cp() {
        use SourceKind::{File, Folder};
        for (kind, source, destination, existing, expected) in [
            (File, "s/f", "/d/x", MISSING, into("/d", "x")),
            (File, "s/f", "x", MISSING, into(".", "x")),
            (File, "s/f", "/x", MISSING, into("/", "x")),
            (File, "s/f", "/d/x/", MISSING, Err(RuleError::NoFolder("/d/x".into()))),
            (File, "s/f", "/d/x", NOWHERE, Err(RuleError::NoFolder("/d".into()))),
            (File, "s/f", "/d/x", Existing::File, into("/d", "x")),
            (File, "s/f", "/d/x/", Existing::File, Err(RuleError::NotAFolder("/d/x".into()))),
            (File, "s/f", "/d", Existing::Folder, into("/d", "f")),
            (File, "s/f", "/d/", Existing::Folder, into("/d", "f")),
            (File, "s/f", "/d/x", Existing::Other, Err(RuleError::NotAFile("/d/x".into()))),
            (Folder, "s", "/d/x", MISSING, into("/d", "x")),
            (Folder, "s", "/d/x/", MISSING, into("/d", "x")),
            (Folder, "s/.", "/d/x", MISSING, into("/d", "x")),
            (Folder, "s", "/d/x", NOWHERE, Err(RuleError::NoFolder("/d".into()))),
            (Folder, "s", "/d/x", Existing::File, Err(RuleError::FolderOntoFile("/d/x".into()))),
            (Folder, "s", "/d", Existing::Folder, into("/d", "s")),
            (Folder, "s/", "/d", Existing::Folder, into("/d", "s")),
            (Folder, "s/.", "/d", Existing::Folder, contents("/d")),
            (Folder, ".", "/d", Existing::Folder, contents("/d")),
            (Folder, "/", "/d", Existing::Folder, contents("/d")),
            (Folder, "s", "/", Existing::Folder, into("/", "s")),
            (Folder, "s", "/d/..", Existing::Folder, into("/d/..", "s")),
            (Folder, "s", "..", MISSING, Err(RuleError::NoFolder("..".into()))),
        ] {
            let from = Spelled::new(Path::new(source));
            let to = Spelled::new(Path::new(destination));

            let result = target(kind, from.name(), from.is_contents, &to, existing);

            assert_eq!(result, expected, "{kind:?} {source} -> {destination} ({existing:?})");
        }
    }
}
