//! The cards of a state folder, on disk: what the rules are made from, and made again from.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    file_lock::FileLock,
    network::{MacAddress, NetworkPolicy},
    types::{GuestPort, HostPort, WorkspaceId},
};

/// Folder of this network in the state folder.
const FOLDER: &str = "network";

/// One machine's card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Card {
    /// The TAP device. No two cards ever have the same name.
    pub(super) tap: String,
    pub(super) address: Ipv4Addr,
    pub(super) policy: NetworkPolicy,
    pub(super) forwards: BTreeMap<GuestPort, HostPort>,
}

impl Card {
    /// Of one card, given out locally. It follows from the address, so that it is as unique, and so that no table of
    /// neighbours is ever wrong.
    pub(super) fn mac(&self) -> MacAddress {
        let [a, b, c, d] = self.address.octets();
        MacAddress([0x52, 0x54, a, b, c, d])
    }

    /// Whether it may talk to any other machine.
    pub(super) fn is_sociable(&self) -> bool {
        self.policy.allow_inter_vm || !self.policy.groups.is_empty()
    }
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cards {
    /// The range their addresses are from.
    pub(super) range: String,
    pub(super) cards: BTreeMap<WorkspaceId, Card>,
    /// Interfaces that forward packets because of these cards.
    pub(super) forwarding: Vec<String>,
    /// The run of the kernel in which they do.
    pub(super) boot: String,
}

/// The file, held by one process at a time.
#[derive(Debug)]
pub(super) struct Ledger {
    path: PathBuf,
    _lock: FileLock,
}

impl Ledger {
    /// Waits for other processes that use it. Blocks.
    pub(super) fn open(state_dir: &Path) -> io::Result<Self> {
        let folder = state_dir.join(FOLDER);
        let lock = FileLock::acquire(&folder.join("lock"))?;
        Ok(Self { path: folder.join("cards.json"), _lock: lock })
    }

    pub(super) fn read(&self) -> io::Result<Cards> {
        read(&self.path)
    }

    /// Writes all of it or nothing.
    pub(super) fn write(&self, cards: &Cards) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&serde_json::to_vec(cards)?)?;
        // Not forced to the disk: what it describes, but for the leases, goes with a run of the kernel.
        file.persist(&self.path)?;
        Ok(())
    }

    /// Says that the kernel is about to be brought in line with the file, until `settled`.
    pub(super) fn unsettled(&self) -> io::Result<()> {
        fs::File::create(self.mark()).map(drop)
    }

    /// The kernel is in line with the file.
    pub(super) fn settled(&self) -> io::Result<()> {
        match fs::remove_file(self.mark()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether somebody died or failed while bringing the kernel in line with the file.
    pub(super) fn is_unsettled(&self) -> bool {
        self.mark().exists()
    }

    fn mark(&self) -> PathBuf {
        self.path.with_file_name("changing")
    }
}

/// Reads it without waiting for anyone: it is always whole.
pub(super) fn peek(state_dir: &Path) -> io::Result<Cards> {
    read(&state_dir.join(FOLDER).join("cards.json"))
}

fn read(path: &Path) -> io::Result<Cards> {
    match fs::read(path) {
        // What a host that lost its power may leave.
        Ok(text) if text.iter().all(|byte| *byte == 0) => Ok(Cards::default()),
        Ok(text) => Ok(serde_json::from_slice(&text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Cards::default()),
        Err(error) => Err(error),
    }
}
