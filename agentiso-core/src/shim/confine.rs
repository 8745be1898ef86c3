//! What a companion process gives up before it reads the first byte of a guest's.
//!
//! Whoever starts it does what needs privileges (a user of its own, no capabilities); this is what any process can
//! do to itself, done here so that it holds however the process was started: no_new_privs, resource limits, Landlock
//! with nothing allowed, and a seccomp filter.

use std::io;

use landlock::{ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, Scope};
use rustix::process::{Resource, Rlimit};

use super::seccomp;

/// The newest Landlock this was written for. What the kernel lacks of it is left out.
const LANDLOCK: ABI = ABI::V6;

/// What a companion process may still use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    /// Sockets of the internet families.
    pub(super) network: bool,
    /// Longest file it may write, in bytes.
    pub(super) file_bytes: u64,
    /// Descriptors it may have open; less if its starter's limit is lower.
    pub(super) descriptors: u64,
    /// Address space, in bytes.
    pub(super) memory_bytes: u64,
}

/// Gives up everything but the allowance, for good.
///
/// # Errors
/// A limit could not be set, or the kernel has Landlock or seccomp but refuses what was asked. A kernel without
/// Landlock is no error: the process is then confined by the rest.
pub(super) fn confine(allowance: Allowance) -> io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    for (resource, limit) in [
        (Resource::Core, 0),
        (Resource::Fsize, allowance.file_bytes),
        (Resource::Nofile, allowance.descriptors),
        (Resource::As, allowance.memory_bytes),
        // No further process or thread. (Root is exempt; the filter below is not.)
        (Resource::Nproc, 0),
    ] {
        lower(resource, limit)?;
    }
    landlock_nothing(allowance.network).map_err(io::Error::other)?;
    seccomp::restrict(allowance.network)
}

/// Sets both limits of a resource, never above what they are.
fn lower(resource: Resource, wanted: u64) -> io::Result<()> {
    let hard = rustix::process::getrlimit(resource).maximum.map_or(wanted, |hard| hard.min(wanted));
    Ok(rustix::process::setrlimit(resource, Rlimit { current: Some(hard), maximum: Some(hard) })?)
}

/// No file, no signal and no abstract socket of other processes, and no TCP unless the network is allowed.
fn landlock_nothing(network: bool) -> Result<(), landlock::RulesetError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?;
    if !network {
        ruleset = ruleset.handle_access(AccessNet::from_all(LANDLOCK))?;
    }
    ruleset.create()?.restrict_self()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn landlock_leaves_no_file() {
        // Landlock holds for the thread that asks for it.
        let outcome = std::thread::spawn(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            landlock_nothing(true).unwrap();
            std::fs::read("/etc/passwd").map_err(|error| error.kind())
        })
        .join()
        .unwrap();
        assert_eq!(outcome, Err(io::ErrorKind::PermissionDenied));
    }
}
