//! Frames that say they are from somebody else.

use agentiso_core::network::NetworkPolicy;

use crate::{
    fixture::{State, counted, in_namespace, start},
    guest::{Guest, sh},
};

const ALL: [u8; 6] = [0xff; 6];
const FOREIGN: [u8; 6] = [0x52, 0x54, 9, 9, 9, 9];

fn mac(guest: &Guest) -> [u8; 6] {
    let bytes: Vec<u8> = guest.mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

fn frame(from: [u8; 6], kind: u16, content: &[u8]) -> Vec<u8> {
    let mut frame = [ALL, from].concat();
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(content);
    frame.resize(60, 0);
    frame
}

fn ipv4(from: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend_from_slice(&from);
    packet.extend_from_slice(&[10, 99, 0, 1, 0, 9, 0, 9, 0, 8, 0, 0]);
    packet
}

fn arp(mac: [u8; 6], address: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
    packet.extend_from_slice(&mac);
    packet.extend_from_slice(&address);
    packet.extend_from_slice(&[0, 0, 0, 0, 0, 0, 10, 99, 0, 1]);
    packet
}

#[test]
fn forged_frames_are_dropped_and_counted() {
    in_namespace(async || {
        let state = State::new();
        let network = state.open().await;
        let policy = NetworkPolicy { allow_internet: true, allow_inter_vm: true, ..NetworkPolicy::default() };
        let guest = start(&network, &state, &policy).await;
        let other = start(&network, &state, &policy).await;
        guest.namespace.sh("ip link set eth0 down");
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
        assert_eq!(counted("to the host"), before.2, "a broadcast frame to one address is not for the host");
        assert!(!sh("ip neigh").contains("52:54:09"));
    });
}
