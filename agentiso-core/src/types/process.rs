use serde::{Deserialize, Serialize};

/// A process of this host, told apart from a later one of the same number by when it started.
///
/// Nothing is signalled or trusted by its number alone: numbers are used again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessRef {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot, field 22 of /proc/PID/stat.
    pub start_ticks: u64,
    /// The host's boot id, for ticks begin anew with each boot.
    pub boot_id: String,
}

/// A user id that one machine's processes run under, when the process that starts them is root. No two machines of a
/// host have the same one at the same time, and no account of the host has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MachineUid(pub u32);

impl MachineUid {
    /// The lowest that is ever used. No distribution gives ids this high to accounts, services, containers or
    /// systemd's dynamic users.
    pub const FIRST: u32 = 1_900_000_000;
}
