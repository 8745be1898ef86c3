//! What a machine may reach.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::route::Routes;
use crate::network::{NetworkPolicy, user::addresses};

/// Where name servers listen.
pub(super) const DNS_PORT: u16 = 53;

/// Decides about every connection and datagram of a machine. What it does not allow does not happen.
pub(super) struct Guard {
    policy: NetworkPolicy,
    resolvers: Vec<IpAddr>,
    /// Which of the resolvers is asked; the next one when it did not answer.
    resolver: usize,
    routes: Routes,
}

/// What becomes of what a machine sends to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes there.
    Direct(SocketAddr),
    /// It is a question to the shim's name server, and goes to one of the host's.
    Resolver(SocketAddr),
    /// It does not happen.
    Refused,
}

impl Guard {
    /// Allows nothing yet.
    pub(super) fn new(routes: Routes) -> Self {
        Self { policy: NetworkPolicy::default(), resolvers: Vec::new(), resolver: 0, routes }
    }

    pub(super) fn set(&mut self, policy: NetworkPolicy, resolvers: Vec<IpAddr>) {
        self.policy = policy;
        self.resolvers = resolvers;
        self.resolver = 0;
    }

    pub(super) fn resolver_count(&self) -> usize {
        self.resolvers.len()
    }

    /// Asks the next resolver from now on.
    pub(super) fn next_resolver(&mut self) {
        self.resolver = (self.resolver + 1) % self.resolvers.len().max(1);
    }

    /// Decides about a destination. The host's own addresses are asked of the kernel each time, for they change.
    pub(super) fn judge(&mut self, address: Ipv4Addr, port: u16) -> Verdict {
        if !self.policy.allow_internet || port == 0 {
            return Verdict::Refused;
        }
        if address == addresses::RESOLVER && port == DNS_PORT {
            return self
                .resolvers
                .get(self.resolver)
                .map_or(Verdict::Refused, |resolver| Verdict::Resolver((*resolver, DNS_PORT).into()));
        }
        let port_allowed = self.policy.allowed_ports.is_empty() || self.policy.allowed_ports.contains(&port);
        if port_allowed && is_global_enough(address) && self.routes.leaves_host(address) {
            Verdict::Direct((address, port).into())
        } else {
            Verdict::Refused
        }
    }
}

/// Refuses what is never another host's, whatever the host's routes say.
fn is_global_enough(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    let own_or_none = first == 0 || address.is_loopback() || addresses::is_own(address);
    // 240.0.0.0/4 is reserved, and ends in the broadcast address.
    let many = address.is_multicast() || first >= 240;
    !(own_or_none || many || address.is_link_local())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(policy: NetworkPolicy) -> Guard {
        let mut guard = Guard::new(Routes::open().unwrap());
        guard.set(
            policy,
            vec![IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(Ipv4Addr::new(9, 9, 9, 9))],
        );
        guard
    }

    fn internet() -> NetworkPolicy {
        NetworkPolicy { allow_internet: true, ..NetworkPolicy::default() }
    }

    #[test]
    fn addresses_that_are_no_other_hosts_are_refused() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.0.1",
            "169.254.169.254",
            "169.254.0.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "10.0.2.0",
            "10.0.2.2",
            "10.0.2.15",
            "10.0.2.255",
        ] {
            assert!(!is_global_enough(text.parse().unwrap()), "{text}");
        }
        for text in ["1.0.0.0", "10.0.1.255", "10.0.3.0", "128.0.0.1", "169.253.1.1", "223.255.255.255"] {
            assert!(is_global_enough(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn nothing_is_allowed_without_internet() {
        let mut guard = guard(NetworkPolicy::default());
        assert_eq!(guard.judge(Ipv4Addr::new(1, 1, 1, 1), 80), Verdict::Refused);
        assert_eq!(guard.judge(addresses::RESOLVER, DNS_PORT), Verdict::Refused);
    }

    #[test]
    fn name_server_is_the_hosts_even_on_its_loopback() {
        let mut guard = guard(internet());
        assert_eq!(
            guard.judge(addresses::RESOLVER, DNS_PORT),
            Verdict::Resolver("127.0.0.53:53".parse().unwrap())
        );
    }

    #[test]
    fn name_server_goes_through_whatever_the_ports() {
        let mut guard = guard(NetworkPolicy { allowed_ports: vec![443], ..internet() });
        assert_ne!(guard.judge(addresses::RESOLVER, DNS_PORT), Verdict::Refused);
    }

    #[test]
    fn name_server_has_no_other_port() {
        assert_eq!(guard(internet()).judge(addresses::RESOLVER, 80), Verdict::Refused);
    }

    #[test]
    fn resolvers_take_turns() {
        let mut guard = guard(internet());
        guard.next_resolver();
        assert_eq!(guard.judge(addresses::RESOLVER, 53), Verdict::Resolver("9.9.9.9:53".parse().unwrap()));
        guard.next_resolver();
        assert_eq!(guard.judge(addresses::RESOLVER, 53), Verdict::Resolver("127.0.0.53:53".parse().unwrap()));
    }
}
