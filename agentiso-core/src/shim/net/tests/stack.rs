//! One flow's TCP, against segments that no stack would send.

use std::{
    io::Read,
    os::{fd::OwnedFd, unix::net::UnixStream},
};

use smoltcp::{
    phy::ChecksumCapabilities,
    time::Instant,
    wire::{IpProtocol, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber},
};

use super::{
    super::{link::Outbound, stack::Stack},
    guest::ip_frame,
    lab::SERVER,
};
use crate::network::user::addresses;

const BUFFER_BYTES: usize = 256 * 1024;

const ETHERNET_HEADER_BYTES: usize = 14;

/// The first number of the machine.
const FIRST: TcpSeqNumber = TcpSeqNumber(1000);

/// The stack of a connection of the machine to a server, and what the machine knows of it.
struct Connection {
    stack: Stack,
    out: Outbound,
    ack: Option<TcpSeqNumber>,
}

impl Connection {
    fn open() -> Self {
        let stack = Stack::listening((SERVER, 80), BUFFER_BYTES, Instant::ZERO).unwrap();
        let mut connection = Self { stack, out: Outbound::new(), ack: None };
        connection.send(TcpControl::Syn, FIRST, b"");
        let (shim, mut machine) = UnixStream::pair().unwrap();
        connection.out.flush(&OwnedFd::from(shim)).unwrap();
        let mut answer = Vec::new();
        machine.read_to_end(&mut answer).unwrap();
        // A length, the Ethernet and the IP header.
        let segment = TcpPacket::new_checked(&answer[4 + ETHERNET_HEADER_BYTES + 20..]).unwrap();
        assert!(segment.syn() && segment.ack());
        connection.ack = Some(segment.seq_number() + 1);
        connection
    }

    fn send(&mut self, control: TcpControl, seq_number: TcpSeqNumber, payload: &[u8]) {
        let segment = TcpRepr {
            src_port: 4000,
            dst_port: 80,
            control,
            seq_number,
            ack_number: self.ack,
            window_len: 64000,
            window_scale: Some(3).filter(|_| control == TcpControl::Syn),
            max_seg_size: None,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload,
        };
        let mut bytes = vec![0; segment.buffer_len()];
        segment.emit(
            &mut TcpPacket::new_unchecked(&mut bytes[..]),
            &addresses::GUEST.into(),
            &SERVER.into(),
            &ChecksumCapabilities::default(),
        );
        let frame = ip_frame(SERVER, IpProtocol::Tcp, &bytes);
        self.stack.poll(Instant::ZERO, Some(&frame[ETHERNET_HEADER_BYTES..]), &mut self.out);
    }

    /// All bytes that came in order.
    fn received(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while self.stack.socket().can_recv() {
            self.stack.receive(|bytes| (bytes.len(), all.extend_from_slice(bytes))).unwrap();
        }
        // The machine is told that there is room again.
        self.stack.poll(Instant::ZERO, None, &mut self.out);
        all
    }
}

#[test]
fn bytes_far_beyond_the_buffer_are_passed_over_and_those_in_order_come() {
    let mut connection = Connection::open();
    let next = FIRST + 1;
    for beyond in [BUFFER_BYTES - 3, BUFFER_BYTES, BUFFER_BYTES + 1, 2 * BUFFER_BYTES] {
        connection.send(TcpControl::None, next + beyond, b"late");
    }
    connection.send(TcpControl::Psh, next, b"in order");
    assert_eq!(connection.received(), b"in order");
}

#[test]
fn buffer_is_filled_to_its_last_byte_and_again() {
    let mut connection = Connection::open();
    let mut next = FIRST + 1;
    for _ in 0..3 {
        let chunk = vec![7; 1024];
        for _ in 0..BUFFER_BYTES / chunk.len() {
            connection.send(TcpControl::None, next, &chunk);
            next += chunk.len();
        }
        // One more than there is room for.
        connection.send(TcpControl::None, next, b"x");
        assert_eq!(connection.received().len(), BUFFER_BYTES);
    }
}

#[test]
fn bytes_behind_the_end_are_no_bytes_of_the_connection() {
    let mut connection = Connection::open();
    let next = FIRST + 1;
    connection.send(TcpControl::Fin, next, b"all");
    assert_eq!(connection.received(), b"all");
    connection.send(TcpControl::None, next + 4 + BUFFER_BYTES - 1, b"late");
    assert_eq!(connection.received(), b"");
}
