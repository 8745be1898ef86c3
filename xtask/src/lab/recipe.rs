//! What the lab's host is made of, and the key that changes when any of it does.

use std::{collections::BTreeSet, path::Path, process::Command};

use crate::build;
use crate::packages;
use crate::run::{self, Done, Failure};

/// The lab runs programs that were built on this host, so it is this host's Debian. Only this one has been tried.
pub(crate) const SUITE: &str = "bookworm";

/// Where QEMU comes from, as on a host that `cargo xtask setup` has prepared.
const BACKPORTS: &str = "bookworm-backports";

/// Suites of this host's apt sources that the lab takes packages from.
const SUITES: [&str; 4] = [SUITE, "bookworm-updates", "bookworm-security", BACKPORTS];

/// What is in the lab beyond Debian's essential packages. None that is only recommended.
const PACKAGES: [&str; 20] = [
    // What boots it.
    "busybox-static",
    "kmod",
    "mount",
    // What agentiso uses of a host.
    "e2fsprogs",
    "iproute2",
    "libmnl0",
    "libnftnl11",
    "libzfs4linux",
    "zfs-dkms",
    // What tests make pools with, and look at results with.
    "curl",
    "nftables",
    "procps",
    "python3",
    "socat",
    "util-linux",
    "zfsutils-linux",
    // For people in its shell.
    "iputils-ping",
    "less",
    "strace",
    "tcpdump",
];

/// Taken from backports.
const FROM_BACKPORTS: [&str; 2] = ["qemu-system-x86", "qemu-utils"];

/// How mmdebstrap works. The lab's kernel makes its own /dev.
const OPTIONS: [&str; 5] =
    ["--mode=auto", "--variant=minbase", "--architectures=amd64", "--format=tar", "--skip=output/dev"];

