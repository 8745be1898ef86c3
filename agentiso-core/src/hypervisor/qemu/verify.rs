//! Whether a machine's process is confined as it was asked to be, seen from outside. Flags that a program sets on
//! itself can fail silently; what the kernel says about the process is what holds.

use std::{collections::HashSet, fs, io, os::unix::fs::MetadataExt, path::Path};

/// What a process should look like.
#[derive(Debug)]
pub(super) struct Expected {
    /// The user and group id it should have.
    pub(super) uid: u32,
    /// Whether it was started by root, who can empty what an ordinary user cannot.
    pub(super) by_root: bool,
    /// Device and inode of every descriptor it was given.
    pub(super) passed: HashSet<(u64, u64)>,
    /// Its limit of descriptors.
    pub(super) open_files: u64,
    /// The line of its group of cgroup v2, where it is limited.
    pub(super) group: Option<String>,
}

/// Sockets that a process may have beyond those it was given: the accepted connection on its control socket.
const ACCEPTED_SOCKETS: usize = 1;

/// Kernel objects that a process can make without access to anything. KVM's are made from the device it was given.
const OWN_OBJECTS: [&str; 6] = [
    "anon_inode:[eventfd]",
    "anon_inode:[eventpoll]",
    "anon_inode:[signalfd]",
    "anon_inode:[timerfd]",
    "anon_inode:kvm-",
    "anon_inode:[kvm",
];

/// Checks a process that has done all it will do before it meets its guest. The text says what is not as it should be.
pub(super) fn check(pid: u32, expected: &Expected) -> Result<(), String> {
    let process = Path::new("/proc").join(pid.to_string());
    let unreadable = |error: io::Error| format!("{} cannot be read: {error}", process.display());
    let mut threads = 0;
    for thread in fs::read_dir(process.join("task")).map_err(unreadable)? {
        match fs::read_to_string(thread.map_err(unreadable)?.path().join("status")) {
            Ok(status) => check_status(&status, expected)?,
            // A worker that has ended meanwhile.
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(unreadable(error)),
        }
        threads += 1;
    }
    if threads == 0 {
        return Err("it has no threads".to_owned());
    }
    if let Some(group) = &expected.group {
        let groups = fs::read_to_string(process.join("cgroup")).map_err(unreadable)?;
        check_group(&groups, group)?;
    }
    check_limits(&fs::read_to_string(process.join("limits")).map_err(unreadable)?, expected)?;
    check_descriptors(&process.join("fd"), expected)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

fn check_status(status: &str, expected: &Expected) -> Result<(), String> {
    let fields: std::collections::HashMap<&str, &str> = status
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key, value.trim()))
        .collect();
    let require = |key: &str, wanted: &str| match fields.get(key) {
        Some(&found) if found == wanted => Ok(()),
        found => Err(format!("{key} is {:?} instead of {wanted:?}", found.copied().unwrap_or("missing"))),
    };
    let ids = [expected.uid.to_string().as_str(); 4].join("\t");
    require("Uid", &ids)?;
    if expected.by_root {
        require("Gid", &ids)?;
        require("Groups", "")?;
        require("CapBnd", NO_CAPABILITIES)?;
    }
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        require(set, NO_CAPABILITIES)?;
    }
    require("NoNewPrivs", "1")?;
    require("Seccomp", "2")
}

fn check_group(groups: &str, expected: &str) -> Result<(), String> {
    let found = groups.lines().find(|line| line.starts_with("0::")).unwrap_or("none");
    if found == expected { Ok(()) } else { Err(format!("its group is {found} instead of {expected}")) }
}

const NO_CAPABILITIES: &str = "0000000000000000";

fn check_limits(limits: &str, expected: &Expected) -> Result<(), String> {
    for (name, most) in [("Max core file size", 0), ("Max open files", expected.open_files)] {
        let found = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("missing");
        let values: Vec<&str> = found.split_ascii_whitespace().take(2).collect();
        if values.len() != 2
            || values.iter().any(|value| value.parse::<u64>().map_or(true, |value| value > most))
        {
            return Err(format!("{name} is {found:?} instead of {most}"));
        }
    }
    Ok(())
}

fn check_descriptors(folder: &Path, expected: &Expected) -> Result<(), String> {
    let unreadable = |error: io::Error| format!("{} cannot be read: {error}", folder.display());
    let mut accepted = HashSet::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let (target, metadata) = match fs::read_link(&path).and_then(|link| Ok((link, fs::metadata(&path)?)))
        {
            Ok(found) => found,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(unreadable(error)),
        };
        if expected.passed.contains(&(metadata.dev(), metadata.ino())) {
            continue;
        }
        let target = target.to_string_lossy();
        if OWN_OBJECTS.iter().any(|own| target.starts_with(own)) {
            continue;
        }
        let is_new_socket = target.starts_with("socket:") && accepted.insert(metadata.ino());
        if !is_new_socket || accepted.len() > ACCEPTED_SOCKETS {
            return Err(format!("it has a descriptor that it was not given: {target}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tqemu\nUid:\t7\t7\t7\t7\nGid:\t7\t7\t7\t7\nGroups:\t \nCapInh:\t0000000000000000\n\
        CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\n\
        NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t2\n";
    const LIMITS: &str = "Limit                     Soft Limit           Hard Limit           Units     \n\
        Max core file size        0                    0                    bytes     \n\
        Max open files            1024                 1024                 files     \n";

    fn expected() -> Expected {
        Expected { uid: 7, by_root: true, passed: HashSet::new(), open_files: 1024, group: None }
    }

    #[test]
    fn confined_process_passes() {
        check_status(STATUS, &expected()).unwrap();
        check_limits(LIMITS, &expected()).unwrap();
    }

    #[test]
    fn any_right_too_many_is_noticed() {
        for (from, to) in [
            ("Uid:\t7\t7", "Uid:\t7\t0"),
            ("Gid:\t7", "Gid:\t0"),
            ("Groups:\t ", "Groups:\t0 "),
            ("CapInh:\t0", "CapInh:\t8"),
            ("CapPrm:\t0", "CapPrm:\t8"),
            ("CapEff:\t0", "CapEff:\t8"),
            ("CapBnd:\t0", "CapBnd:\t8"),
            ("CapAmb:\t0", "CapAmb:\t8"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0"),
            ("Seccomp:\t2", "Seccomp:\t0"),
            ("Seccomp:\t2\n", ""),
        ] {
            let status = STATUS.replacen(from, to, 1);
            assert!(status != STATUS && check_status(&status, &expected()).is_err(), "{from} -> {to}");
        }
        for (from, to) in
            [("size        0", "size        1"), ("1024 ", "unlimited "), ("Max open files", "Max opened")]
        {
            let limits = LIMITS.replacen(from, to, 1);
            assert!(limits != LIMITS && check_limits(&limits, &expected()).is_err(), "{from} -> {to}");
        }
    }

    #[test]
    fn another_group_is_noticed() {
        check_group("1:cpu:/\n0::/agentiso/a\n", "0::/agentiso/a").unwrap();
        for groups in ["0::/agentiso/b\n", "0::/\n", "1:cpu:/agentiso/a\n", ""] {
            assert!(check_group(groups, "0::/agentiso/a").is_err(), "{groups}");
        }
    }

    #[test]
    fn descriptor_that_was_not_passed_is_noticed() {
        let _open = fs::File::open("/proc/self/limits").unwrap();

        let complaint = check_descriptors(Path::new("/proc/self/fd"), &expected()).unwrap_err();

        assert!(complaint.contains("not given"), "{complaint}");
    }
}
