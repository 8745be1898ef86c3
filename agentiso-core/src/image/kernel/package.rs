use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::KernelError;
use crate::image::command::{self, APT_CACHE, APT_GET, DEPMOD, DPKG_DEB};

/// Debian's package that always depends on the newest kernel for virtual machines.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Where a kernel comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KernelSource {
    /// The newest of Debian's kernels for virtual machines, fetched with this host's apt, which checks its
    /// signature. Needs no root.
    Apt,
    /// A Debian kernel package.
    Deb(PathBuf),
    /// What another distribution's package unpacks to.
    Tree {
        /// The kernel: a bzImage or a vmlinux with a PVH note.
        kernel: PathBuf,
        /// Its modules: the folder that is named as the release and holds `modules.dep`.
        modules: PathBuf,
    },
}

impl std::fmt::Display for KernelSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Apt => write!(f, "Debian package {META_PACKAGE}"),
            Self::Deb(file) => write!(f, "package {}", file.display()),
            Self::Tree { kernel, .. } => write!(f, "kernel {}", kernel.display()),
        }
    }
}

/// An unpacked kernel package.
#[derive(Debug)]
pub struct KernelTree {
    /// The kernel, packed or not.
    pub kernel: PathBuf,
    /// The folder of its modules, with `modules.dep`.
    pub modules: PathBuf,
    /// For people: what it was made from, such as the package's file name.
    pub description: String,
}

/// Fetches if need be and unpacks a kernel into `scratch`, an empty folder that the caller removes. Blocks.
///
/// # Errors
/// Nothing to fetch from, no network, no such file, or not a kernel package.
pub fn unpack(source: &KernelSource, scratch: &Path) -> Result<KernelTree, KernelError> {
    match source {
        KernelSource::Apt => unpack_deb(&fetch(scratch)?, scratch),
        KernelSource::Deb(file) => unpack_deb(file, scratch),
        KernelSource::Tree { kernel, modules } => {
            for file in [kernel, &modules.join("modules.dep")] {
                fs::metadata(file).map_err(KernelError::io("read", file))?;
            }
            // The release is the folder's name, so a name such as `.` will not do.
            let modules = fs::canonicalize(modules).map_err(KernelError::io("read", modules))?;
            let description = kernel.display().to_string();
            Ok(KernelTree { kernel: kernel.clone(), modules, description })
        }
    }
}

/// Fetches the package into the folder with apt's own checks. apt's lists are the host's if it has them, else they
/// are fetched too, into the folder: no root needed, nothing of the host changed.
fn fetch(scratch: &Path) -> Result<PathBuf, KernelError> {
    let own_lists = scratch.join("apt-lists");
    let cache = scratch.join("apt-cache");
    let download = scratch.join("download");
    for folder in [&own_lists, &own_lists.join("partial"), &cache, &cache.join("archives/partial"), &download]
    {
        fs::create_dir_all(folder).map_err(KernelError::io("create", folder))?;
    }
    // The folder is private, so apt's own download user could not write to it.
    let mut options = vec![
        "-q".to_owned(),
        "-oAPT::Sandbox::User=root".to_owned(),
        format!("-oDir::Cache={}", cache.display()),
        "-oDebug::NoLocking=1".to_owned(),
    ];
    let package = match newest_package(&options) {
        Ok(Some(package)) => package,
        Err(error @ command::CommandError::Missing { .. }) => return Err(error.into()),
        _ => {
            options.push(format!("-oDir::State::lists={}", own_lists.display()));
            let arguments = options.iter().map(String::as_str).chain(["update"]);
            APT_GET.run("fetch apt's package lists", arguments)?;
            newest_package(&options)?.ok_or_else(|| command::CommandError::Missing {
                program: META_PACKAGE,
                remedy: "this host's apt sources do not have it; give a kernel package or an unpacked kernel instead"
                    .to_owned(),
            })?
        }
    };
    let mut command = APT_GET.command()?;
    command.current_dir(&download).args(&options).args(["download", &package]);
    APT_GET.run_command("fetch the kernel package", command)?;
    only_entry(&download, |name| name.ends_with(".deb"))
}

