//! What the agent says.

use serde::{Deserialize, Serialize};

use super::nothing_else;
use crate::tree::TreeEntry;

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "re", rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// The command runs.
    Started {
        /// Its process id in the guest.
        pid: u32,
    },
    /// Bytes of its standard output.
    Stdout {
        /// How many raw bytes follow.
        payload: u32,
    },
    /// Bytes of its standard error.
    Stderr {
        /// How many raw bytes follow.
        payload: u32,
    },
    /// The command ended. Terminal.
    Exited {
        /// How.
        exit: Exit,
    },
    /// State of a background job. Terminal.
    Job {
        /// The job.
        job: Job,
    },
    /// All background jobs. Terminal.
    Jobs {
        /// In order of their start.
        jobs: Vec<Job>,
    },
    /// Bytes of a file or archive.
    Data {
        /// How many raw bytes follow.
        payload: u32,
    },
    /// Part of a folder.
    Entries {
        /// In no particular order.
        entries: Vec<Entry>,
    },
    /// Part of a walk.
    Tree {
        /// In order, and in order with those before.
        entries: Vec<TreeEntry>,
    },
    /// More of a file to be hashed was read.
    Hashing {
        /// How many bytes more; at least 4 MiB.
        bytes: u64,
    },
    /// One file was read whole.
    Hashed {
        /// SHA-256 of its content, 64 lower-case hexadecimal digits; none if it is no regular file any more.
        sha256: Option<String>,
    },
    /// One path. Terminal.
    Entry {
        /// What is there.
        entry: Entry,
    },
    /// What the guest is. Terminal.
    Info {
        /// What it is.
        info: Box<GuestInfo>,
    },
    /// The configuration is in force. Terminal. The times were read when all was done, right before this was sent.
    Configured {
        /// The wall clock, in nanoseconds since 1970.
        realtime_ns: u64,
        /// The monotonic clock, in nanoseconds.
        monotonic_ns: u64,
        /// Nanoseconds of guest time since the request was read.
        elapsed_ns: u64,
    },
    /// The operation is complete. Terminal.
    #[serde(deserialize_with = "nothing_else")]
    Done,
    /// The operation failed. Terminal. What it had changed is undone, except where the operation says otherwise.
    Error {
        /// The kind, for programs.
        code: ErrorCode,
        /// What was being done, to what, and what went wrong, for people.
        message: String,
    },
}

impl Reply {
    /// Whether no reply follows this one.
    pub fn is_terminal(&self) -> bool {
        !matches!(
            self,
            Self::Started { .. }
                | Self::Stdout { .. }
                | Self::Stderr { .. }
                | Self::Data { .. }
                | Self::Entries { .. }
                | Self::Tree { .. }
                | Self::Hashing { .. }
                | Self::Hashed { .. }
        )
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It called exit with this status.
    Code(u8),
    /// This signal ended it.
    Signal(u8),
    /// Its time was over; its process group was killed.
    TimedOut,
}

/// A background job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Number, counted from 1, never used again while the machine lives.
    pub id: u64,
    /// Process id in the guest.
    pub pid: u32,
    /// The command, for people; at most 256 bytes.
    pub command: String,
    /// How it ended; it runs if `None`.
    pub exit: Option<Exit>,
    /// Bytes written to standard output so far.
    pub stdout_bytes: u64,
    /// Bytes written to standard error so far.
    pub stderr_bytes: u64,
}

/// One entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its last path component; bytes that are not UTF-8 become U+FFFD.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits, at most 0o7777.
    pub mode: u32,
    /// Last modification, in seconds since 1970.
    pub modified: i64,
    /// Where a symbolic link points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// Regular file.
    File,
    /// Folder.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Device, socket or FIFO.
    Other,
}

/// What the guest says of itself; only as true as the guest is honest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct GuestInfo {
    /// Kernel release, as `uname -r`.
    pub kernel: String,
    /// Host name.
    pub hostname: String,
    /// Milliseconds since the kernel started.
    pub uptime_ms: u64,
    /// Memory in KiB.
    pub memory_kib: u64,
    /// Memory available in KiB.
    pub memory_available_kib: u64,
    /// Size of the root file system in bytes.
    pub root_bytes: u64,
    /// Free bytes of the root file system.
    pub root_free_bytes: u64,
}

/// Kinds of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// No such file, job or program.
    NotFound,
    /// It exists but is no program that can run, or may not be accessed.
    NotPermitted,
    /// The request itself is wrong; nothing was done.
    Invalid,
    /// It is there already, or in use.
    Conflict,
    /// A limit of the agent or of the guest: disk, memory, processes.
    Exhausted,
    /// The time given was over.
    TimedOut,
    /// Anything else.
    Failed,
}
