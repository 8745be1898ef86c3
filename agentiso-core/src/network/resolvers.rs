//! The host's name servers.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

/// Where the host names them.
pub(crate) const RESOLV_CONF: &str = "/etc/resolv.conf";

/// As many as the host's own resolver looks at (MAXNS of resolv.h).
const MAX_RESOLVERS: usize = 3;

/// Longest resolv.conf that is read, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// The name servers that this host asks, in order; the one on its loopback if none is named, as resolv.conf(5) says.
pub(crate) fn of_host(resolv_conf: &Path) -> Vec<IpAddr> {
    use std::io::Read;
    let mut text = Vec::new();
    // A host without the file asks its loopback, like one whose file names nobody.
    if let Ok(file) = std::fs::File::open(resolv_conf) {
        let _ = file.take(MAX_FILE_BYTES).read_to_end(&mut text);
    }
    parse(&String::from_utf8_lossy(&text))
}

fn parse(text: &str) -> Vec<IpAddr> {
    let servers: Vec<IpAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            // An address with a zone (fe80::1%eth0) is left out: it means something only together with the link.
            (words.next()? == "nameserver").then(|| words.next()?.parse().ok())?
        })
        .take(MAX_RESOLVERS)
        .collect();
    if servers.is_empty() { vec![IpAddr::V4(Ipv4Addr::LOCALHOST)] } else { servers }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<String> {
        parse(text).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn name_servers_are_read_in_order() {
        let text = "# nameserver 1.1.1.1\nsearch lan\nnameserver 127.0.0.53\n nameserver\t2001:db8::1 \nnameserver x\n";
        assert_eq!(parsed(text), ["127.0.0.53", "2001:db8::1"]);
    }

    #[test]
    fn no_more_than_three_are_taken() {
        let text = "nameserver 1.0.0.1\nnameserver 1.0.0.2\nnameserver 1.0.0.3\nnameserver 1.0.0.4\n";
        assert_eq!(parsed(text), ["1.0.0.1", "1.0.0.2", "1.0.0.3"]);
    }

    #[test]
    fn host_without_any_asks_its_loopback() {
        assert_eq!(parsed("options edns0\n"), ["127.0.0.1"]);
        assert_eq!(of_host(Path::new("/nonexistent")), [IpAddr::V4(Ipv4Addr::LOCALHOST)]);
    }
}
