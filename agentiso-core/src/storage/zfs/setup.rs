//! Finding out whether there is a ZFS to use, and setting up the datasets.

use std::{collections::BTreeMap, path::Path};

use super::{
    names::{Container, Root},
    pool::{FileSystem, Pool},
    sys::{LoadError, Zfs},
};
use crate::storage::StorageError;

/// The kernel module's door.
const DEVICE: &str = "/dev/zfs";

fn lacking(what: impl Into<String>, remedy: impl Into<String>) -> StorageError {
    StorageError::Missing { what: what.into(), remedy: remedy.into() }
}

/// Reaches the pool that a dataset is in, and no further.
fn reach(root: &Root, state: &str) -> Result<Pool, StorageError> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if state.is_empty() || !state.bytes().all(valid) {
        return Err(lacking(
            format!("a state folder's id that can be a tag ({state:?})"),
            "letters, digits and - only",
        ));
    }
    if !rustix::process::geteuid().is_root() {
        return Err(lacking("the right to manage ZFS", "run agentiso as root, or use the qcow2 storage"));
    }
    let zfs = Zfs::load().map_err(|error| explain(error, Path::new(DEVICE).exists()))?;
    Ok(Pool::new(zfs, root.clone(), state.to_owned()))
}

/// What to do where ZFS cannot be reached.
fn explain(error: LoadError, has_device: bool) -> StorageError {
    match error {
        LoadError::Library { name, reason } => lacking(
            format!("the library {name} ({reason})"),
            "install OpenZFS 2.1 or newer: on Debian zfsutils-linux and zfs-dkms, of the component contrib",
        ),
        LoadError::Device(number) if !has_device => lacking(
            format!("the kernel's ZFS module (no {DEVICE}, error {number})"),
            "`modprobe zfs`; if there is no such module, install it, on Debian as zfs-dkms",
        ),
        LoadError::Device(number) => StorageError::Io {
            operation: "open",
            object: DEVICE.to_owned(),
            source: std::io::Error::from_raw_os_error(number),
        },
    }
}

/// What there is of these datasets.
fn inspect(pool: &Pool, root: &Root, names: &[String]) -> Result<BTreeMap<String, FileSystem>, StorageError> {
    pool.inspect(names).map_err(|error| match error.missing() {
        true => lacking(
            format!("the pool {}", root.pool()),
            format!(
                "`zpool import {0}` if it is there but not imported, else `zpool create {0} DEVICE`",
                root.pool()
            ),
        ),
        false => error.during("look at", root.as_str()),
    })
}

/// Whether a file system is there. Somebody else's is an error.
fn is_ours(found: Option<&FileSystem>, name: &str, state: &str) -> Result<bool, StorageError> {
    let Some(found) = found else { return Ok(false) };
    match &found.state {
        Some(owner) if owner == state && found.is_file_system => Ok(true),
        Some(owner) if owner != state => Err(lacking(
            format!("a dataset of this state folder, {state} ({name} belongs to the state folder {owner})"),
            "name another dataset",
        )),
        _ => Err(lacking(
            format!("a dataset of agentiso ({name} was made by somebody else)"),
            "name one that does not exist",
        )),
    }
}

/// The root and what it contains.
fn layout(root: &Root) -> Vec<String> {
    let containers = Container::ALL.map(|container| root.container(container));
    std::iter::once(root.as_str().to_owned()).chain(containers).collect()
}

/// Makes what is missing of some datasets, outer ones first.
fn complete(
    pool: &Pool,
    names: &[String],
    found: &BTreeMap<String, FileSystem>,
    state: &str,
) -> Result<(), StorageError> {
    for name in names {
        if is_ours(found.get(name), name, state)? {
            continue;
        }
        match pool.create_file_system(name) {
            // Another process was quicker.
            Err(error) if error.exists() => {}
            result => result.map_err(|error| error.during("make the dataset", name))?,
        }
    }
    Ok(())
}

/// Opens what [`prepare`] made, and makes what is missing in it.
pub(super) fn open(root: &Root, state: &str) -> Result<Pool, StorageError> {
    let pool = reach(root, state)?;
    let names = layout(root);
    let found = inspect(&pool, root, &names)?;
    if !is_ours(found.get(root.as_str()), root.as_str(), state)? {
        return Err(lacking(
            format!("the dataset {}", root.as_str()),
            format!("`agentiso init --zfs {}`", root.as_str()),
        ));
    }
    complete(&pool, &names, &found, state)?;
    Ok(pool)
}

/// Makes the dataset, or checks that it is ours.
pub(super) fn prepare(root: &Root, state: &str) -> Result<(), StorageError> {
    let pool = reach(root, state)?;
    let parent = root.as_str().rsplit_once('/').map_or(root.as_str(), |(parent, _)| parent);
    let names = layout(root);
    let found = inspect(&pool, root, &[&names[..], &[parent.to_owned()]].concat())?;
    if !found.get(parent).is_some_and(|parent| parent.is_file_system) {
        return Err(lacking(format!("the dataset {parent}"), format!("`zfs create {parent}`")));
    }
    complete(&pool, &names, &found, state)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_without_zfs_is_told_what_to_install() {
        let library =
            LoadError::Library { name: "libzfs_core.so.3".to_owned(), reason: "not found".to_owned() };
        let library = explain(library, false).to_string();
        assert!(library.contains("libzfs_core.so.3") && library.contains("zfsutils-linux"), "{library}");
        let module = explain(LoadError::Device(libc::ENOENT), false).to_string();
        assert!(module.contains("modprobe zfs"), "{module}");
        let other = explain(LoadError::Device(libc::EIO), true);
        assert!(matches!(other, StorageError::Io { operation: "open", .. }), "{other}");
    }

    #[test]
    fn dataset_is_ours_if_it_has_our_tag_itself() {
        let found = |state: Option<&str>, is_file_system| {
            Some(FileSystem { is_file_system, state: state.map(str::to_owned) })
        };
        let is_ours = |found: Option<FileSystem>| is_ours(found.as_ref(), "tank/agentiso", "s1");
        assert!(!is_ours(None).unwrap());
        assert!(is_ours(found(Some("s1"), true)).unwrap());
        for (other, says) in [
            (found(Some("s2"), true), "belongs to the state folder s2"),
            (found(None, true), "made by somebody else"),
            (found(Some("s1"), false), "made by somebody else"),
        ] {
            let error = is_ours(other).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
