use serde::{Deserialize, Serialize};

use super::names::is_valid_workspace_name;

/// How the operator is written.
const OPERATOR: &str = "operator";

/// How the owner of an orphan is written.
const NOBODY: &str = "nobody";

/// A session's name, which is all that tells it from others: whoever comes with it is that session.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SessionId(String);

/// A name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "session name {name:?} is not valid: use 1-128 of the characters A-Z a-z 0-9 . _ - (and none of \".\", \"..\", \
     \"operator\", \"nobody\")"
)]
pub struct InvalidSessionName {
    /// The beginning of what was given.
    name: String,
}

impl SessionId {
    /// Takes a name if it is valid.
    ///
    /// # Errors
    /// Anything but 1-128 characters of `[A-Za-z0-9._-]`; `.`, `..`, and what other owners are called: `operator` and
    /// `nobody`.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidSessionName> {
        let name = name.into();
        if is_valid_workspace_name(&name) && name != OPERATOR && name != NOBODY {
            Ok(Self(name))
        } else {
            Err(InvalidSessionName { name: name.chars().take(super::MAX_NAME_BYTES).collect() })
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SessionId {
    type Error = InvalidSessionName;

    fn try_from(name: String) -> Result<Self, InvalidSessionName> {
        Self::new(name)
    }
}

impl std::str::FromStr for SessionId {
    type Err = InvalidSessionName;

    fn from_str(name: &str) -> Result<Self, InvalidSessionName> {
        Self::new(name)
    }
}

impl From<SessionId> for String {
    fn from(id: SessionId) -> Self {
        id.0
    }
}

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a workspace belongs to. Written as `operator`, as a session's name, or as `nobody`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Owner {
    /// Whoever can open the state folder: the library and the command line.
    Operator,
    /// A session.
    Session(SessionId),
    /// Nobody: it is an orphan, which any session can adopt.
    Nobody,
}

impl Owner {
    /// Whether it is this session.
    pub fn is_session(&self, session: &SessionId) -> bool {
        matches!(self, Self::Session(owner) if owner == session)
    }
}

impl From<SessionId> for Owner {
    fn from(session: SessionId) -> Self {
        Self::Session(session)
    }
}

impl TryFrom<String> for Owner {
    type Error = InvalidSessionName;

    fn try_from(text: String) -> Result<Self, InvalidSessionName> {
        match text.as_str() {
            OPERATOR => Ok(Self::Operator),
            NOBODY => Ok(Self::Nobody),
            _ => SessionId::new(text).map(Self::Session),
        }
    }
}

impl From<Owner> for String {
    fn from(owner: Owner) -> Self {
        owner.to_string()
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Operator => OPERATOR,
            Self::Session(session) => session.as_str(),
            Self::Nobody => NOBODY,
        })
    }
}

impl PartialEq<&str> for Owner {
    /// Compares with how it is written.
    fn eq(&self, text: &&str) -> bool {
        match self {
            Self::Operator => *text == OPERATOR,
            Self::Session(session) => *text == session.as_str(),
            Self::Nobody => *text == NOBODY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_name_is_refused_when_it_is_invalid_or_another_owners() {
        let longest = "a".repeat(128);
        for valid in ["a", "ci.7_x-Y", "operator2", "Nobody", &longest] {
            assert_eq!(SessionId::new(valid).unwrap().as_str(), valid);
        }
        let too_long = "a".repeat(129);
        for invalid in ["", &too_long, "a b", "a/b", "a\nb", "ä", ".", "..", "operator", "nobody"] {
            let refused = SessionId::new(invalid);
            assert!(refused.is_err(), "{invalid:?}");
        }
    }

    #[test]
    fn owner_is_read_as_it_is_written() {
        let session = Owner::Session(SessionId::new("ci").unwrap());
        for (owner, text) in [(Owner::Operator, "operator"), (session, "ci"), (Owner::Nobody, "nobody")] {
            assert_eq!(serde_json::to_value(&owner).unwrap(), text);
            assert_eq!(serde_json::from_value::<Owner>(text.into()).unwrap(), owner);
            assert_eq!(owner, text);
        }
    }
}
