//! Frames that say they are from somebody else.

use agentiso_core::network::NetworkPolicy;

use crate::{
    fixture::{State, counted, in_namespace, start},
    frames::{FOREIGN, arp, frame, ipv4, mac},
    guest::sh,
};

#[test]
fn forged_frames_are_dropped_and_counted() {
    in_namespace(async || {
        let state = State::new();
        let network = state.open().await;
        let policy = NetworkPolicy { allow_internet: true, allow_inter_vm: true, ..NetworkPolicy::default() };
        let guest = start(&network, &state, &policy).await;
        let other = start(&network, &state, &policy).await;
        // Nothing of their own systems' may be counted among what is forged.
        for each in [&guest, &other] {
            each.namespace.sh("ip link set eth0 down");
        }
        let (own, address) = (mac(&guest), guest.address.octets());
        let theirs = other.address.octets();

        let dropped = [
            ("spoofed IPv4", frame(FOREIGN, 0x0800, &ipv4(address))),
            ("spoofed IPv4", frame(mac(&other), 0x0800, &ipv4(theirs))),
            ("spoofed IPv4", frame(own, 0x0800, &ipv4(theirs))),
            ("spoofed IPv4", frame(own, 0x0800, &ipv4([127, 0, 0, 1]))),
            ("spoofed ARP", frame(own, 0x0806, &arp(own, [10, 99, 0, 1]))),
            ("spoofed ARP", frame(own, 0x0806, &arp(own, theirs))),
            ("spoofed ARP", frame(own, 0x0806, &arp(FOREIGN, address))),
            ("spoofed ARP", frame(FOREIGN, 0x0806, &arp(own, address))),
            ("IPv6", frame(own, 0x86dd, &[0x60; 40])),
            ("other protocols", frame(own, 0x8100, &[0; 46])),
            ("other protocols", frame(own, 0x88cc, &[0; 46])),
        ];
        for (purpose, bytes) in dropped {
            let before = counted(purpose);
            guest.forge(&bytes);
            assert_eq!(counted(purpose), before + 1, "{purpose}: {bytes:02x?}");
        }

        let before = (counted("spoofed IPv4"), counted("spoofed ARP"), counted("to the host"));
        guest.forge(&frame(own, 0x0806, &arp(own, address)));
        guest.forge(&frame(own, 0x0800, &ipv4(address)));
        assert_eq!((counted("spoofed IPv4"), counted("spoofed ARP")), (before.0, before.1), "true ones pass");
        assert_eq!(counted("to the host"), before.2 + 1, "and end where the host's own services begin");
        assert!(!sh("ip neigh").contains("52:54:09"));
    });
}
