//! Frames as a machine's kernel would not send them.

use crate::guest::Guest;

pub(crate) const ALL: [u8; 6] = [0xff; 6];
pub(crate) const FOREIGN: [u8; 6] = [0x52, 0x54, 9, 9, 9, 9];

pub(crate) fn mac(guest: &Guest) -> [u8; 6] {
    let bytes: Vec<u8> = guest.mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

pub(crate) fn frame(from: [u8; 6], kind: u16, content: &[u8]) -> Vec<u8> {
    frame_to(ALL, from, kind, content)
}

pub(crate) fn frame_to(to: [u8; 6], from: [u8; 6], kind: u16, content: &[u8]) -> Vec<u8> {
    let mut frame = [to, from].concat();
    frame.extend_from_slice(&kind.to_be_bytes());
    frame.extend_from_slice(content);
    frame.resize(60, 0);
    frame
}

pub(crate) fn ipv4(from: [u8; 4]) -> Vec<u8> {
    ipv4_to([10, 99, 0, 1], from, 17)
}

/// A packet of a protocol, with what are ports for those that have some.
pub(crate) fn ipv4_to(to: [u8; 4], from: [u8; 4], protocol: u8) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0];
    packet.extend_from_slice(&from);
    packet.extend_from_slice(&to);
    // Where br_netfilter is on, a wrong checksum is enough to be dropped.
    let words = packet.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend_from_slice(&[0, 9, 0, 9, 0, 8, 0, 0]);
    packet
}

pub(crate) fn arp(mac: [u8; 6], address: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
    packet.extend_from_slice(&mac);
    packet.extend_from_slice(&address);
    packet.extend_from_slice(&[0, 0, 0, 0, 0, 0, 10, 99, 0, 1]);
    packet
}
