//! Netlink messages to netfilter, in the form that the kernel promises to understand.

use std::{ffi::CStr, io, os::fd::OwnedFd, time::Duration};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType,
    netlink::{self, SocketAddrNetlink},
    sockopt,
};

/// How long the kernel may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// What a message is about: `NFNL_SUBSYS_*` of linux/netfilter/nfnetlink.h.
#[derive(Clone, Copy, Debug)]
pub(in crate::network::netlink) enum Subsystem {
    /// Connections.
    Conntrack = 1,
    /// Rules.
    Rules = 10,
}

impl Subsystem {
    /// The number of a message among those of all subsystems.
    pub(super) fn kind(self, message: u8) -> u16 {
        (self as u16) << 8 | u16::from(message)
    }
}

/// A question or an order.
#[derive(Debug)]
pub(in crate::network::netlink) struct Request {
    pub(in crate::network::netlink) subsystem: Subsystem,
    /// The subsystem's number for it.
    pub(in crate::network::netlink) message: u8,
    /// `NFPROTO_*`.
    pub(in crate::network::netlink) family: u8,
    /// Whether all that match are asked for.
    pub(in crate::network::netlink) dump: bool,
    /// Attributes.
    pub(in crate::network::netlink) content: Vec<u8>,
}

// linux/netlink.h
pub(super) const NLM_F_REQUEST: u16 = 1;
pub(super) const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// What was listed changed meanwhile.
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Bytes of the header of netlink, and of that and the one of netfilter after it.
const HEADER: usize = 16;
const HEADERS: usize = 20;

/// Times that a list is asked for again because it changed meanwhile.
const DUMP_TRIES: usize = 20;

/// An attribute with its padding.
pub(in crate::network::netlink) fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An attribute of attributes.
pub(in crate::network::netlink) fn nested(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NLA_F_NESTED, &parts.concat())
}

/// A number in an attribute, as netfilter has them.
pub(super) fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

/// A text in an attribute.
pub(super) fn text(kind: u16, value: &CStr) -> Vec<u8> {
    attribute(kind, value.to_bytes_with_nul())
}

/// The attributes in there, each with its kind and its content.
pub(in crate::network::netlink) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (&[l0, l1, k0, k1], rest) = bytes.split_first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1])).checked_sub(4)?;
        let content = rest.get(..length)?;
        bytes = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & NLA_TYPE_MASK, content))
    })
}

/// The content of the first attribute of this kind.
pub(in crate::network::netlink) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, content)| content)
}

/// What is before a message's attributes.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) family: u8,
    pub(super) resource: u16,
}

/// A message. Attributes are padded, so that the next one can follow.
pub(super) fn message(header: &Header, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADERS + content.len()).unwrap_or(u32::MAX);
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(header.kind.to_ne_bytes());
    bytes.extend(header.flags.to_ne_bytes());
    bytes.extend(header.sequence.to_ne_bytes());
    // The port: the kernel knows whose socket it is.
    bytes.extend([0; 4]);
    bytes.extend([header.family, 0]);
    bytes.extend(header.resource.to_be_bytes());
    bytes.extend_from_slice(content);
    bytes
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) sequence: u32,
    kind: u16,
    flags: u16,
    /// What follows the header of netlink.
    content: Vec<u8>,
}

impl Answer {
    /// Takes the first one off these bytes.
    fn take(bytes: &mut &[u8]) -> io::Result<Self> {
        let short = || io::Error::new(io::ErrorKind::UnexpectedEof, "the kernel's answer is cut off");
        let (&[l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..], _) =
            bytes.split_first_chunk::<HEADER>().ok_or_else(short)?;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).map_err(io::Error::other)?;
        let content = bytes.get(HEADER..length).ok_or_else(short)?.to_vec();
        *bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Ok(Self {
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            content,
        })
    }

    /// Whether it says that something failed.
    pub(super) fn check(&self) -> io::Result<()> {
        let code = match self.content.first_chunk() {
            Some(code) if matches!(self.kind, NLMSG_ERROR | NLMSG_DONE) => i32::from_ne_bytes(*code),
            _ => 0,
        };
        // What ends a list may say how long it was.
        if code < 0 { Err(io::Error::from_raw_os_error(code.saturating_neg())) } else { Ok(()) }
    }

    fn is_last(&self) -> bool {
        matches!(self.kind, NLMSG_ERROR | NLMSG_DONE)
    }
}

