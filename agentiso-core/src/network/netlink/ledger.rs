//! The cards of a state folder, on disk: what the rules are made from, and made again from. One file for each card, so
//! that a change takes the same time however many there are.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    net::Ipv4Addr,
    ops::Deref,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    file_lock::FileLock,
    network::{MacAddress, NetworkPolicy},
    types::{GuestPort, HostPort, WorkspaceId},
};

/// Folder of this network in the state folder.
const FOLDER: &str = "network";
const CARDS: &str = "cards";
const STATE: &str = "state.json";
/// There while the kernel is brought in line with the files.
const MARK: &str = "changing";

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

/// What all cards have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct State {
    /// The range their addresses are from.
    pub(super) range: String,
    /// Interfaces that forward packets because of these cards.
    pub(super) forwarding: Vec<String>,
    /// The run of the kernel in which they do.
    pub(super) boot: String,
    /// The rules that were put in force last, as a digest.
    pub(super) rules: String,
    /// The name server in them.
    pub(super) resolver: Option<Ipv4Addr>,
}

/// The files. Each is whole at any time, so that reading them takes no lock.
#[derive(Debug)]
pub(super) struct Files {
    folder: PathBuf,
}

impl Files {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self { folder: state_dir.join(FOLDER) }
    }

    pub(super) fn state(&self) -> io::Result<State> {
        Ok(read(&self.folder.join(STATE))?.unwrap_or_default())
    }

    pub(super) fn card(&self, id: WorkspaceId) -> io::Result<Option<Card>> {
        read(&self.path_of(id))
    }

    pub(super) fn cards(&self) -> io::Result<BTreeMap<WorkspaceId, Card>> {
        let mut cards = BTreeMap::new();
        for id in self.ids()? {
            // One that is gone by now is none, for whoever has no lock.
            if let Some(card) = self.card(id)? {
                cards.insert(id, card);
            }
        }
        Ok(cards)
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> io::Result<bool> {
        Ok(self.ids()?.is_empty())
    }

    fn ids(&self) -> io::Result<Vec<WorkspaceId>> {
        let entries = match fs::read_dir(self.folder.join(CARDS)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            // What a process that was killed was about to write has another name.
            ids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<WorkspaceId>().ok()));
        }
        Ok(ids)
    }

    fn path_of(&self, id: WorkspaceId) -> PathBuf {
        self.folder.join(CARDS).join(id.to_string())
    }
}

/// The files, changed by one process at a time.
#[derive(Debug)]
pub(super) struct Ledger {
    files: Files,
    _lock: FileLock,
}

impl Deref for Ledger {
    type Target = Files;

    fn deref(&self) -> &Files {
        &self.files
    }
}

impl Ledger {
    /// Waits for other processes that use it. Blocks.
    pub(super) fn open(state_dir: &Path) -> io::Result<Self> {
        let files = Files::new(state_dir);
        let lock = FileLock::acquire(&files.folder.join("lock"))?;
        fs::create_dir_all(files.folder.join(CARDS))?;
        Ok(Self { files, _lock: lock })
    }

    pub(super) fn write_state(&self, state: &State) -> io::Result<()> {
        self.write(&self.folder.join(STATE), state)
    }

    /// Writes a card down, or that there is none.
    pub(super) fn write_card(&self, id: WorkspaceId, card: Option<&Card>) -> io::Result<()> {
        match card {
            Some(card) => self.write(&self.path_of(id), card),
            None => remove(&self.path_of(id)),
        }
    }

    /// Writes all of it or nothing.
    fn write(&self, path: &Path, content: &impl Serialize) -> io::Result<()> {
        // Beside the cards' folder: what is left of it by a killed process is written over by the next one.
        let temporary = self.folder.join("new");
        let mut file = fs::File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(content)?)?;
        // Not forced to the disk: what it describes, but for the leases, goes with a run of the kernel.
        fs::rename(&temporary, path)
    }

    /// Says that the kernel is about to be brought in line with the files, until `settled`.
    pub(super) fn unsettled(&self) -> io::Result<()> {
        fs::File::create(self.folder.join(MARK)).map(drop)
    }

    /// The kernel is in line with the files.
    pub(super) fn settled(&self) -> io::Result<()> {
        remove(&self.folder.join(MARK))
    }

    /// Whether somebody died or failed while bringing the kernel in line with the files.
    pub(super) fn is_unsettled(&self) -> bool {
        self.folder.join(MARK).exists()
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        // What a host that lost its power may leave.
        Ok(text) if text.iter().all(|byte| *byte == 0) => Ok(None),
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
