//! Netlink messages to netfilter, by hand: those that ask, for which libnftnl has nothing that is shorter.

use std::io;

use super::{ANSWER_LIMIT, sys};

/// What a message is about: `NFNL_SUBSYS_*` of linux/netfilter/nfnetlink.h.
#[derive(Clone, Copy, Debug)]
pub(in crate::network::netlink) enum Subsystem {
    /// Connections.
    Conntrack = 1,
    /// Rules.
    Rules = 10,
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

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// What was listed changed meanwhile.
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Bytes before the attributes: the header of netlink and that of netfilter.
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

impl Request {
    fn bytes(&self) -> io::Result<Vec<u8>> {
        let length = u32::try_from(HEADERS + self.content.len()).map_err(io::Error::other)?;
        let kind = (self.subsystem as u16) << 8 | u16::from(self.message);
        let flags = NLM_F_REQUEST | if self.dump { NLM_F_DUMP } else { NLM_F_ACK };
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        // Sequence and port: a socket is for one request.
        bytes.extend([0; 8]);
        bytes.extend([self.family, 0, 0, 0]);
        bytes.extend_from_slice(&self.content);
        Ok(bytes)
    }

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
        let socket = mnl::Socket::new(mnl::Bus::Netfilter)?;
        let timeout = rustix::net::sockopt::Timeout::Recv;
        rustix::net::sockopt::set_socket_timeout(sys::descriptor(&socket), timeout, Some(ANSWER_LIMIT))?;
        socket.send(&self.bytes()?)?;
        let (mut answers, mut whole) = (Vec::new(), true);
        let mut buffer = vec![0; 1 << 16];
        loop {
            for message in socket.recv(&mut buffer)? {
                let message = message?;
                let Some(&[_, _, _, _, k0, k1, f0, f1]) = message.first_chunk() else {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                };
                whole &= u16::from_ne_bytes([f0, f1]) & NLM_F_DUMP_INTR == 0;
                match u16::from_ne_bytes([k0, k1]) {
                    NLMSG_DONE => return Ok(whole.then_some(answers)),
                    NLMSG_ERROR => {
                        let code = message.get(16..20).and_then(|code| code.try_into().ok());
                        return match code.map_or(0, i32::from_ne_bytes) {
                            0 => Ok(whole.then_some(answers)),
                            code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                        };
                    }
                    _ => answers.push(message.get(HEADERS..).unwrap_or_default().to_vec()),
                }
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
    fn damaged_attributes_end_the_reading() {
        for bytes in [&[3, 0, 1, 0][..], &[9, 0, 1, 0, 1, 2, 3, 4], &[4, 0, 1], &[0; 4]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
    }
}
