//! What several tools check about their parameters.

use std::{collections::BTreeMap, time::Duration};

use agentiso_core::{
    EngineError,
    channel::client::{DEFAULT_MAX_OUTPUT_BYTES, ExecSpec},
    types::InvalidSize,
};
use rmcp::model::JsonObject;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::failure::Failure;

/// Longest time a command may be given, in seconds: a day.
pub(super) const MAX_TIMEOUT_SECS: u64 = 24 * 60 * 60;

/// Most output of each stream that a call may ask for, in bytes: it is held in memory and sent in one message.
pub(super) const MAX_OUTPUT_BYTES: u64 = 16 * 1024 * 1024;

/// Environment variables, as tools take them.
pub(super) type Variables = BTreeMap<String, String>;

/// Reads a tool's parameters.
pub(super) fn parse<T: DeserializeOwned>(arguments: JsonObject) -> Result<T, Failure> {
    serde_json::from_value(Value::Object(arguments)).map_err(|error| {
        Failure::parameter(
            format!("the parameters are not what this tool takes: {error}"),
            "correct them as the tool's input schema says and call again",
        )
    })
}

/// A number within its bounds.
pub(super) fn bounded(what: &str, given: u64, min: u64, max: u64) -> Result<u64, Failure> {
    if (min..=max).contains(&given) {
        return Ok(given);
    }
    Err(Failure::parameter(
        format!("{what} is {given}: it can be {min} to {max}"),
        format!("give {what} a value from {min} to {max}"),
    ))
}

/// A size parameter; its type's default if it was not given.
pub(super) fn size<T>(given: Option<u64>) -> Result<T, Failure>
where
    T: Default + TryFrom<u64, Error = InvalidSize>,
{
    given.map_or(Ok(T::default()), |given| {
        T::try_from(given).map_err(|error| Failure::from(EngineError::from(error)))
    })
}

/// A time limit in seconds.
pub(super) fn timeout(given: Option<u64>, default: Duration) -> Result<Duration, Failure> {
    match given {
        None => Ok(default),
        Some(given) => Ok(Duration::from_secs(bounded("timeout_secs", given, 1, MAX_TIMEOUT_SECS)?)),
    }
}

/// How much of each stream to return.
pub(super) fn output_limit(given: Option<u64>) -> Result<usize, Failure> {
    let Some(given) = given else { return Ok(DEFAULT_MAX_OUTPUT_BYTES) };
    let given = bounded("max_output_bytes", given, 0, MAX_OUTPUT_BYTES)?;
    Ok(usize::try_from(given).unwrap_or(usize::MAX))
}

/// A path in the guest.
pub(super) fn absolute(what: &str, path: &str) -> Result<(), Failure> {
    if path.starts_with('/') && !path.contains('\0') {
        return Ok(());
    }
    Err(Failure::parameter(
        format!("{what} {path:?} is not an absolute path"),
        format!("begin {what} with a slash, as in /root/file"),
    ))
}

/// A command that a shell of the guest runs.
pub(super) fn shell(
    command: &str,
    workdir: Option<String>,
    env: Option<Variables>,
) -> Result<ExecSpec, Failure> {
    if command.trim().is_empty() {
        return Err(Failure::parameter("the command is empty", "say what /bin/sh -c is to run"));
    }
    if command.contains('\0') {
        return Err(Failure::parameter(
            "the command contains a NUL character, which no argument can",
            "leave it out, or write the data with file_write",
        ));
    }
    if let Some(workdir) = &workdir {
        absolute("workdir", workdir)?;
    }
    let mut spec = ExecSpec::shell(command);
    spec.command.workdir = workdir;
    spec.command.env = env.unwrap_or_default();
    Ok(spec)
}

/// Permission bits, as people write them: `0644`, `755`, `0o644`.
pub(super) fn mode(text: &str) -> Result<u32, Failure> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let mode = (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| u32::from_str_radix(digits, 8).ok())
        .flatten()
        .filter(|mode| *mode <= 0o7777);
    mode.ok_or_else(|| {
        Failure::parameter(
            format!("the mode {text:?} is not an octal number up to 7777"),
            "write it as in \"0644\" or \"755\"",
        )
    })
}

/// A parameter that this action needs.
pub(super) fn needed<T>(given: Option<T>, what: &str, action: &str) -> Result<T, Failure> {
    given.ok_or_else(|| {
        Failure::parameter(
            format!("{what} is missing, which the action {action:?} needs"),
            format!("give {what}"),
        )
    })
}

/// A parameter that belongs to another action.
pub(super) fn unwanted<T>(given: &Option<T>, what: &str, action: &str) -> Result<(), Failure> {
    if given.is_none() {
        return Ok(());
    }
    Err(Failure::parameter(
        format!("{what} is of no use to the action {action:?}"),
        format!("leave {what} out"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mode_is_octal_text() {
        for (text, expected) in
            [("0644", 0o644), ("755", 0o755), ("0o644", 0o644), ("7777", 0o7777), ("0", 0)]
        {
            assert_eq!(mode(text).unwrap(), expected, "{text}");
        }
        for bad in ["", "0o", "8", "10000", "-1", "+7", "rw-r--r--", "0x1ff", "99999999999999999999"] {
            assert!(mode(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_hold_at_both_ends() {
        assert!(bounded("x", 0, 1, 3).is_err() && bounded("x", 1, 1, 3).is_ok());
        assert!(bounded("x", 3, 1, 3).is_ok() && bounded("x", 4, 1, 3).is_err());
        assert!(output_limit(Some(MAX_OUTPUT_BYTES)).is_ok());
        assert!(output_limit(Some(MAX_OUTPUT_BYTES + 1)).is_err());
        assert!(timeout(Some(0), Duration::ZERO).is_err());
    }
}
