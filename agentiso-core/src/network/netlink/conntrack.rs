//! What the kernel remembers of connections.

use std::{io, net::Ipv4Addr};

use super::nft::wire::{Request, Subsystem, attribute, find, nested};

// linux/netfilter/nfnetlink_conntrack.h
const GET: u8 = 1;
const DELETE: u8 = 2;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const TUPLE_IP: u16 = 1;
const IP_SOURCE: u16 = 1;
/// In a filter's flags: the source's IPv4 address has to be the same.
const FLAG_SOURCE: u32 = 1;

const IPV4: u8 = 2;

/// Makes the kernel forget the connections of a machine that is gone, so that neither what is still under way to it
/// nor how it was translated ever meets a later machine with its address. A host whose kernel cannot list connections
/// keeps them until they are over by themselves; the rules let none of their packets through.
pub(super) fn forget(address: Ipv4Addr) -> io::Result<()> {
    // What it began is from it; what it was sent is answered by it.
    for (direction, flags) in [(TUPLE_ORIGINAL, 1), (TUPLE_REPLY, 2)] {
        for connection in connections(address, direction, flags)? {
            let request = Request {
                subsystem: Subsystem::Conntrack,
                message: DELETE,
                family: IPV4,
                dump: false,
                content: connection,
            };
            match request.send() {
                // Over meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                result => drop(result?),
            }
        }
    }
    Ok(())
}

/// What names each connection in which packets of this direction are from this address.
fn connections(address: Ipv4Addr, direction: u16, flags: u16) -> io::Result<Vec<Vec<u8>>> {
    let tuple = nested(direction, &[nested(TUPLE_IP, &[attribute(IP_SOURCE, &address.octets())])]);
    // Kernels before 5.8 do not know of the filter and list all.
    let filter = nested(FILTER, &[attribute(flags, &FLAG_SOURCE.to_ne_bytes())]);
    let request = Request {
        subsystem: Subsystem::Conntrack,
        message: GET,
        family: IPV4,
        dump: true,
        content: [tuple, filter].concat(),
    };
    let listed = match request.send() {
        // No such subsystem.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
            tracing::debug!(%error, "this kernel does not list connections");
            return Ok(Vec::new());
        }
        listed => listed?,
    };
    let is_from = |connection: &&Vec<u8>| {
        let ip = find(connection, direction).and_then(|tuple| find(tuple, TUPLE_IP));
        ip.and_then(|ip| find(ip, IP_SOURCE)) == Some(&address.octets())
    };
    let name = |connection: &Vec<u8>| {
        let part = |kind| find(connection, kind).map(|content| attribute(kind, content));
        let tuple = find(connection, TUPLE_ORIGINAL).map(|tuple| nested(TUPLE_ORIGINAL, &[tuple.to_vec()]));
        [tuple, part(ID), part(ZONE)].into_iter().flatten().flatten().collect()
    };
    Ok(listed.iter().filter(is_from).map(name).collect())
}
