//! The bearer tokens of HTTP clients: a file of lines `name token` in the state folder, readable by its owner alone.
//!
//! The name is the session that whoever has the token is.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use agentiso_core::types::{InvalidSessionName, SessionId};
use rustix::fs::{FlockOperation, OFlags};

/// What the file is called, in the state folder.
const NAME: &str = "mcp-tokens";

/// Random bytes of a token: 256 bits.
const TOKEN_BYTES: usize = 32;

/// Longest token file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Why the tokens cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// A file operation failed.
    #[error("could not {operation} the token file {path}")]
    Io {
        /// What was being done.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others can read it, or it is somebody else's.
    #[error("the token file {path} is not private: {reason}")]
    NotPrivate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A line is not `name token`.
    #[error("line {line} of the token file {path} is no session name and 64 hexadecimal digits")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Which line, from 1 on.
        line: usize,
    },
    /// A name is not valid.
    #[error(transparent)]
    InvalidName(#[from] InvalidSessionName),
    /// There is a token of that name.
    #[error("there is a token {name} already")]
    Exists {
        /// The name.
        name: SessionId,
    },
    /// There is no token of that name.
    #[error("there is no token {name}")]
    Missing {
        /// The name.
        name: SessionId,
    },
}

impl TokenError {
    /// What to do next, as one sentence.
    pub fn next_step(&self) -> Option<String> {
        Some(match self {
            Self::NotPrivate { path, .. } => {
                format!("chmod 600 {}, and chown it to yourself", path.display())
            }
            Self::Malformed { .. } => "correct or remove that line".to_owned(),
            Self::Exists { .. } => {
                "remove it first with `agentiso mcp token rm`, or choose another name".to_owned()
            }
            Self::Missing { .. } => "`agentiso mcp token ls` lists those there are".to_owned(),
            Self::Io { .. } | Self::InvalidName(_) => return None,
        })
    }
}

/// The token file of a state folder.
#[derive(Clone, Debug)]
pub struct Tokens {
    path: PathBuf,
}

/// One line of it.
struct Line {
    name: SessionId,
    token: String,
}

impl Tokens {
    /// The tokens of the state folder at this path.
    pub fn at(state_dir: &Path) -> Self {
        Self { path: state_dir.join(NAME) }
    }

    /// The names of those there are.
    ///
    /// # Errors
    /// The file cannot be read, is not private, or malformed.
    pub fn names(&self) -> Result<Vec<SessionId>, TokenError> {
        Ok(self.read()?.into_iter().map(|line| line.name).collect())
    }