/// The kernel package that the meta package depends on, if apt knows it.
fn newest_package(options: &[String]) -> Result<Option<String>, command::CommandError> {
    let arguments = options.iter().map(String::as_str).chain(["show", "--no-all-versions", META_PACKAGE]);
    let shown = APT_CACHE.run("ask apt for the newest kernel", arguments)?;
    Ok(kernel_dependency(&shown))
}

/// From `Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)`, the name.
fn kernel_dependency(shown: &str) -> Option<String> {
    let depends = shown.lines().find_map(|line| line.strip_prefix("Depends:"))?;
    let name = depends.split(',').find_map(|item| {
        let name = item.split_whitespace().next()?;
        name.starts_with("linux-image-").then_some(name)
    })?;
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)).then(|| name.to_owned())
}

fn unpack_deb(deb: &Path, scratch: &Path) -> Result<KernelTree, KernelError> {
    fs::metadata(deb).map_err(KernelError::io("read", deb))?;
    // An absolute path can be taken for nothing else, whatever the file is called.
    let deb = std::path::absolute(deb).map_err(KernelError::io("read", deb))?;
    let tree = scratch.join("tree");
    fs::create_dir_all(&tree).map_err(KernelError::io("create", &tree))?;
    DPKG_DEB.run("unpack the kernel package", ["-x".as_ref(), deb.as_os_str(), tree.as_os_str()])?;
    let not_kernel = |_| KernelError::NotBootable {
        file: deb.clone(),
        reason: "the package has no /boot/vmlinuz-* with a folder of modules".to_owned(),
    };
    let kernel = only_entry(&tree.join("boot"), |name| name.starts_with("vmlinuz-")).map_err(not_kernel)?;
    // Debian moves /lib to /usr/lib, one release after the other.
    let modules =
        ["lib/modules", "usr/lib/modules"].iter().map(|folder| tree.join(folder)).find(|dir| dir.is_dir());
    let base = modules.clone().unwrap_or_else(|| tree.join("lib/modules"));
    let modules = only_entry(&base, |_| true).map_err(not_kernel)?;
    let release = modules.file_name().map(ToOwned::to_owned).unwrap_or_default();
    if !modules.join("modules.dep").exists() {
        let root = if base.ends_with("usr/lib/modules") { tree.join("usr") } else { tree.clone() };
        DEPMOD.run("list the kernel's modules", ["-b".as_ref(), root.as_os_str(), release.as_os_str()])?;
    }
    let description = deb.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(KernelTree { kernel, modules, description })
}

/// The one entry of a folder whose name passes; the last by name if there are more.
fn only_entry(folder: &Path, passes: impl Fn(&str) -> bool) -> Result<PathBuf, KernelError> {
    let entries = fs::read_dir(folder).map_err(KernelError::io("list", folder))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(&passes))
        .collect();
    found.sort();
    found.pop().ok_or_else(|| {
        KernelError::io("find what is needed in", folder)(std::io::Error::from(std::io::ErrorKind::NotFound))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_dependency_is_read_from_what_apt_shows() {
        let shown = "Package: linux-image-cloud-amd64\nVersion: 6.1.192-2\nDepends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\nDescription: x\n";
        assert_eq!(kernel_dependency(shown).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
    }

    #[test]
    fn kernel_dependency_refuses_what_is_no_package_name() {
        for shown in ["", "Depends: libc6 (>= 2), zlib1g\n", "Depends: linux-image-$(id)\n", "Depends: \n"] {
            assert_eq!(kernel_dependency(shown), None, "{shown:?}");
        }
    }

    #[test]
    fn unpack_of_a_missing_package_names_the_file() {
        let scratch = tempfile::tempdir().unwrap();
        let error = unpack(&KernelSource::Deb("/nonexistent/k.deb".into()), scratch.path()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/k.deb"), "{error}");
    }
}
