//! The environment of commands: what every command has, what [`EnvSet`] added, what its request adds; and what none of
//! them may add.
//!
//! [`EnvSet`]: agentiso_guest::message::Request::EnvSet

use std::collections::BTreeMap;
use std::ffi::CString;
use std::sync::Mutex;

use agentiso_guest::limits::{MAX_ENV_VAR_BYTES, MAX_ENV_VARS};
use agentiso_guest::message::ErrorCode;

use crate::agent::lock;
use crate::failure::Failure;

/// Folders that programs are looked for in, if the request does not say otherwise.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const BASE: [(&str, &str); 6] = [
    ("PATH", DEFAULT_PATH),
    ("HOME", "/root"),
    ("USER", "root"),
    ("LOGNAME", "root"),
    ("SHELL", "/bin/sh"),
    ("LANG", "C.UTF-8"),
];

/// The terminal type of commands on a pseudo-terminal, if the request names none.
const DEFAULT_TERM: &str = "xterm-256color";

/// Variables that make a shell or the dynamic loader run or load something before, or instead of, the command that was
/// asked for. Compared exactly: to Linux, `ld_preload` and `env` are other names, and harmless ones.
const REFUSED: [&str; 21] = [
    // Files that a shell reads before the command: POSIX sh, zsh; where ksh and zsh load functions from.
    "ENV",
    "ZDOTDIR",
    "FPATH",
    // Options that a shell takes over, such as tracing, which expands PS4 and so runs what is in it.
    "SHELLOPTS",
    "BASHOPTS",
    "POSIXLY_CORRECT",
    // Expanded, and so run, by a shell that traces or is interactive.
    "PS0",
    "PS1",
    "PS2",
    "PS4",
    "PROMPT_COMMAND",
    // How a shell splits what it expands.
    "IFS",
    // What the C library loads or writes by name: character converters, locales, messages, tunables, traces.
    "GCONV_PATH",
    "GETCONF_DIR",
    "LOCPATH",
    "NLSPATH",
    "GLIBC_TUNABLES",
    "MALLOC_TRACE",
    // Where the C library looks names up.
    "HOSTALIASES",
    "RESOLV_HOST_CONF",
    "RES_OPTIONS",
];

/// As [`REFUSED`], for whole families: everything of the dynamic loader; bash's start file, imported functions,
/// loadable builtins, trace descriptor.
const REFUSED_PREFIXES: [&str; 2] = ["LD_", "BASH_"];

/// Older bash versions import a function from any variable whose value begins so.
const FUNCTION_VALUE: &str = "() {";

/// Variables that [`set`](Environment::set) put there, for all later commands. In memory only.
#[derive(Default)]
pub(crate) struct Environment {
    set: Mutex<BTreeMap<String, String>>,
}

impl std::fmt::Debug for Environment {
    // Values are secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment").finish_non_exhaustive()
    }
}

impl Environment {
    /// Sets and removes variables for every later command.
    ///
    /// # Errors
    /// A name or value is refused, or there would be more than [`MAX_ENV_VARS`]. Nothing is changed then.
    pub(crate) fn set(&self, changes: BTreeMap<String, Option<String>>) -> Result<(), Failure> {
        for (name, value) in &changes {
            check_name(name)?;
            if let Some(value) = value {
                check_value(name, value)?;
            }
        }
        let mut set = lock(&self.set);
        let mut next = set.clone();
        for (name, value) in changes {
            match value {
                Some(value) => drop(next.insert(name, value)),
                None => drop(next.remove(&name)),
            }
        }
        check_count(next.len())?;
        *set = next;
        Ok(())
    }

    /// Removes everything that [`set`](Environment::set) put there.
    pub(crate) fn clear(&self) {
        lock(&self.set).clear();
    }

    /// The whole environment of a command: later sources win.
    ///
    /// # Errors
    /// A variable of the request is refused, or there are too many.
    pub(crate) fn of_command(
        &self,
        request: &BTreeMap<String, String>,
        terminal: bool,
    ) -> Result<BTreeMap<String, String>, Failure> {
        check_count(request.len())?;
        for (name, value) in request {
            check_name(name)?;
            check_value(name, value)?;
        }
        let mut all = clean(&BTreeMap::new());
        if terminal {
            all.insert("TERM".to_owned(), DEFAULT_TERM.to_owned());
        }
        all.extend(lock(&self.set).iter().map(|(name, value)| (name.clone(), value.clone())));
        all.extend(request.iter().map(|(name, value)| (name.clone(), value.clone())));
        Ok(all)
    }
}

/// What every command has, without anything that was set for all of them, and this.
pub(crate) fn clean(more: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> =
        BASE.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    all.extend(more.iter().map(|(name, value)| (name.clone(), value.clone())));
    all
}

/// `NAME=value` strings for `execve`. Names and values were checked, so none holds a NUL.
pub(crate) fn for_execve(environment: &BTreeMap<String, String>) -> Vec<CString> {
    environment.iter().filter_map(|(name, value)| CString::new(format!("{name}={value}")).ok()).collect()
}

/// Whether a variable of this name may be set. The one place that decides it, for every path a name can come by.
fn check_name(name: &str) -> Result<(), Failure> {
    if name.is_empty() {
        return Err(Failure::invalid("an environment variable has an empty name"));
    }
    if name.contains(['=', '\0']) {
        return Err(Failure::invalid(format!(
            "the environment variable name {name:?} contains '=' or a NUL, which no name can"
        )));
    }
    if name.len() > MAX_ENV_VAR_BYTES {
        return Err(too_long(&format!("{}...", name.chars().take(64).collect::<String>())));
    }
    if REFUSED.contains(&name) || REFUSED_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
        return Err(Failure::invalid(format!(
            "the environment variable {name} is refused: it makes a shell or the loader run something else than the \
             command; set it inside the command instead (env {name}=... program)"
        )));
    }
    Ok(())
}

/// Whether a variable may have this value. The value itself is never part of an error.
fn check_value(name: &str, value: &str) -> Result<(), Failure> {
    if value.contains('\0') {
        return Err(Failure::invalid(format!("the value of the environment variable {name} contains a NUL")));
    }
    if name.len() + value.len() > MAX_ENV_VAR_BYTES {
        return Err(too_long(name));
    }
    if value.starts_with(FUNCTION_VALUE) {
        return Err(Failure::invalid(format!(
            "the value of the environment variable {name} is refused: it begins as a shell function, which some \
             shells import and run"
        )));
    }
    Ok(())
}

fn too_long(name: &str) -> Failure {
    Failure::new(
        ErrorCode::Exhausted,
        format!(
            "the environment variable {name} is longer than {MAX_ENV_VAR_BYTES} bytes, name and value together"
        ),
    )
}

fn check_count(count: usize) -> Result<(), Failure> {
    if count > MAX_ENV_VARS {
        return Err(Failure::new(
            ErrorCode::Exhausted,
            format!("{count} environment variables, more than {MAX_ENV_VARS}"),
        ));
    }
    Ok(())
}
