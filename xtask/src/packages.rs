//! What agentiso needs of Debian, and what of it is there.

use std::{fmt, fs, process::Command};

use crate::run::{self, Done, Failure};

/// The oldest QEMU that agentiso works with: 8.2 brought `rom=off` for RAM files.
pub(crate) const OLDEST_QEMU: Version = Version { major: 8, minor: 2 };

/// QEMU, which may have to come from backports.
pub(crate) const QEMU: &str = "qemu-system-x86";

/// What agentiso itself calls, and what its tests look at its results with.
pub(crate) const PACKAGES: [&str; 21] = [
    "build-essential",
    "ca-certificates",
    "cpio",
    "curl",
    "debian-archive-keyring",
    "e2fsprogs",
    "fakechroot",
    "fakeroot",
    "iproute2",
    "kmod",
    "libmnl-dev",
    "libnftnl-dev",
    "lz4",
    "mmdebstrap",
    "nftables",
    "pkg-config",
    "qemu-utils",
    "strace",
    "uidmap",
    "xz-utils",
    "zstd",
];

/// As much of a version as matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    major: u32,
    minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Version {
    /// From Debian's `1:10.0.2+ds-2` or QEMU's `10.0.2`.
    fn parse(text: &str) -> Option<Self> {
        let upstream = text.split_once(':').map_or(text, |(_, rest)| rest);
        let mut numbers = upstream.split(|c: char| !c.is_ascii_digit());
        Some(Self { major: numbers.next()?.parse().ok()?, minor: numbers.next()?.parse().ok()? })
    }
}

/// The version of the QEMU in PATH.
pub(crate) fn installed_qemu() -> Option<Version> {
    let output = Command::new("qemu-system-x86_64").arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Version::parse(text.lines().next()?.split_once("version ")?.1)
}

/// The version that apt would install.
pub(crate) fn candidate(package: &str) -> Done<Option<Version>> {
    let policy = run::output(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C"))?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:")).map(str::trim);
    Ok(version.and_then(Version::parse))
}

/// The packages of the list that are not installed.
pub(crate) fn missing() -> Done<Vec<&'static str>> {
    let query = Command::new("dpkg-query")
        .args(["-W", "-f=${Package} ${db:Status-Status}\n"])
        .args(PACKAGES)
        .output();
    // It ends with an error if it does not know one of them; that one is then not in the list.
    let output = query.map_err(|error| Failure::new(format!("could not run dpkg-query: {error}")))?;
    let listed = String::from_utf8_lossy(&output.stdout);
    let installed: Vec<&str> = listed.lines().filter_map(|line| line.strip_suffix(" installed")).collect();
    Ok(PACKAGES.into_iter().filter(|package| !installed.contains(package)).collect())
}

/// The code name of this Debian, such as `bookworm`.
pub(crate) fn debian_release() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim_matches('"'))
    };
    (field("ID") == Some("debian")).then(|| field("VERSION_CODENAME").map(str::to_owned)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_debian_and_qemu_are_read() {
        for (text, major, minor) in [
            ("1:10.0.2+ds-2+deb13u1~bpo12+1", 10, 0),
            ("1:7.2+dfsg-7+deb12u16", 7, 2),
            ("8.2.0 (Debian)", 8, 2),
        ] {
            assert_eq!(Version::parse(text), Some(Version { major, minor }), "{text}");
        }
        assert_eq!(Version::parse("(none)"), None);
        assert!(
            Version { major: 10, minor: 0 } > OLDEST_QEMU && Version { major: 8, minor: 1 } < OLDEST_QEMU
        );
    }
}