    /// Makes a token and returns it. It is told nowhere else but in the file.
    ///
    /// # Errors
    /// The name is taken or not valid; the file cannot be written. Nothing was changed then.
    pub fn add(&self, name: &str) -> Result<String, TokenError> {
        let name = SessionId::new(name)?;
        let mut bytes = [0; TOKEN_BYTES];
        let mut filled = 0;
        while filled < bytes.len() {
            let random = rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty());
            filled += random.map_err(|error| self.io("make a token for", error.into()))?;
        }
        let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let line = Line { name, token: token.clone() };
        self.change(|lines| {
            if lines.iter().any(|other| other.name == line.name) {
                return Err(TokenError::Exists { name: line.name });
            }
            lines.push(line);
            Ok(())
        })?;
        Ok(token)
    }

    /// Removes a token: whoever has it is refused from then on.
    ///
    /// # Errors
    /// There is none of that name; the file cannot be written. Nothing was changed then.
    pub fn remove(&self, name: &str) -> Result<(), TokenError> {
        let name = SessionId::new(name)?;
        self.change(|lines| {
            let before = lines.len();
            lines.retain(|line| line.name != name);
            if lines.len() == before { Err(TokenError::Missing { name }) } else { Ok(()) }
        })
    }

    /// The session that a token stands for. Takes the same time for every token that is none.
    ///
    /// # Errors
    /// The file cannot be read, is not private, or malformed.
    #[cfg(feature = "http")]
    pub(crate) fn session(&self, token: &str) -> Result<Option<SessionId>, TokenError> {
        use subtle::{ConditionallySelectable, ConstantTimeEq};
        let lines = self.read()?;
        let mut found = u32::MAX;
        for (number, line) in (0_u32..).zip(&lines) {
            let is_it = line.token.as_bytes().ct_eq(token.as_bytes());
            found.conditional_assign(&number, is_it);
        }
        let found = usize::try_from(found).unwrap_or(usize::MAX);
        Ok(lines.into_iter().nth(found).map(|line| line.name))
    }

    fn io(&self, operation: &'static str, source: io::Error) -> TokenError {
        TokenError::Io { operation, path: self.path.clone(), source }
    }

    fn read(&self) -> Result<Vec<Line>, TokenError> {
        let no_follow = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
        let mut file = match OpenOptions::new().read(true).custom_flags(no_follow).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.io("open", error)),
        };
        self.expect_private(&file)?;
        let mut text = String::new();
        let limited = (&mut file).take(MAX_FILE_BYTES).read_to_string(&mut text);
        limited.map_err(|error| self.io("read", error))?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        lines
            .map(|(number, line)| {
                let malformed = || TokenError::Malformed { path: self.path.clone(), line: number + 1 };
                let (name, token) = line.split_once(' ').ok_or_else(malformed)?;
                let is_token =
                    token.len() == 2 * TOKEN_BYTES && token.bytes().all(|byte| byte.is_ascii_hexdigit());
                if !is_token {
                    return Err(malformed());
                }
                let name = SessionId::new(name).map_err(|_| malformed())?;
                Ok(Line { name, token: token.to_owned() })
            })
            .collect()
    }

    fn expect_private(&self, file: &File) -> Result<(), TokenError> {
        let metadata = file.metadata().map_err(|error| self.io("look at", error))?;
        let user = rustix::process::geteuid().as_raw();
        let reason = if metadata.uid() != user {
            format!("it belongs to user {}, you are user {user}", metadata.uid())
        } else if metadata.mode() & 0o077 != 0 {
            format!("its mode is {:o}", metadata.mode() & 0o7777)
        } else {
            return Ok(());
        };
        Err(TokenError::NotPrivate { path: self.path.clone(), reason })
    }

    /// Changes the file: the new one takes the old one's place at once, and no two changes happen at the same time.
    fn change(
        &self,
        change: impl FnOnce(&mut Vec<Line>) -> Result<(), TokenError>,
    ) -> Result<(), TokenError> {
        let new = self.path.with_extension("new");
        let mut file = OpenOptions::new();
        // Its lock is that of the tokens; whoever gets it writes it anew.
        file.write(true).create(true).truncate(false).mode(0o600);
        file.custom_flags(i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default());
        let mut file = loop {
            let file = file.open(&new).map_err(|error| self.io("write", error))?;
            rustix::fs::flock(&file, FlockOperation::LockExclusive)
                .map_err(|error| self.io("lock", error.into()))?;
            let own = file.metadata().map_err(|error| self.io("look at", error))?.ino();
            // Another change has made the file that was waited for the tokens themselves.
            if std::fs::symlink_metadata(&new).is_ok_and(|metadata| metadata.ino() == own) {
                break file;
            }
        };
        let mut lines = self.read()?;
        change(&mut lines)?;
        let text: String = lines.iter().map(|line| format!("{} {}\n", line.name, line.token)).collect();
        let written =
            file.set_len(0).and_then(|()| file.write_all(text.as_bytes())).and_then(|()| file.sync_all());
        written.map_err(|error| self.io("write", error))?;
        std::fs::rename(&new, &self.path).map_err(|error| self.io("replace", error))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn tokens() -> (tempfile::TempDir, Tokens) {
        let folder = tempfile::tempdir().unwrap();
        let tokens = Tokens::at(folder.path());
        (folder, tokens)
    }

    fn names(tokens: &Tokens) -> Vec<String> {
        tokens.names().unwrap().into_iter().map(String::from).collect()
    }

    #[test]
    fn tokens_are_made_listed_and_removed() {
        let (_folder, tokens) = tokens();
        assert_eq!(names(&tokens), Vec::<String>::new());

        let one = tokens.add("one").unwrap();
        let two = tokens.add("two").unwrap();

        assert_eq!((one.len(), one == two), (64, false));
        assert!(matches!(tokens.add("one"), Err(TokenError::Exists { .. })));
        assert!(matches!(tokens.add("a b"), Err(TokenError::InvalidName(_))));
        assert!(matches!(tokens.add("operator"), Err(TokenError::InvalidName(_))));
        assert_eq!(names(&tokens), ["one", "two"]);
        tokens.remove("one").unwrap();
        assert!(matches!(tokens.remove("one"), Err(TokenError::Missing { .. })));
        assert_eq!(names(&tokens), ["two"]);
        let mode = std::fs::metadata(&tokens.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[cfg(feature = "http")]
    #[test]
    fn token_stands_for_its_session_and_nothing_else_does() {
        let (_folder, tokens) = tokens();
        assert_eq!(tokens.session("").unwrap(), None);
        let one = tokens.add("one").unwrap();
        let two = tokens.add("two").unwrap();

        assert_eq!(tokens.session(&one).unwrap().unwrap().as_str(), "one");
        assert_eq!(tokens.session(&two).unwrap().unwrap().as_str(), "two");
        let longer = format!("{one}0");
        for other in ["", "0", &one[..63], &longer, &one.to_uppercase().replace(char::is_numeric, "0")] {
            assert_eq!(tokens.session(other).unwrap(), None, "{other}");
        }
        tokens.remove("one").unwrap();
        assert_eq!(tokens.session(&one).unwrap(), None);
    }

    #[test]
    fn file_that_others_can_read_is_refused() {
        let (_folder, tokens) = tokens();
        tokens.add("one").unwrap();
        std::fs::set_permissions(&tokens.path, std::fs::Permissions::from_mode(0o640)).unwrap();

        assert!(matches!(tokens.names(), Err(TokenError::NotPrivate { .. })));
        assert!(matches!(tokens.add("two"), Err(TokenError::NotPrivate { .. })));
    }

    #[test]
    fn malformed_lines_are_named() {
        let (_folder, tokens) = tokens();
        let good = format!("one {}\n", "0".repeat(64));
        for bad in ["one", "one abc", "a/b 0", &format!("x {}", "g".repeat(64))] {
            std::fs::write(&tokens.path, format!("{good}\n{bad}\n")).unwrap();
            std::fs::set_permissions(&tokens.path, std::fs::Permissions::from_mode(0o600)).unwrap();
            assert!(matches!(tokens.names(), Err(TokenError::Malformed { line: 3, .. })), "{bad}");
        }
    }

    #[test]
    fn changes_at_once_lose_none() {
        let (_folder, tokens) = tokens();
        std::thread::scope(|scope| {
            for number in 0..8 {
                let tokens = &tokens;
                scope.spawn(move || tokens.add(&format!("t{number}")).unwrap());
            }
        });
        assert_eq!(names(&tokens).len(), 8);
    }
}
