//! What is in a guest's file system: paths as bytes, and entries of a tree in its order.

use std::cmp::Ordering;
use std::fmt::{self, Write};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A path as the kernel has it: bytes, which need not be UTF-8.
///
/// As text, in JSON and on a terminal alike, it is written without loss: a backslash as `\\`, and every byte that is no
/// UTF-8, or belongs to a control character or to one that rearranges text, as `\xNN` with two hexadecimal digits.
///
/// Paths are in the order of a walk: a folder, then all that is below it, before what follows the folder. Names are
/// compared byte by byte.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct RawPath(Vec<u8>);

impl RawPath {
    /// A path of these bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is this folder or below it. All relative paths are below the empty one.
    pub fn is_within(&self, folder: &Self) -> bool {
        match self.0.strip_prefix(folder.as_bytes()) {
            Some(rest) => folder.0.is_empty() || rest.is_empty() || rest.starts_with(b"/"),
            None => false,
        }
    }

    /// Whether it names something below a folder and nothing else: components with a slash between them, none of them
    /// empty, `.`, `..`, longer than 255 bytes or with a NUL. The empty path names the folder itself.
    pub fn is_relative(&self) -> bool {
        self.0.is_empty()
            || self.0.split(|byte| *byte == b'/').all(|name| {
                !matches!(name, b"" | b"." | b"..") && name.len() <= MAX_NAME_BYTES && !name.contains(&0)
            })
    }
}

/// Longest name of one file, in bytes, on every file system of Linux.
const MAX_NAME_BYTES: usize = 255;

impl Ord for RawPath {
    fn cmp(&self, other: &Self) -> Ordering {
        // The slash before every other byte: what is below a folder comes before what only begins like it.
        let rank = |byte: &u8| if *byte == b'/' { 0 } else { u16::from(*byte) + 1 };
        self.0.iter().map(rank).cmp(other.0.iter().map(rank))
    }
}

impl PartialOrd for RawPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for RawPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '\\' => f.write_str("\\\\")?,
                    c if is_unfit(c) => escape(f, c.encode_utf8(&mut [0; 4]).as_bytes())?,
                    c => f.write_char(c)?,
                }
            }
            escape(f, chunk.invalid())?;
        }
        Ok(())
    }
}

fn escape(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))
}

/// Besides control characters: line separators, and marks that change the direction of the text around them.
fn is_unfit(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl fmt::Debug for RawPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// A text that is no path in the form that [`RawPath`] is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a backslash must be followed by another one, or by x and two hexadecimal digits")]
pub struct InvalidEscape;

impl std::str::FromStr for RawPath {
    type Err = InvalidEscape;

    fn from_str(text: &str) -> Result<Self, InvalidEscape> {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.as_bytes();
        while let Some((first, after)) = rest.split_first() {
            let (byte, left) = match (first, after) {
                (b'\\', [b'\\', left @ ..]) => (b'\\', left),
                (b'\\', [b'x', high, low, left @ ..]) => (digit(*high)? << 4 | digit(*low)?, left),
                (b'\\', _) => return Err(InvalidEscape),
                (byte, left) => (*byte, left),
            };
            bytes.push(byte);
            rest = left;
        }
        Ok(Self(bytes))
    }
}

fn digit(byte: u8) -> Result<u8, InvalidEscape> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        b'A'..=b'F' => Ok(byte - b'A' + 10),
        _ => Err(InvalidEscape),
    }
}

impl Serialize for RawPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RawPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for RawPath {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "RawPath".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "Bytes: a backslash is \\\\, a byte that is no UTF-8 or not printable is \\xNN.",
        })
    }
}

/// One entry of a walk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TreeEntry {
    /// Where it is, seen from where the walk began; empty for that itself.
    pub path: RawPath,
    /// What it is.
    pub kind: TreeKind,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Last modification of its content.
    pub modified: FileTime,
    /// Last change of anything about it, which no program can set.
    pub changed: FileTime,
    /// Modified so shortly before the walk began, or after, that another modification may have left the same time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fresh: bool,
    /// Where a symbolic link points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<RawPath>,
    /// Major and minor number of a device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<(u32, u32)>,
}

/// A time of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FileTime(
    /// Seconds since 1970.
    pub i64,
    /// Nanoseconds on top of them.
    pub u32,
);

/// What an entry of a walk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum TreeKind {
    /// Regular file.
    File,
    /// Folder.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Block device.
    Block,
    /// Character device.
    Character,
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
    /// Something else is mounted here: neither what it covers nor what it holds can be told.
    Mount,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_being_written() {
        let all: Vec<u8> = (0..=255).chain("ä\u{202e}\u{10ffff}\\x41".bytes()).collect();

        let text = RawPath::new(all.clone()).to_string();

        assert!(!text.chars().any(is_unfit), "{text}");
        assert_eq!(text.parse::<RawPath>().unwrap().as_bytes(), all);
        let json = serde_json::to_string(&RawPath::new(all.clone())).unwrap();
        assert_eq!(serde_json::from_str::<RawPath>(&json).unwrap().as_bytes(), all);
    }

    #[test]
    fn wrong_escapes_are_refused() {
        for text in ["\\", "a\\", "\\n", "\\x", "\\x1", "\\xg0"] {
            assert_eq!(text.parse::<RawPath>(), Err(InvalidEscape), "{text}");
        }
    }

    #[test]
    fn order_is_that_of_a_walk() {
        let mut paths: Vec<RawPath> =
            ["a-b", "a/b", "a", "a.txt", "a/b/c", "", "a/b.c", "b"].map(RawPath::new).into();

        paths.sort();

        let sorted: Vec<String> = paths.iter().map(RawPath::to_string).collect();
        assert_eq!(sorted, ["", "a", "a/b", "a/b/c", "a/b.c", "a-b", "a.txt", "b"]);
    }

    #[test]
    fn within_is_by_components() {
        for (path, folder, within) in
            [("a/b", "a", true), ("a", "a", true), ("ab", "a", false), ("a", "", true), ("a", "a/b", false)]
        {
            assert_eq!(RawPath::new(path).is_within(&RawPath::new(folder)), within, "{path} in {folder}");
        }
    }

    #[test]
    fn relative_paths_stay_below() {
        let long = "x".repeat(MAX_NAME_BYTES);
        for (path, relative) in [
            ("", true),
            ("a/b", true),
            ("...", true),
            (&*long, true),
            (&*format!("{long}x"), false),
            ("/a", false),
            ("a/", false),
            ("a//b", false),
            ("./a", false),
            ("a/..", false),
            ("a\0", false),
        ] {
            assert_eq!(RawPath::new(path).is_relative(), relative, "{path}");
        }
    }
}
