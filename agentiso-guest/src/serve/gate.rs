//! Whom the connections of a listening socket are served.

use std::os::fd::AsFd;
use std::path::PathBuf;

use agentiso_guest::hello::Hello;
use agentiso_guest::key::{MachineKey, Proof, Side};

use crate::firmware;
use crate::sys::vsock;

/// Whom the connections of a listening socket are served.
#[derive(Debug)]
pub(crate) enum Gate {
    /// Whoever can open the socket's file.
    Open,
    /// Whoever can open the socket's file and knows the key in this one.
    KeyFile(PathBuf),
    /// A process of the host, which anybody there can be, that knows this machine's key.
    Machine,
}

/// What becomes of a connection.
#[derive(Debug)]
pub(super) enum Judgement {
    /// It is served; its welcome carries this.
    Served(Option<Proof>),
    /// It is told that its proof is wrong.
    Refused,
    /// It does not try to prove anything and is told nothing.
    Ignored,
}

impl Gate {
    /// Whether connections from there are heard at all.
    pub(super) fn is_open_to(&self, socket: impl AsFd) -> bool {
        match self {
            Self::Open | Self::KeyFile(_) => true,
            Self::Machine => vsock::peer_is_host(socket),
        }
    }

    /// Looks at a connection's hello.
    ///
    /// The key is read each time and never kept: a machine that goes on with the memory of another one has its own from
    /// the first moment.
    pub(super) fn judge(&self, hello: &Hello) -> Judgement {
        let key = match self {
            Self::Open => return Judgement::Served(None),
            Self::KeyFile(path) => {
                std::fs::read(path).ok().and_then(|bytes| bytes.try_into().ok()).map(MachineKey::from_bytes)
            }
            Self::Machine => machine_key(),
        };
        match (&hello.proof, key) {
            (None, _) => Judgement::Ignored,
            (Some(proof), Some(key)) if key.is_proven(Side::Host, hello.hello, proof) => {
                Judgement::Served(Some(key.proof(Side::Agent, hello.hello)))
            }
            // Without a key of its own the machine serves nobody.
            (Some(_), _) => Judgement::Refused,
        }
    }
}

/// The key that the host has given to this machine.
pub(crate) fn machine_key() -> Option<MachineKey> {
    firmware::read_key().map(MachineKey::from_bytes)
}
