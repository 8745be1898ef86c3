//! Settings of single interfaces.

use std::{fs, io, path::PathBuf};

fn path(family: &str, interface: &str, setting: &str) -> PathBuf {
    ["/proc/sys/net", family, "conf", interface, setting].iter().collect()
}

fn put(family: &str, interface: &str, setting: &str, value: &str) -> io::Result<()> {
    fs::write(path(family, interface, setting), value)
}

/// No IPv6 on an interface. A host without IPv6: no effect.
pub(super) fn without_ipv6(interface: &str) -> io::Result<()> {
    match put("ipv6", interface, "disable_ipv6", "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Lets connections between the host's loopback and this interface be: those of forwards. The rules drop all others.
pub(super) fn route_loopback(interface: &str) -> io::Result<()> {
    put("ipv4", interface, "route_localnet", "1")
}

/// Whether packets that come in by an interface are forwarded.
pub(super) fn forwards(interface: &str) -> io::Result<bool> {
    Ok(fs::read_to_string(path("ipv4", interface, "forwarding"))?.trim() != "0")
}

/// Switches forwarding of packets that come in by an interface on or off.
pub(super) fn forward(interface: &str, forward: bool) -> io::Result<()> {
    put("ipv4", interface, "forwarding", if forward { "1" } else { "0" })
}

/// This run of the kernel.
pub(super) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
