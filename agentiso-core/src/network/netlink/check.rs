//! Whether this host has all it takes. Nothing is made or changed to find out.

use std::io;

use super::{
    ground::{Ground, failed, wait},
    link::{self, Links},
    nft, sys,
};
use crate::network::{MacAddress, NetworkError};

/// A multicast address, which no bridge can have: the kernel refuses to make one with it.
const NO_BRIDGES: MacAddress = MacAddress([1, 0, 0, 0, 0, 0]);

fn missing(what: &str, remedy: impl Into<String>) -> NetworkError {
    NetworkError::Missing { what: what.to_owned(), remedy: remedy.into() }
}

pub(super) fn check(ground: &Ground) -> Result<(), NetworkError> {
    if !rustix::process::geteuid().is_root() {
        let remedy = "run as root, or use the user network, which needs no privileges";
        return Err(missing("the privilege to make network devices", remedy));
    }
    std::fs::File::options().read(true).write(true).open(sys::TUN).map_err(without_tun)?;
    nft::is_there(&ground.table).map_err(without_nftables)?;
    if link::index(&ground.bridge).map_err(failed("look for", "the bridge"))?.is_none() {
        let refusal = wait(async { Links::open()?.add_bridge(&ground.bridge, NO_BRIDGES).await });
        bridges(refusal.map(drop))?;
    }
    range(ground)
}

fn without_tun(error: io::Error) -> NetworkError {
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => {
            "load the kernel module (modprobe tun), or give the container the device (--device /dev/net/tun)"
                .to_owned()
        }
        io::ErrorKind::PermissionDenied => {
            format!(
                "it is there, but cannot be opened ({error}): let the container or service use the device"
            )
        }
        _ => format!("it is there, but cannot be opened ({error}): load the kernel module: modprobe tun"),
    };
    missing(sys::TUN, remedy)
}

fn without_nftables(error: io::Error) -> NetworkError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => missing(
            "the privilege to change the network (CAP_NET_ADMIN)",
            "give it to the container or service (--cap-add NET_ADMIN), or use the user network, which needs no privileges",
        ),
        _ => missing("nftables", format!("load the kernel module: modprobe nf_tables ({error})")),
    }
}

/// What came of the attempt to make a bridge that cannot be.
fn bridges(refusal: io::Result<()>) -> Result<(), NetworkError> {
    match refusal {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            Err(missing("the kernel's support of bridges", "load the kernel module: modprobe bridge"))
        }
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Err(without_nftables(error)),
        // The kernel knows what a bridge is.
        _ => Ok(()),
    }
}

fn range(ground: &Ground) -> Result<(), NetworkError> {
    let range = ground.config.range;
    let found = wait(async { Links::open()?.in_the_way(range, &ground.bridge).await })
        .map_err(failed("look for other users of", format!("the address range {range}")))?;
    match found {
        None => Ok(()),
        Some(other) => Err(NetworkError::Unsupported {
            what: format!(
                "using the address range {range}, while the interface {} has {},",
                other.interface, other.what
            ),
            remedy: "configure another range, or remove the interface if nothing needs it any more"
                .to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(error: NetworkError) -> String {
        assert!(matches!(error, NetworkError::Missing { .. }), "{error:?}");
        error.to_string()
    }

    #[test]
    fn kernel_without_a_part_names_the_module() {
        let os = io::Error::from_raw_os_error;
        for (error, words) in [
            (without_tun(os(libc::ENOENT)), ["/dev/net/tun", "modprobe tun"]),
            (without_tun(os(libc::ENODEV)), ["No such device", "modprobe tun"]),
            (without_tun(os(libc::EPERM)), ["not permitted", "container"]),
            (without_nftables(os(libc::EPROTONOSUPPORT)), ["nftables", "modprobe nf_tables"]),
            (without_nftables(os(libc::EINVAL)), ["nftables", "modprobe nf_tables"]),
            (without_nftables(os(libc::EPERM)), ["CAP_NET_ADMIN", "user network"]),
            (bridges(Err(os(libc::EOPNOTSUPP))).unwrap_err(), ["bridges", "modprobe bridge"]),
        ] {
            let text = text(error);
            assert!(words.iter().all(|word| text.contains(word)), "{text}");
        }
    }

    #[test]
    fn kernel_that_knows_bridges_refuses_the_address_alone() {
        assert!(bridges(Err(io::Error::from_raw_os_error(libc::EADDRNOTAVAIL))).is_ok());
    }
}
