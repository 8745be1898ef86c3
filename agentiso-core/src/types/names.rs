use serde::{Deserialize, Serialize};

/// Longest workspace, snapshot or image name, in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 128;

/// Longest host name label (RFC 1035, section 2.3.4), in bytes.
const MAX_HOSTNAME_BYTES: usize = 63;

/// Whether this can name a workspace: 1-128 characters of `[A-Za-z0-9._-]`, but neither `.` nor `..`.
pub fn is_valid_workspace_name(name: &str) -> bool {
    // ASCII only: is_alphanumeric() would accept all of Unicode.
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        && name != "."
        && name != ".."
}

/// A name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{kind} name {name:?} is not valid: use 1-128 of the characters A-Z a-z 0-9 . _ - (and neither \".\" nor \"..\")"
)]
pub struct InvalidName {
    kind: &'static str,
    /// The beginning of what was given.
    name: String,
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// Takes a name if it is valid.
            ///
            /// # Errors
            /// Anything but 1-128 characters of `[A-Za-z0-9._-]`, and `.` and `..`.
            pub fn new(name: impl Into<String>) -> Result<Self, InvalidName> {
                let name = name.into();
                if is_valid_workspace_name(&name) {
                    Ok(Self(name))
                } else {
                    Err(InvalidName { kind: $kind, name: name.chars().take(MAX_NAME_BYTES).collect() })
                }
            }

            /// The name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidName;

            fn try_from(name: String) -> Result<Self, InvalidName> {
                Self::new(name)
            }
        }

        impl std::str::FromStr for $type {
            type Err = InvalidName;

            fn from_str(name: &str) -> Result<Self, InvalidName> {
                Self::new(name)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// What people call a workspace. Unique in a state folder.
    WorkspaceName,
    "workspace"
);
name!(
    /// What people call a snapshot. Unique in a workspace.
    SnapshotName,
    "snapshot"
);
name!(
    /// What people call a base image. Unique in a state folder.
    ImageName,
    "image"
);
name!(
    /// What people call a group of workspaces that may talk to each other. Of the same state folder.
    GroupName,
    "group"
);

/// The host name of a workspace's guest: whatever is not `[A-Za-z0-9-]` becomes `-`, at most 63 characters, no `-` at
/// either end; `workspace` if nothing is left.
pub fn guest_hostname(name: &WorkspaceName) -> String {
    let label: String = name
        .as_str()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(MAX_HOSTNAME_BYTES)
        .collect();
    let label = label.trim_matches('-');
    if label.is_empty() { "workspace".to_owned() } else { label.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_workspace_name_validation() {
        let longest = "a".repeat(128);
        for valid in ["my-workspace", "ws_test_123", "a", "my.workspace.v2", &longest] {
            assert!(is_valid_workspace_name(valid), "{valid:?}");
            assert!(WorkspaceName::new(valid).is_ok(), "{valid:?}");
        }
        let too_long = "a".repeat(129);
        for invalid in ["", &too_long, "a b", "a/b", "a\nb", "a\0b", "ä", ".", ".."] {
            assert!(!is_valid_workspace_name(invalid), "{invalid:?}");
            assert!(WorkspaceName::new(invalid).is_err(), "{invalid:?}");
        }
    }

    #[test]
    fn guest_hostname_is_a_valid_label() {
        for (name, expected) in
            [("my_project", "my-project"), ("a.b", "a-b"), ("__", "workspace"), ("-x-", "x")]
        {
            assert_eq!(guest_hostname(&WorkspaceName::new(name).unwrap()), expected);
        }
        assert_eq!(guest_hostname(&WorkspaceName::new("a".repeat(128)).unwrap()).len(), 63);
    }
}
