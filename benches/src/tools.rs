//! Programs that agentiso is compared with, where this host has them or Debian does.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::{Done, home, run::Bench};

/// The path of a program.
pub(crate) fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Debian's packages of these names, downloaded once and not installed.
///
/// # Errors
/// This is no Debian, or its packages cannot be reached.
pub(crate) fn packages(names: &[&str]) -> Done<Vec<PathBuf>> {
    let folder = home::folder().join("packages");
    fs::create_dir_all(&folder)?;
    let mut found = Vec::new();
    for name in names {
        if package(&folder, name)?.is_none() {
            let mut command = Command::new("timeout");
            // As root apt wants to become a user who cannot enter here; it then goes on as root, with a warning.
            command.args(["60", "apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", name]);
            let output = command.current_dir(&folder).stdin(Stdio::null()).output()?;
            if !output.status.success() {
                let reason = String::from_utf8_lossy(&output.stderr);
                let reason = reason.lines().next().unwrap_or("no reason given");
                return Err(Bench::error(format!("Debian's package {name} could not be had: {reason}")));
            }
        }
        found.push(package(&folder, name)?.ok_or("apt-get left no package")?);
    }
    Ok(found)
}

fn package(folder: &std::path::Path, name: &str) -> std::io::Result<Option<PathBuf>> {
    let beginning = format!("{name}_");
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let file = entry.file_name();
        let file = file.to_string_lossy();
        if file.starts_with(&beginning) && file.ends_with(".deb") {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// A program of a Debian package, from PATH or else unpacked beside the samples.
pub(crate) fn program(name: &str, package: &str) -> Done<PathBuf> {
    if let Some(path) = in_path(name) {
        return Ok(path);
    }
    let folder = home::folder().join("tools");
    let path = folder.join("usr/bin").join(name);
    if !path.is_file() {
        for file in packages(&[package])? {
            let unpacked = Command::new("dpkg-deb").arg("-x").arg(file).arg(&folder).status()?;
            if !unpacked.success() {
                return Err(Bench::error(format!("dpkg-deb could not unpack {package}")));
            }
        }
    }
    if path.is_file() { Ok(path) } else { Err(Bench::error(format!("{package} has no {name}"))) }
}
