//! `cargo xtask setup`: the host's packages.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use crate::packages::{self, OLDEST_QEMU, PACKAGES, QEMU};
use crate::run::{self, Done, Failure};

/// The file that adds backports to apt's sources, if QEMU has to come from there.
const BACKPORTS_FILE: &str = "/etc/apt/sources.list.d/agentiso-backports.sources";

const MIRROR: &str = "http://deb.debian.org/debian";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Installs what is missing. Nothing is: says so, and takes no time.
pub(crate) fn setup() -> Done {
    if !run::succeeds(Command::new("dpkg-query").arg("--version")) {
        return without_debian();
    }
    let missing = packages::missing()?;
    let qemu = packages::installed_qemu();
    let has_qemu = qemu.is_some_and(|version| version >= OLDEST_QEMU);
    if missing.is_empty() && has_qemu {
        println!("setup: all packages are installed");
        return Ok(());
    }
    match qemu {
        Some(old) if !has_qemu => {
            println!("setup: QEMU {old} is installed, {OLDEST_QEMU} or later is needed")
        }
        None => println!("setup: QEMU is missing"),
        Some(_) => {}
    }
    if !missing.is_empty() {
        println!("setup: missing packages: {}", missing.join(" "));
    }
    let root = Root::find(&missing, has_qemu)?;
    root.apt(&["update"])?;
    if !missing.is_empty() {
        root.apt(&[&["install", "-y", "--no-install-recommends"], &missing[..]].concat())?;
    }
    if !has_qemu {
        install_qemu(&root)?;
    }
    Ok(())
}

fn install_qemu(root: &Root) -> Done {
    let is_recent = |candidate| candidate >= Some(OLDEST_QEMU);
    if is_recent(packages::candidate(QEMU)?)
        && root.apt(&["install", "-y", "--no-install-recommends", QEMU]).is_ok()
    {
        return Ok(());
    }
    let release = packages::debian_release().ok_or_else(|| {
        Failure::new(format!(
            "apt has no QEMU {OLDEST_QEMU} or later, and this is no Debian whose backports could: install one"
        ))
    })?;
    let suite = format!("{release}-backports");
    println!(
        "setup: apt has no QEMU {OLDEST_QEMU} or later that fits: taking it from {suite} ({BACKPORTS_FILE})"
    );
    root.write(Path::new(BACKPORTS_FILE), &backports_source(&suite))?;
    root.apt(&["update"])?;
    root.apt(&["install", "-y", "--no-install-recommends", "-t", &suite, QEMU])
}

fn backports_source(suite: &str) -> String {
    format!(
        "# Added by agentiso's `cargo xtask setup` for QEMU. apt takes nothing from here unless told to.\n\
         Types: deb\nURIs: {MIRROR}\nSuites: {suite}\nComponents: main\nSigned-By: {KEYRING}\n"
    )
}

/// Somebody who may install packages.
enum Root {
    /// We are root.
    Us,
    /// sudo.
    Sudo,
}

impl Root {
    fn find(missing: &[&str], has_qemu: bool) -> Done<Self> {
        let user = run::output(Command::new("id").arg("-u"))?;
        if user.trim() == "0" {
            return Ok(Self::Us);
        }
        // With nobody at the terminal it must not ask for a password.
        let is_attended = std::io::IsTerminal::is_terminal(&std::io::stdin());
        let mut sudo = Command::new("sudo");
        if !is_attended {
            sudo.arg("-n");
        }
        if run::succeeds(sudo.arg(if is_attended { "--version" } else { "true" })) {
            return Ok(Self::Sudo);
        }
        let qemu = if has_qemu { "" } else { QEMU };
        Err(Failure::new(format!(
            "packages are missing, and neither are you root nor does sudo work. As root, run\n  \
             apt-get update && apt-get install -y --no-install-recommends {} {qemu}\n\
             (QEMU must be {OLDEST_QEMU} or later: on Debian 12 add the suite bookworm-backports and install it with -t bookworm-backports)",
            missing.join(" "),
        )))
    }

    fn command(&self, program: &str) -> Command {
        match self {
            Self::Us => Command::new(program),
            Self::Sudo => {
                let mut command = Command::new("sudo");
                command.args(["env", "DEBIAN_FRONTEND=noninteractive", program]);
                command
            }
        }
    }

    fn apt(&self, arguments: &[&str]) -> Done {
        let mut command = self.command("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-oDpkg::Use-Pty=0"]).args(arguments);
        run::run(&mut command)
    }

    fn write(&self, path: &Path, content: &str) -> Done {
        if let Self::Us = self {
            return fs::write(path, content).map_err(run::at("write", path));
        }
        let failed = run::at("write", path);
        let mut tee = self.command("tee");
        let mut child = tee.arg(path).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().map_err(&failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(content.as_bytes()).map_err(&failed)?;
        }
        match child.wait().map_err(&failed)?.success() {
            true => Ok(()),
            false => Err(Failure::new(format!("could not write {}", path.display()))),
        }
    }
}

/// Another distribution: says what is missing, and how Debian calls it.
fn without_debian() -> Done {
    let programs = ["qemu-system-x86_64", "qemu-img", "mke2fs", "depmod", "dpkg-deb", "mmdebstrap", "cpio"];
    let missing: Vec<&str> = programs
        .into_iter()
        .filter(|program| !run::succeeds(Command::new("sh").args(["-c", &format!("command -v {program}")])))
        .collect();
    if missing.is_empty() {
        println!("setup: this is no Debian; all programs that agentiso needs are there");
        return Ok(());
    }
    Err(Failure::new(format!(
        "this is no Debian: install these programs yourself: {}\n(Debian's packages: {} {QEMU})",
        missing.join(" "),
        PACKAGES.join(" ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backports_source_names_the_suite_and_its_key() {
        let source = backports_source("bookworm-backports");
        assert!(
            source.contains("\nSuites: bookworm-backports\n")
                && source.contains("\nSigned-By: /usr/share/keyrings/")
        );
    }
}
