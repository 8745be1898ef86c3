//! Whether a machine's process is confined as it was asked to be, seen from outside. Flags that a program sets on
//! itself can fail silently; what the kernel says about the process is what holds.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Device and inode of a file.
pub(super) type Identity = (u64, u64);

/// What a process should look like.
#[derive(Debug)]
pub(super) struct Expected {
    /// The user and group id it should have.
    pub(super) uid: u32,
    /// Whether it was started by root, who can empty what an ordinary user cannot.
    pub(super) by_root: bool,
    /// Every descriptor it was given.
    pub(super) passed: HashSet<Identity>,
    /// Its limit of descriptors.
    pub(super) open_files: u64,
    /// The line of its group of cgroup v2, where it is limited.
    pub(super) group: Option<String>,
}

/// The Unix sockets of this thread's network namespace, which is that of whoever connects to a machine. To read it takes some
/// 50 µs for each machine of the host.
const UNIX_SOCKETS: &str = "/proc/thread-self/net/unix";

/// The flag of a socket that listens, in that table.
const LISTENS: u32 = 1 << 16;

/// How often descriptors are looked at in vain because some are closed meanwhile.
const LOOKS: usize = 20;

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

/// Every descriptor must have been passed, be of the process's own making, or be a connection to a listening socket that was
/// passed: other processes may try to reach the agent of a machine as soon as its sockets are there.
fn check_descriptors(folder: &Path, expected: &Expected) -> Result<(), String> {
    for _ in 0..LOOKS {
        let connections = connections(folder, expected)?;
        let table = fs::read_to_string(UNIX_SOCKETS)
            .map_err(|error| format!("{UNIX_SOCKETS} cannot be read: {error}"))?;
        let unknown: Vec<_> = connections
            .iter()
            .filter(|(_, (device, inode))| {
                let listeners = |inode| expected.passed.contains(&(*device, inode));
                !is_accepted(&table, *inode, listeners)
            })
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        // A connection that has ended is not in the table.
        if let Some((path, _)) = unknown.iter().find(|(path, id)| identity(path).is_ok_and(|now| now == *id))
        {
            return Err(not_given(&fs::read_link(path).unwrap_or_default()));
        }
    }
    Err("its connections come and go faster than they can be looked at".to_owned())
}

/// The sockets in a folder of descriptors that were not passed.
fn connections(folder: &Path, expected: &Expected) -> Result<Vec<(PathBuf, Identity)>, String> {
    let unreadable = |error: io::Error| format!("{} cannot be read: {error}", folder.display());
    let mut connections: Vec<(PathBuf, Identity)> = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let (target, id) = match fs::read_link(&path).and_then(|link| Ok((link, identity(&path)?))) {
            Ok(found) => found,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(unreadable(error)),
        };
        let text = target.to_string_lossy();
        if expected.passed.contains(&id) || OWN_OBJECTS.iter().any(|own| text.starts_with(own)) {
            continue;
        }
        // The same connection twice is one that somebody handed out.
        if !text.starts_with("socket:") || connections.iter().any(|(_, other)| *other == id) {
            return Err(not_given(&target));
        }
        connections.push((path, id));
    }
    Ok(connections)
}

fn not_given(target: &Path) -> String {
    format!("it has a descriptor that it was not given: {}", target.display())
}

fn identity(path: &Path) -> io::Result<Identity> {
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Whether a socket was accepted from one that listens and was passed: it has that one's name. The other end of a connection
/// has none, and nobody but QEMUs accepts at such names.
fn is_accepted(table: &str, inode: u64, is_passed: impl Fn(u64) -> bool) -> bool {
    let sockets = || table.lines().filter_map(UnixSocket::parse);
    let Some(connection) = sockets().find(|socket| socket.inode == inode && !socket.listens) else {
        return false;
    };
    sockets().any(|socket| socket.listens && socket.name == connection.name && is_passed(socket.inode))
}

/// A line of the table of Unix sockets that have a name.
struct UnixSocket<'a> {
    listens: bool,
    inode: u64,
    name: &'a str,
}

