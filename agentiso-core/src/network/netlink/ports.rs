//! Ports of the host that are forwarded. Nothing listens at them, so that no other program is told that they are taken;
//! this module sees to it that two machines never get the same one, of this state folder or of others on this host.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, TcpListener},
    path::Path,
};

use super::{ForwardsFrom, ground::TABLES, ledger::Card, nft, rules};
use crate::{
    file_lock::FileLock,
    network::NetworkError,
    types::{GuestPort, HostPort, WorkspaceId},
};

/// Held from the choice of ports until their forwards are in force, by processes of all state folders.
const LOCK: &str = "/run/agentiso-ports.lock";

/// Times that a free port is looked for.
const PORT_TRIES: usize = 64;

/// The forwarded ports of this host, which stay the same for as long as this lives.
#[derive(Debug)]
pub(super) struct Ports {
    taken: BTreeSet<u16>,
    address: Ipv4Addr,
    _lock: FileLock,
}

fn failed(source: io::Error) -> NetworkError {
    NetworkError::Io { operation: "look for", object: "free ports of the host".to_owned(), source }
}

impl Ports {
    /// Looks at those that these cards have, and at those that are forwarded by anyone's rules. Waits for others that
    /// are about to take some. Blocks.
    pub(super) fn look(
        cards: &BTreeMap<WorkspaceId, Card>,
        forwards_from: ForwardsFrom,
    ) -> Result<Self, NetworkError> {
        let lock = FileLock::acquire(Path::new(LOCK)).map_err(failed)?;
        let mut taken: BTreeSet<u16> =
            cards.values().flat_map(|card| card.forwards.values().map(|port| port.get())).collect();
        for key in nft::keys(TABLES, rules::FORWARDS).map_err(failed)? {
            taken.extend(key.first_chunk().map(|bytes| u16::from_be_bytes(*bytes)));
        }
        let address = match forwards_from {
            ForwardsFrom::Loopback => Ipv4Addr::LOCALHOST,
            ForwardsFrom::Anywhere => Ipv4Addr::UNSPECIFIED,
        };
        Ok(Self { taken, address, _lock: lock })
    }

    /// Takes the one that is asked for, if nobody has it, or a free one.
    pub(super) fn take(&mut self, asked: Option<HostPort>) -> Result<HostPort, NetworkError> {
        let port = match asked {
            Some(port) if self.taken.contains(&port.get()) || !self.is_free(port) => {
                return Err(NetworkError::PortTaken { port });
            }
            Some(port) => port,
            None => self.find().map_err(failed)?,
        };
        self.taken.insert(port.get());
        Ok(port)
    }

    /// Takes all that a card is to have, each for one port of the guest.
    pub(super) fn take_all(&mut self, forwards: &BTreeMap<GuestPort, HostPort>) -> Result<(), NetworkError> {
        forwards.values().try_for_each(|port| self.take(Some(*port)).map(drop))
    }

    /// Whether no program has it.
    fn is_free(&self, port: HostPort) -> bool {
        TcpListener::bind((self.address, port.get())).is_ok()
    }

    fn find(&self) -> io::Result<HostPort> {
        for _ in 0..PORT_TRIES {
            let port = TcpListener::bind((self.address, 0))?.local_addr()?.port();
            if let Ok(found) = HostPort::new(port.into())
                && !self.taken.contains(&port)
            {
                return Ok(found);
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }
}
