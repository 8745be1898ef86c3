//! The configuration file.
//!
//! Every key is documented in docs/configuration.md. What is not a key, or not of the right type, is refused with its line: a
//! setting that was misspelled and passed over would be worse than none.

use std::{
    collections::BTreeSet,
    io::Read as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::{Backend, Config, Requirement, choices::Contradiction};
use crate::hypervisor::{printable, qemu::DiskLimits};

/// Name of the file in the state folder.
pub(super) const IN_STATE_DIR: &str = "agentiso.toml";

/// Where it is looked for if the state folder has none.
pub(crate) const OF_THE_HOST: &str = "/etc/agentiso.toml";

/// Longest file, in bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// Longest time of any kind, in seconds.
const MAX_SECONDS: u32 = 24 * 60 * 60;

/// Most MiB per second, and most MiB beside a guest's memory.
const MAX_MIB: u32 = 1024 * 1024;

const MIB: u64 = 1024 * 1024;
const GIB: u64 = 1024 * MIB;

/// Why a configuration is not used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("could not read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It cannot be written.
    #[error("could not write the configuration {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Others than root and this user could have written it.
    #[error("the configuration {path} is not trusted, {reason}: make it yours or root's, and chmod go-w it")]
    NotTrusted {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A key, a type or a value in it is wrong.
    #[error("the configuration {path} is not valid, {problem}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, and what is wrong, with what might have been meant.
        problem: String,
    },
    /// Its choices cannot all be followed.
    #[error("the configuration contradicts itself: {0}")]
    Contradiction(#[from] Contradiction),
    /// A backend was asked for that cannot be used as configured.
    #[error("{backend} cannot be used: {reason}")]
    Unusable {
        /// Which.
        backend: Backend,
        /// Why, and what to do about it.
        reason: String,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    r#use: BTreeSet<Backend>,
    forbid: BTreeSet<Backend>,
    require: BTreeSet<Requirement>,
    qemu: Option<PathBuf>,
    templates: Option<bool>,
    zfs: Zfs,
    netlink: Netlink,
    vsock: Vsock,
    limits: Limits,
    timeouts: Timeouts,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Zfs {
    dataset: Option<String>,
    reserve_gib: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Netlink {
    range: Option<String>,
    forwards_from: Option<ForwardsFrom>,
    resolver: Option<Ipv4Addr>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ForwardsFrom {
    Loopback,
    Anywhere,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Vsock {
    first_cid: Option<u32>,
    last_cid: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Limits {
    overhead_mib: Option<u32>,
    swap_mib: Option<u32>,
    disk_read_mib_per_s: Option<u32>,
    disk_write_mib_per_s: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Timeouts {
    boot_s: Option<u32>,
    lock_s: Option<u32>,
    stop_grace_s: Option<u32>,
}

/// The text of the file that counts: that of the state folder, else that of the host.
pub(super) fn find(state_dir: &Path) -> Result<Option<(PathBuf, String)>, ConfigError> {
    for path in [state_dir.join(IN_STATE_DIR), PathBuf::from(OF_THE_HOST)] {
        if let Some(text) = read(&path)? {
            return Ok(Some((path, text)));
        }
    }
    Ok(None)
}

/// A file's text; `None` if there is none.
fn read(path: &Path) -> Result<Option<String>, ConfigError> {
    use std::os::unix::fs::MetadataExt;
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    // A state folder that is a file is told by what needs the folder.
    let is_missing = |kind| matches!(kind, std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory);
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if is_missing(error.kind()) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    let reason = if metadata.uid() != 0 && metadata.uid() != rustix::process::geteuid().as_raw() {
        Some(format!("it belongs to user {}", metadata.uid()))
    } else if metadata.mode() & 0o022 != 0 {
        Some(format!("its mode is {:o}", metadata.mode() & 0o7777))
    } else {
        None
    };
    if let Some(reason) = reason {
        return Err(ConfigError::NotTrusted { path: path.to_owned(), reason });
    }
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(failed(std::io::Error::other(format!("it is longer than {MAX_BYTES} bytes"))));
    }
    Ok(Some(text))
}

/// Puts what a file says into a configuration. `path` is for errors.
pub(super) fn apply(config: &mut Config, path: &Path, text: &str) -> Result<(), ConfigError> {
    let invalid = |problem| ConfigError::Invalid { path: path.to_owned(), problem };
    let file: File = toml::from_str(text).map_err(|error| invalid(explain(&error, text)))?;
    let File { r#use, forbid, require, qemu, templates, zfs, netlink, vsock, limits, timeouts } = file;
    config.choices.forced.extend(r#use);
    config.choices.forbidden.extend(forbid);
    config.choices.check()?;
    config.require.extend(require);
    if let Some(qemu) = qemu {
        if !qemu.is_absolute() {
            return Err(invalid(format!("`qemu` is {qemu:?}: it must be an absolute path")));
        }
        config.qemu = Some(qemu);
    }
    config.templates = templates.unwrap_or(config.templates);
    if let Some(dataset) = zfs.dataset {
        config.zfs.dataset = Some(dataset);
    }
    if let Some(gib) = number(zfs.reserve_gib, "zfs.reserve_gib", 0..=MAX_MIB).map_err(invalid)? {
        config.zfs.reserve_bytes = u64::from(gib) * GIB;
    }
    if let Some(range) = netlink.range {
        check_range(&range).map_err(|problem| invalid(format!("`netlink.range`: {problem}")))?;
        config.netlink.range = Some(range);
    }
    if let Some(from) = netlink.forwards_from {
        config.netlink.forwards_from_anywhere = matches!(from, ForwardsFrom::Anywhere);
    }
    config.netlink.resolver = netlink.resolver.or(config.netlink.resolver);
    let first = vsock.first_cid.unwrap_or(*config.vsock_cids.start());
    let last = vsock.last_cid.unwrap_or(*config.vsock_cids.end());
    if first < 3 || last == u32::MAX || first > last {
        return Err(invalid(format!(
            "`vsock`: context ids from {first} to {last} are no range: they begin at 3 at the lowest"
        )));
    }
    config.vsock_cids = first..=last;
    let own = &mut config.limits;
    let mib = 0..=MAX_MIB;
    own.overhead_mib = number(limits.overhead_mib, "limits.overhead_mib", 64..=MAX_MIB)
        .map_err(invalid)?
        .unwrap_or(own.overhead_mib);
    own.swap_mib = number(limits.swap_mib, "limits.swap_mib", mib).map_err(invalid)?.unwrap_or(own.swap_mib);
    let rate = |value, key| number(value, key, 1..=MAX_MIB).map_err(invalid);
    let read = rate(limits.disk_read_mib_per_s, "limits.disk_read_mib_per_s")?;
    let write = rate(limits.disk_write_mib_per_s, "limits.disk_write_mib_per_s")?;
    match (read, write) {
        (None, None) => {}
        (Some(read), Some(write)) => {
            own.disk =
                Some(DiskLimits { read_bytes: u64::from(read) * MIB, write_bytes: u64::from(write) * MIB });
        }
        _ => {
            return Err(invalid(
                "`limits.disk_read_mib_per_s` and `limits.disk_write_mib_per_s` belong together".to_owned(),
            ));
        }
    }
    let time = |value, key| {
        number(value, key, 1..=MAX_SECONDS)
            .map_err(invalid)
            .map(|seconds| seconds.map(|seconds| Duration::from_secs(seconds.into())))
    };
    config.boot_timeout = time(timeouts.boot_s, "timeouts.boot_s")?.unwrap_or(config.boot_timeout);
    config.lock_timeout = time(timeouts.lock_s, "timeouts.lock_s")?.unwrap_or(config.lock_timeout);
    config.stop_grace = time(timeouts.stop_grace_s, "timeouts.stop_grace_s")?.unwrap_or(config.stop_grace);
    Ok(())
}

fn number(
    value: Option<u32>,
    key: &str,
    allowed: std::ops::RangeInclusive<u32>,
) -> Result<Option<u32>, String> {
    match value {
        Some(value) if !allowed.contains(&value) => {
            Err(format!("`{key}` is {value}: it must be {} to {}", allowed.start(), allowed.end()))
        }
        value => Ok(value),
    }
}

#[cfg(feature = "netlink")]
fn check_range(range: &str) -> Result<(), String> {
    range.parse::<crate::network::netlink::Range>().map(drop).map_err(|error| error.to_string())
}

#[cfg(not(feature = "netlink"))]
fn check_range(_: &str) -> Result<(), String> {
    Err("this program was built without the netlink network".to_owned())
}

/// An error of the parser on one line, with its line and what might have been meant.
fn explain(error: &toml::de::Error, text: &str) -> String {
    let line = error.span().map(|span| {
        let before = text.as_bytes().get(..span.start).unwrap_or_default();
        before.iter().filter(|byte| **byte == b'\n').count() + 1
    });
    // It quotes what is in the file, and may be shown on a terminal.
    let message = printable(error.message().as_bytes()).replace(['\n', '\t'], " ");
    let meant = suggestion(&message).map(|name| format!(" (did you mean `{name}`?)")).unwrap_or_default();
    match line {
        Some(line) => format!("line {line}: {message}{meant}"),
        None => format!("{message}{meant}"),
    }
}

/// What is most like the name that a message complains about, of those that it says are expected.
fn suggestion(message: &str) -> Option<String> {
    if !message.starts_with("unknown ") {
        return None;
    }
    let mut names = message.split('`').skip(1).step_by(2);
    let given = names.next()?;
    let (distance, name) = names.map(|name| (distance(given, name), name)).min()?;
    (distance <= given.chars().count().div_ceil(3).max(1)).then(|| name.to_owned())
}

/// How many letters must be put in, taken out or changed to turn one word into the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (number, letter) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], number + 1);
        for (place, candidate) in other.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *candidate);
            diagonal = row[place + 1];
            row[place + 1] = changed.min(diagonal + 1).min(row[place] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