impl<'a> UnixSocket<'a> {
    /// Number, references, protocol, flags, type, state, inode, name; the last may hold blanks, or not be there.
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = [""; 7];
        let mut rest = line;
        for field in &mut fields {
            (*field, rest) = rest.split_once(' ').map(|(field, behind)| (field, behind.trim_start()))?;
        }
        let [_, _, _, flags, _, _, inode] = fields;
        let flags = u32::from_str_radix(flags, 16).ok()?;
        Some(Self { listens: flags & LISTENS != 0, inode: inode.parse().ok()?, name: rest })
    }
}

#[cfg(test)]
mod tests {
    use std::os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    };
    use std::time::{Duration, Instant};

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

    /// A process that has three descriptors, and what whoever runs the tests leaves open for their children.
    struct Process(std::process::Child);

    impl Process {
        fn with([input, output, errors]: [OwnedFd; 3]) -> Self {
            let mut sleep = std::process::Command::new("sleep");
            let process = Self(sleep.arg("1000").stdin(input).stdout(output).stderr(errors).spawn().unwrap());
            // It has the name once it has nothing of this process any more.
            process.wait_until(|folder| fs::read(folder.join("comm")).unwrap() == b"sleep\n");
            // Its libraries are closed when it sleeps.
            process.wait_until(|folder| fs::read_to_string(folder.join("wchan")).unwrap().contains("sleep"));
            process
        }

        fn wait_until(&self, is_so: impl Fn(&Path) -> bool) {
            let begun = Instant::now();
            while !is_so(&self.folder()) {
                assert!(begun.elapsed() < Duration::from_secs(60), "it does not sleep");
                std::thread::sleep(Duration::from_millis(1));
            }
        }

        fn folder(&self) -> PathBuf {
            Path::new("/proc").join(self.0.id().to_string())
        }

        fn check(&self, passed: &OwnedFd) -> Result<(), String> {
            let folder = self.folder().join("fd");
            let mut all: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
            all.retain(|path| ["0", "1", "2"].iter().all(|ours| !path.ends_with(ours)));
            all.push(PathBuf::from(format!("/proc/self/fd/{}", passed.as_raw_fd())));
            let passed = all.iter().map(|path| identity(path).unwrap()).collect();
            check_descriptors(&folder, &Expected { passed, ..expected() })
        }
    }

    impl Drop for Process {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn connections_are_those_to_sockets_that_were_passed() {
        let folder = tempfile::tempdir().unwrap();
        let listen = |name: &str| UnixListener::bind(folder.path().join(name)).unwrap();
        let (given, other) = (listen("a name"), listen("another"));
        let connect = |listener: &UnixListener| {
            let name = listener.local_addr().unwrap();
            let client = UnixStream::connect_addr(&name).unwrap();
            (client, OwnedFd::from(listener.accept().unwrap().0))
        };
        let (one, two, three, strange) = (connect(&given), connect(&given), connect(&given), connect(&other));
        let given = OwnedFd::from(given);
        let copy = |fd: &OwnedFd| fd.try_clone().unwrap();

        Process::with([copy(&given), copy(&one.1), copy(&given)]).check(&given).unwrap();
        Process::with([copy(&one.1), copy(&two.1), copy(&three.1)]).check(&given).unwrap();
        for three in [
            [copy(&one.1), copy(&two.1), copy(&strange.1)],
            [copy(&one.1), copy(&two.1), one.0.into()],
            [copy(&one.1), copy(&two.1), UnixStream::pair().unwrap().0.into()],
            [copy(&one.1), copy(&given), copy(&one.1)],
            [copy(&given), copy(&given), copy(&strange.1)],
            [copy(&given), copy(&one.1), other.into()],
        ] {
            let complaint = Process::with(three).check(&given).unwrap_err();
            assert!(complaint.contains("not given: socket:["), "{complaint}");
        }
    }

    #[test]
    fn descriptor_that_was_not_passed_is_noticed() {
        let _open = fs::File::open("/proc/self/limits").unwrap();

        let complaint = check_descriptors(Path::new("/proc/self/fd"), &expected()).unwrap_err();

        assert!(complaint.contains("not given"), "{complaint}");
    }
}
