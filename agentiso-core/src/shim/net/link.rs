//! The stream socket to QEMU: frames behind their 4-byte big-endian length, in both directions.

use std::{io, os::fd::OwnedFd};

use rustix::io::Errno;
use smoltcp::wire::{ETHERNET_HEADER_LEN, EthernetAddress, EthernetFrame, EthernetProtocol};

use crate::network::user::addresses;

/// Longest frame QEMU sends (its NET_BUFSIZE). A longer one is an attack, and the stream is lost with it.
const MAX_FRAME_BYTES: usize = 4096 + 65536;

/// Bytes of the length before each frame.
const LENGTH_BYTES: usize = 4;

/// Input buffer, in bytes: always room for a whole frame, usually for many.
const INPUT_BYTES: usize = 4 * (MAX_FRAME_BYTES + LENGTH_BYTES);

/// Output waiting for QEMU, in bytes, from which on nothing is added to it that can wait. What cannot (an answer to a
/// frame) is at most one frame for each one read, and none is read meanwhile.
const OUTPUT_LIMIT_BYTES: usize = 512 * 1024;

/// Frames on their way in.
pub(super) struct Inbound {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

/// Whether a descriptor has more to give or take now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It would block.
    Blocked,
    /// There may be more.
    More,
    /// It has ended.
    Ended,
}

impl Inbound {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; INPUT_BYTES], start: 0, end: 0 }
    }

    /// Reads once.
    pub(super) fn fill(&mut self, socket: &OwnedFd) -> io::Result<Progress> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        match rustix::io::read(socket, &mut self.buffer[self.end..]) {
            Ok(0) => Ok(Progress::Ended),
            Ok(count) => {
                self.end += count;
                Ok(Progress::More)
            }
            Err(Errno::AGAIN) => Ok(Progress::Blocked),
            Err(Errno::INTR) => Ok(Progress::More),
            Err(Errno::CONNRESET) => Ok(Progress::Ended),
            Err(error) => Err(error.into()),
        }
    }

    /// The next whole frame that was read, if there is one.
    pub(super) fn next(&mut self) -> io::Result<Option<&[u8]>> {
        let unread = &self.buffer[self.start..self.end];
        let Some((header, rest)) = unread.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let len = usize::try_from(u32::from_be_bytes(*header)).unwrap_or(usize::MAX);
        if len > MAX_FRAME_BYTES {
            return Err(io::Error::other(format!("a frame that announces {len} bytes: the stream is lost")));
        }
        if rest.len() < len {
            return Ok(None);
        }
        let frame = self.start + LENGTH_BYTES;
        self.start = frame + len;
        Ok(Some(&self.buffer[frame..frame + len]))
    }
}

/// Frames on their way out.
pub(super) struct Outbound {
    buffer: Vec<u8>,
    start: usize,
    guest: EthernetAddress,
}

impl Outbound {
    pub(super) fn new() -> Self {
        Self { buffer: Vec::new(), start: 0, guest: EthernetAddress::BROADCAST }
    }

    /// The machine's MAC address, learned from what it sends: a restored machine has the one it was made with.
    pub(super) fn guest(&self) -> Option<EthernetAddress> {
        Some(self.guest).filter(|guest| *guest != EthernetAddress::BROADCAST)
    }

    pub(super) fn learn_guest(&mut self, address: EthernetAddress) {
        if address.is_unicast() {
            self.guest = address;
        }
    }

    /// Whether more should be added.
    pub(super) fn has_room(&self) -> bool {
        self.buffer.len() - self.start < OUTPUT_LIMIT_BYTES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.buffer.len()
    }

    /// Adds a frame to the machine with `len` bytes of content, which `fill` writes.
    pub(super) fn frame<R>(
        &mut self,
        kind: EthernetProtocol,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        let destination = self.guest;
        self.frame_to(destination, kind, len, fill)
    }

    /// As [`Outbound::frame`], to another address than the machine's (broadcast).
    pub(super) fn frame_to<R>(
        &mut self,
        destination: EthernetAddress,
        kind: EthernetProtocol,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        let place = self.buffer.len();
        let frame_len = ETHERNET_HEADER_LEN + len;
        self.buffer.resize(place + LENGTH_BYTES + frame_len, 0);
        let (length, frame) = self.buffer[place..].split_at_mut(LENGTH_BYTES);
        length.copy_from_slice(&u32::try_from(frame_len).unwrap_or_default().to_be_bytes());
        let mut header = EthernetFrame::new_unchecked(&mut *frame);
        header.set_dst_addr(destination);
        header.set_src_addr(EthernetAddress(addresses::GATEWAY_MAC));
        header.set_ethertype(kind);
        fill(&mut frame[ETHERNET_HEADER_LEN..])
    }

    /// Writes until nothing is left or the socket takes no more.
    pub(super) fn flush(&mut self, socket: &OwnedFd) -> io::Result<Progress> {
        while self.start < self.buffer.len() {
            match super::write_to_peer(socket, &self.buffer[self.start..]) {
                Ok(count) => self.start += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.buffer.drain(..self.start);
                    self.start = 0;
                    return Ok(Progress::Blocked);
                }
                Err(Errno::PIPE | Errno::CONNRESET) => return Ok(Progress::Ended),
                Err(error) => return Err(error.into()),
            }
        }
        self.buffer.clear();
        self.start = 0;
        Ok(Progress::More)
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::net::UnixStream};

    use super::*;

    fn fed(bytes: &[u8]) -> Inbound {
        let (mut qemu, shim) = UnixStream::pair().unwrap();
        qemu.write_all(bytes).unwrap();
        let mut inbound = Inbound::new();
        inbound.fill(&shim.into()).unwrap();
        inbound
    }

    #[test]
    fn frames_come_out_whole_and_in_order() {
        let mut inbound = fed(&[0, 0, 0, 2, b'a', b'b', 0, 0, 0, 0, 0, 0, 0, 1, b'c', 0, 0, 0, 9, b'd']);
        assert_eq!(inbound.next().unwrap(), Some(&b"ab"[..]));
        assert_eq!(inbound.next().unwrap(), Some(&b""[..]));
        assert_eq!(inbound.next().unwrap(), Some(&b"c"[..]));
        assert_eq!(inbound.next().unwrap(), None);
    }

    #[test]
    fn frame_length_is_refused_past_the_limit() {
        let header = |len: usize| u32::try_from(len).unwrap().to_be_bytes();
        assert!(fed(&header(MAX_FRAME_BYTES)).next().is_ok());
        assert!(fed(&header(MAX_FRAME_BYTES + 1)).next().is_err());
        assert!(fed(&[0xff; 4]).next().is_err());
    }
}