/// A socket to netfilter, for one question or one step. Nobody but the kernel can send to it.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    pub(super) fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::NETFILTER),
        )?;
        rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_LIMIT))?;
        Ok(Self(socket))
    }

    /// Makes room for so many bytes on their way to the kernel, and for its answers.
    pub(super) fn make_room(&self, bytes: usize) -> io::Result<()> {
        // The kernel doubles what it is given, and keeps some for itself.
        sockopt::set_socket_send_buffer_size_force(&self.0, bytes.max(1 << 18))?;
        sockopt::set_socket_recv_buffer_size_force(&self.0, 4 << 20)?;
        Ok(())
    }

    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        rustix::io::retry_on_intr(|| rustix::net::send(&self.0, bytes, SendFlags::empty()))?;
        Ok(())
    }

    /// What the kernel says next, at least one answer.
    pub(super) fn receive(&self) -> io::Result<Vec<Answer>> {
        // More than the kernel puts into one piece of a list. A refusal carries what was refused, at its end.
        let mut buffer = vec![0; 1 << 17];
        let (count, _) =
            rustix::io::retry_on_intr(|| rustix::net::recv(&self.0, &mut buffer[..], RecvFlags::empty()))?;
        let mut bytes = buffer.get(..count).unwrap_or(&buffer);
        let mut answers = vec![Answer::take(&mut bytes)?];
        while !bytes.is_empty() {
            answers.push(Answer::take(&mut bytes)?);
        }
        Ok(answers)
    }
}

impl Request {
    /// Sends it and returns the attributes of each answer.
    pub(in crate::network::netlink) fn send(&self) -> io::Result<Vec<Vec<u8>>> {
        for _ in 0..DUMP_TRIES {
            if let Some(answers) = self.try_send()? {
                return Ok(answers);
            }
        }
        Err(io::Error::other("what was to be listed did not stay the same for long enough"))
    }

    /// `None` if what is listed changed meanwhile.
    fn try_send(&self) -> io::Result<Option<Vec<Vec<u8>>>> {
        let header = Header {
            kind: self.subsystem.kind(self.message),
            flags: NLM_F_REQUEST | if self.dump { NLM_F_DUMP } else { NLM_F_ACK },
            sequence: 0,
            family: self.family,
            resource: 0,
        };
        let socket = Socket::open()?;
        socket.send(&message(&header, &self.content))?;
        let (mut answers, mut whole) = (Vec::new(), true);
        loop {
            for answer in socket.receive()? {
                answer.check()?;
                whole &= answer.flags & NLM_F_DUMP_INTR == 0;
                if answer.is_last() {
                    return Ok(whole.then_some(answers));
                }
                answers.push(answer.content.get(HEADERS - HEADER..).unwrap_or_default().to_vec());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let bytes = [attribute(1, b"abc"), nested(2, &[attribute(3, b"")]), attribute(4, b"abcd")].concat();

        assert_eq!(bytes.len(), 8 + 8 + 8);
        assert_eq!(find(&bytes, 1), Some(&b"abc"[..]));
        assert_eq!(find(find(&bytes, 2).unwrap(), 3), Some(&b""[..]));
        assert_eq!(find(&bytes, 4), Some(&b"abcd"[..]));
        assert_eq!(find(&bytes, 5), None);
    }

    #[test]
    fn answers_are_taken_one_after_the_other() {
        let header = |kind| Header { kind, flags: 0, sequence: 7, family: 0, resource: 0 };
        // In place of netfilter's header stands the error.
        let refusal = |code: i32| {
            let mut bytes = message(&header(NLMSG_ERROR), &[0; 17]);
            bytes[HEADER..HEADERS].copy_from_slice(&code.to_ne_bytes());
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let all = [refusal(0), message(&header(2561), b"abcd"), refusal(-libc::ENOENT)].concat();
        let mut bytes = &all[..];
        let mut take = || Answer::take(&mut bytes);

        let (good, data, bad) = (take().unwrap(), take().unwrap(), take().unwrap());

        assert!(good.check().is_ok() && good.is_last() && good.sequence == 7);
        assert!(data.check().is_ok() && !data.is_last() && data.content.ends_with(b"abcd"));
        assert_eq!(bad.check().unwrap_err().raw_os_error(), Some(libc::ENOENT));
        assert!(take().is_err(), "there is no more");
    }

    #[test]
    fn answers_that_are_cut_off_are_errors() {
        let whole = message(&Header { kind: 3, flags: 0, sequence: 0, family: 0, resource: 0 }, b"abcd");
        assert!(Answer::take(&mut &whole[..]).is_ok());
        for length in [0, 3, 15, 16, 23] {
            assert!(Answer::take(&mut &whole[..length]).is_err(), "{length}");
        }
        let mut short = whole;
        short[0] = 15;
        assert!(Answer::take(&mut &short[..]).is_err(), "a length that has no room for the header");
    }

    #[test]
    fn damaged_attributes_end_the_reading() {
        for bytes in [&[3, 0, 1, 0][..], &[9, 0, 1, 0, 1, 2, 3, 4], &[4, 0, 1], &[0; 4]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
    }
}