/// What dpkg leaves out.
const LEFT_OUT: [&str; 5] = [
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/lintian/*",
];

/// Runs in the lab's root while it is made: `$1` is that root. A module that was not built is found later.
const INSTALL_QEMU: &str = r#"chroot "$1" apt-get install -y -q --no-install-recommends -t"#;

/// What built the module and is not needed any more is most of the image.
const REMOVE_TOOLS: &str = r#"rm -rf "$1"/usr/lib/gcc "$1"/usr/src "$1"/var/lib/dkms "$1"/var/cache/apt/*.bin "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/*"#;

/// Modules that find the root's disk, in the order in which they are loaded.
pub(crate) const BOOT_MODULES: [&str; 6] =
    ["virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk"];

/// Turns mmdebstrap's tar stream and the kernel's modules into a disk, without mounting anything. A script in the
/// folder of the build: `$1` is the kernel's release, `$2` the tar file of its modules, the others are modules for booting.
pub(crate) const ASSEMBLE: &str = r#"
release=$1 modules=$2
shift 2
mkdir root
tar -C root --numeric-owner -xf root.tar
rm root.tar
tar -C root/usr/lib/modules -xf "$modules"
test -e "root/usr/lib/modules/$release/updates/dkms/zfs.ko" || {
    echo "the ZFS module was not built for $release" >&2
    exit 1
}
depmod -b root "$release"
cp root/bin/busybox busybox
mkdir modules
for module in "$@"; do
    cp "$(find "root/usr/lib/modules/$release/kernel" -name "$module.ko")" modules/
done
mke2fs -q -t ext4 -O ^has_journal -m 0 -d root root.ext4 4G
rm -rf root
"#;

/// The kernel that agentiso gives its machines, which the lab boots too.
pub(crate) struct Kernel {
    /// Such as `6.1.0-56-cloud-amd64`.
    pub(crate) release: String,
    /// The digests of the kernel and of its modules.
    content: String,
}

impl Kernel {
    /// The kernel in the `lib` folder of a state folder.
    pub(crate) fn installed(lib: &Path) -> Done<Self> {
        let path = lib.join("manifest.json");
        let manifest = std::fs::read_to_string(&path).map_err(run::at("read", &path))?;
        Self::parse(&manifest)
            .ok_or_else(|| Failure::new(format!("{} does not say which kernel is there", path.display())))
    }

    fn parse(manifest: &str) -> Option<Self> {
        let release = build::json_text(manifest, "release")?.to_owned();
        let digest = |file: &str| {
            let (_, rest) = manifest.split_once(&format!("\"{file}\""))?;
            build::json_text(rest, "sha256")
        };
        let content = format!("{} {}", digest("vmlinux")?, digest("modules.tar")?);
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-.+_".contains(c);
        (!release.is_empty() && release.chars().all(is_plain)).then_some(Self { release, content })
    }
}

/// Names an image by everything that goes into it. Packages are those of the day on which it is made, but for the
/// kernel: a lab is not made again because some package has a new version.
pub(crate) fn key(kernel: &Kernel) -> String {
    let list = |words: &[&str]| words.join(" ");
    let parts = [
        ASSEMBLE.to_owned(),
        SUITE.to_owned(),
        list(&PACKAGES),
        BACKPORTS.to_owned(),
        list(&FROM_BACKPORTS),
        list(&OPTIONS),
        list(&LEFT_OUT),
        list(&BOOT_MODULES),
        INSTALL_QEMU.to_owned(),
        REMOVE_TOOLS.to_owned(),
        kernel.release.clone(),
        kernel.content.clone(),
    ];
    format!("{:016x}", fnv(parts.iter().flat_map(|part| part.bytes().chain([0]))))
}

/// A digest that is the same whatever compiler built this (FNV-1a).
fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// mmdebstrap's arguments; it writes the root as a tar stream to its standard output.
pub(crate) fn bootstrap_arguments(kernel: &Kernel, sources: &[String]) -> Vec<String> {
    let release = &kernel.release;
    let mut arguments: Vec<String> = OPTIONS.map(str::to_owned).into();
    arguments.push(format!("--include={},linux-headers-{release}", PACKAGES.join(",")));
    arguments.extend(LEFT_OUT.iter().map(|path| format!("--dpkgopt=path-exclude={path}")));
    let qemu = FROM_BACKPORTS.join(" ");
    arguments.push(format!("--customize-hook={INSTALL_QEMU} {BACKPORTS} {qemu}"));
    arguments.push(format!("--customize-hook={REMOVE_TOOLS}"));
    arguments.extend([SUITE.to_owned(), "-".to_owned()]);
    arguments.extend(sources.iter().cloned());
    arguments
}

/// One-line sources for mmdebstrap: the mirrors of this host, with contrib, where ZFS is, and backports, where QEMU is.
pub(crate) fn sources() -> Done<Vec<String>> {
    if packages::debian_release().as_deref() != Some(SUITE) {
        return Err(Failure::new(format!(
            "the lab runs what is built here in a host of the same Debian, and only {SUITE} has been tried: \
             run it there"
        )));
    }
    let format = "--format=$(REPO_URI) $(RELEASE) $(COMPONENT)";
    let targets =
        run::output(Command::new("apt-get").args(["indextargets", format, "Identifier: Packages"]))?;
    let sources = sources_of(&targets);
    if sources.is_empty() {
        return Err(Failure::new(format!("this host's apt sources have no {SUITE} main: add Debian's")));
    }
    Ok(sources)
}

fn sources_of(targets: &str) -> Vec<String> {
    let mut found: BTreeSet<(&str, &str)> = BTreeSet::new();
    for line in targets.lines() {
        if let [uri, suite, "main"] = line.split(' ').collect::<Vec<_>>()[..]
            && SUITES.contains(&suite)
            && uri.starts_with("http")
        {
            found.insert((suite, uri));
        }
    }
    // Backports are where Debian itself is.
    let mirrors: Vec<_> = found.iter().filter(|(suite, _)| *suite == SUITE).map(|(_, uri)| *uri).collect();
    found.extend(mirrors.into_iter().map(|uri| (BACKPORTS, uri)));
    if !found.iter().any(|(suite, _)| *suite == SUITE) {
        return Vec::new();
    }
    found.into_iter().map(|(suite, uri)| format!("deb {uri} {suite} main contrib")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = r#"{ "kernel": { "release": "6.1.0-1-cloud-amd64", "sha256": "aa" }, "files": {
        "modules.tar": { "bytes": 1, "sha256": "bb" }, "vmlinux": { "bytes": 2, "sha256": "cc" } } }"#;

    #[test]
    fn key_changes_with_the_kernel_and_its_modules_only() {
        let of = |manifest: &str| key(&Kernel::parse(manifest).unwrap());

        assert_eq!(of(MANIFEST), of(&MANIFEST.replace("\"aa\"", "\"xx\"")));
        for (from, to) in [("6.1.0-1", "6.1.0-2"), ("\"bb\"", "\"xx\""), ("\"cc\"", "\"xx\"")] {
            assert_ne!(of(MANIFEST), of(&MANIFEST.replace(from, to)), "{from}");
        }
    }

    #[test]
    fn kernel_whose_name_is_no_plain_word_is_refused() {
        assert!(Kernel::parse(&MANIFEST.replace("6.1.0-1", "$(id)")).is_none());
        assert!(Kernel::parse("{}").is_none());
    }

    #[test]
    fn sources_are_debians_with_contrib_and_backports() {
        let targets = "http://a/debian/ bookworm main\nhttp://a/debian/ bookworm-updates main\n\
                       http://s/ bookworm-security main\nhttps://n/ nodistro main\nhttp://d/ bookworm stable\n";
        assert_eq!(
            sources_of(targets),
            [
                "deb http://a/debian/ bookworm main contrib",
                "deb http://a/debian/ bookworm-backports main contrib",
                "deb http://s/ bookworm-security main contrib",
                "deb http://a/debian/ bookworm-updates main contrib",
            ]
        );
        assert!(sources_of("http://s/ bookworm-security main\n").is_empty());
    }
}
