//! What is said over a shim's control socket: one request, one reply, each JSON behind its 4-byte big-endian length.
//!
//! Both ends are built from the same source; the socket lies in a folder that only the state folder's owner enters.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::network::NetworkPolicy;
use crate::types::{GuestPort, HostPort};

/// Longest message, in bytes. The longest there is lists [`MAX_FORWARDS`] forwards or every port of a policy.
pub(crate) const MAX_MESSAGE_BYTES: usize = 512 * 1024;

/// Forwards of one machine. Each takes two descriptors of its shim.
#[cfg(any(test, feature = "shim"))]
pub(crate) const MAX_FORWARDS: usize = 64;

/// What the manager asks of a shim.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// Are you there, and what have you seen?
    Status,
    /// Puts a policy in force, and the name servers that the machine's questions go to.
    SetPolicy {
        /// The policy.
        policy: NetworkPolicy,
        /// The host's name servers, in order.
        resolvers: Vec<IpAddr>,
    },
    /// Forwards a port.
    AddForward {
        /// To this port of the guest.
        guest: GuestPort,
        /// From this one of the host's loopback; a free one if `None`.
        host: Option<HostPort>,
    },
    /// Ends a forward and its connections.
    RemoveForward {
        /// The guest's port.
        guest: GuestPort,
    },
    /// Which forwards are in force?
    Forwards,
}

/// What a shim answers.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Reply {
    /// To `Status`.
    Status {
        /// What it has seen.
        counters: Counters,
    },
    /// It is done.
    Done,
    /// The forward is in force.
    Forwarded {
        /// The host's port.
        host: HostPort,
    },
    /// The forwards in force.
    Forwards {
        /// The guest's port and the host's. No map: JSON's keys are text, and these are numbers.
        forwards: Vec<(GuestPort, HostPort)>,
    },
    /// The host's port is taken; nothing was changed.
    PortTaken {
        /// The port.
        port: HostPort,
    },
    /// The guest's port is forwarded already; nothing was changed.
    AlreadyForwarded {
        /// From this port of the host.
        host: HostPort,
    },
    /// It could not be done; nothing was changed.
    Failed {
        /// Why.
        reason: String,
    },
}

/// What a shim has seen, for tests and for people who look into a problem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Counters {
    /// Frames from the machine.
    pub(crate) frames: u64,
    /// Frames and packets that were malformed, not meant for the gateway, or of a kind that is not spoken here.
    pub(crate) ignored: u64,
    /// Connections and datagrams that the policy refused.
    pub(crate) refused: u64,
    /// Connections and datagrams dropped because a table was full or the host out of something.
    pub(crate) dropped: u64,
    /// TCP connections now, those not yet established included.
    pub(crate) tcp_flows: u64,
    /// UDP flows now.
    pub(crate) udp_flows: u64,
}

/// The bytes of a message, length first.
///
/// # Errors
/// It would be longer than [`MAX_MESSAGE_BYTES`].
pub(crate) fn encode(message: &impl Serialize) -> std::io::Result<Vec<u8>> {
    let body = serde_json::to_vec(message)?;
    let len = u32::try_from(body.len())
        .ok()
        .filter(|_| body.len() <= MAX_MESSAGE_BYTES)
        .ok_or_else(|| std::io::Error::other("the message is too long for the network process"))?;
    Ok([&len.to_be_bytes(), body.as_slice()].concat())
}

/// The length of a message from its first four bytes.
///
/// # Errors
/// It is longer than [`MAX_MESSAGE_BYTES`].
pub(crate) fn body_len(header: [u8; 4]) -> std::io::Result<usize> {
    usize::try_from(u32::from_be_bytes(header))
        .ok()
        .filter(|len| *len <= MAX_MESSAGE_BYTES)
        .ok_or_else(|| std::io::Error::other("a message that announces more than its limit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_length_is_refused_past_the_limit() {
        let header = |len: usize| u32::try_from(len).unwrap().to_be_bytes();
        assert_eq!(body_len(header(0)).unwrap(), 0);
        assert_eq!(body_len(header(MAX_MESSAGE_BYTES)).unwrap(), MAX_MESSAGE_BYTES);
        assert!(body_len(header(MAX_MESSAGE_BYTES + 1)).is_err());
        assert!(body_len([0xff; 4]).is_err());
    }

    #[test]
    fn forwards_survive_the_way() {
        let forwards = vec![(GuestPort::new(80).unwrap(), HostPort::new(8080).unwrap())];
        let bytes = encode(&Reply::Forwards { forwards }).unwrap();
        let back: Reply = serde_json::from_slice(&bytes[4..]).unwrap();
        assert_eq!(encode(&back).unwrap(), bytes);
    }

    #[test]
    fn longest_policy_fits_a_message() {
        let policy = NetworkPolicy { allowed_ports: (0..=u16::MAX).collect(), ..NetworkPolicy::default() };
        assert!(encode(&Request::SetPolicy { policy, resolvers: vec![] }).is_ok());
    }
}
