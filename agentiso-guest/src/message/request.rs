//! What the host says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::nothing_else;
#[cfg(doc)]
use super::{ErrorCode, Reply};
use crate::hello::Nonce;
use crate::tree::RawPath;

/// One operation, the first message of the host after its hello.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Answered by [`Reply::Done`] at once.
    #[serde(deserialize_with = "nothing_else")]
    Ping,
    /// Runs a command and streams: [`Reply::Started`], then [`Reply::Stdout`] and [`Reply::Stderr`], then
    /// [`Reply::Exited`]. Takes [`Input`] meanwhile. A lost connection gives the process group SIGHUP, then SIGKILL.
    Exec {
        /// What to run.
        command: Command,
        /// Whether [`Input::Stdin`] will follow; otherwise the command reads from /dev/null.
        stdin: bool,
        /// A pseudo-terminal of this size instead of pipes: all output is then [`Reply::Stdout`].
        tty: Option<TtySize>,
        /// The process group gets SIGKILL after this many milliseconds of guest time.
        timeout_ms: Option<u64>,
    },
    /// Starts a command that goes on without the connection. Answered by [`Reply::Job`].
    JobStart {
        /// What to run; it reads from /dev/null.
        command: Command,
    },
    /// Lists background jobs: [`Reply::Jobs`].
    #[serde(deserialize_with = "nothing_else")]
    JobList,
    /// State and output so far of one job: [`Reply::Stdout`], [`Reply::Stderr`] (the newest bytes kept of each),
    /// then [`Reply::Job`].
    JobPoll {
        /// Which.
        job: u64,
    },
    /// Waits until a job ends, or the time is over: as [`Request::JobPoll`], then.
    JobWait {
        /// Which.
        job: u64,
        /// Answers "still running" after this many milliseconds.
        timeout_ms: Option<u64>,
    },
    /// Streams a job as [`Request::Exec`] does, beginning with the output kept, to its end. Takes [`Input::Signal`]
    /// meanwhile. What comes faster than it is read, by more than is kept, is left out. Losing the connection leaves
    /// the job alone.
    JobAttach {
        /// Which.
        job: u64,
    },
    /// Sends a signal to a job's process group. [`Reply::Done`].
    JobSignal {
        /// Which.
        job: u64,
        /// Signal number, 1-64.
        signal: u8,
    },
    /// Reads a regular file: [`Reply::Data`] as often as needed, then [`Reply::Done`].
    FileRead {
        /// Absolute path.
        path: String,
        /// First byte.
        offset: u64,
        /// Most bytes; all if none.
        limit: Option<u64>,
    },
    /// Writes a file: [`Input::Data`] as often as needed, then [`Input::End`]; answered by [`Reply::Done`]. A new
    /// content appears all at once at the end (temporary file, rename); a lost connection changes nothing.
    FileWrite {
        /// Absolute path. A symbolic link is followed.
        path: String,
        /// Permission bits, at most 0o7777; without it a new file gets 0o644 and an old one keeps its own.
        mode: Option<u32>,
        /// Makes missing parent folders, mode 0o755.
        parents: bool,
    },
    /// Replaces the first exact occurrence of a text. [`Reply::Done`].
    FileEdit {
        /// Absolute path.
        path: String,
        /// Must occur; not empty.
        old: String,
        /// What takes its place.
        new: String,
    },
    /// Lists a folder: [`Reply::Entries`] as often as needed, then [`Reply::Done`].
    FileList {
        /// Absolute path.
        path: String,
    },
    /// Describes one path, without following a symbolic link at its end: [`Reply::Entry`].
    FileStat {
        /// Absolute path.
        path: String,
    },
    /// Lists a file, or a folder and all below it on the same file system, in the order of [`RawPath`]:
    /// [`Reply::Tree`] as often as needed, then [`Reply::Done`]. No symbolic link is followed but those on the way to
    /// `path`. What disappears meanwhile is left out.
    Walk {
        /// Absolute path.
        path: RawPath,
        /// Refuse a path that is not on the root file system.
        root_file_system: bool,
    },
    /// Reads files whole: [`Reply::Hashed`] for each, in the same order, with [`Reply::Hashing`] before it while a long
    /// one is read; then [`Reply::Done`].
    Hash {
        /// Where the walk began: an absolute path.
        root: RawPath,
        /// Files as the walk named them; at most 256.
        files: Vec<RawPath>,
    },
    /// Sends a file or folder as a tar stream: [`Reply::Data`] as often as needed, then [`Reply::Done`].
    ArchiveRead {
        /// Absolute path. Entries in the stream are named from its last component on.
        path: String,
        /// Follow a symbolic link at the end of `path`.
        follow: bool,
    },
    /// Unpacks a tar stream below a folder: [`Input::Data`], [`Input::End`], answered by [`Reply::Done`].
    /// No entry is written outside the folder. Entries unpacked before a failure stay.
    ArchiveWrite {
        /// Absolute path of the folder; made if missing.
        path: String,
        /// How the stream is packed.
        compression: Compression,
        /// Keep owners, device nodes, set-user and set-group bits and extended attributes of the entries, and leave out
        /// what lies below a mount point of the folder (images). Otherwise all belongs to root, and a device node is
        /// an error.
        preserve: bool,
    },
    /// Sets environment variables for every later command, in guest memory only; `None` removes one.
    /// All or nothing. [`Reply::Done`].
    EnvSet {
        /// Names and values.
        vars: BTreeMap<String, Option<String>>,
    },
    /// Removes every variable that [`Request::EnvSet`] set. [`Reply::Done`].
    #[serde(deserialize_with = "nothing_else")]
    EnvClear,
    /// Gives the machine its identity. All of it is in force when [`Reply::Configured`] comes; anything that failed is
    /// an error that names it.
    Configure(Box<Configuration>),
    /// Freezes user processes (the agent's own cgroup excepted). [`Reply::Done`] when all are frozen. Until
    /// [`Request::Thaw`] no command can be started. A connection lost before the answer thaws. Frozen already: they
    /// stay so, for this capture from then on. An error ([`ErrorCode::Conflict`]) if this capture was thawed already.
    Freeze {
        /// What they are frozen for: fresh random bits.
        capture: Nonce,
        /// Gives up, thaws and answers an error after this many milliseconds.
        timeout_ms: u64,
    },
    /// Lets user processes run again, whatever they were frozen for. A [`Request::Freeze`] for the same capture that
    /// comes later, from a host process that was killed after it had sent it, is refused. [`Reply::Done`].
    Thaw {
        /// What is over.
        capture: Nonce,
    },
    /// Writes all dirty file system data to the disk. [`Reply::Done`].
    #[serde(deserialize_with = "nothing_else")]
    Sync,
    /// Ends user processes (SIGTERM, then SIGKILL), unmounts, flushes, powers off. [`Reply::Done`] comes before the
    /// power goes; the machine then disappears. An agent that serves a unix socket of its system refuses.
    Shutdown {
        /// How long user processes have between SIGTERM and SIGKILL, in milliseconds.
        grace_ms: u64,
    },
    /// What the guest is: [`Reply::Info`].
    #[serde(deserialize_with = "nothing_else")]
    Info,
    /// Makes sure that the request that went out with a hello is not carried out: [`Reply::Done`] if it never was and
    /// never will be, an error ([`ErrorCode::Conflict`]) if it was begun.
    Void {
        /// The hello's nonce.
        nonce: Nonce,
    },
}

impl Request {
    /// The operation's name, as it stands in the JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Exec { .. } => "exec",
            Self::JobStart { .. } => "job_start",
            Self::JobList => "job_list",
            Self::JobPoll { .. } => "job_poll",
            Self::JobWait { .. } => "job_wait",
            Self::JobAttach { .. } => "job_attach",
            Self::JobSignal { .. } => "job_signal",
            Self::FileRead { .. } => "file_read",
            Self::FileWrite { .. } => "file_write",
            Self::FileEdit { .. } => "file_edit",
            Self::FileList { .. } => "file_list",
            Self::FileStat { .. } => "file_stat",
            Self::Walk { .. } => "walk",
            Self::Hash { .. } => "hash",
            Self::ArchiveRead { .. } => "archive_read",
            Self::ArchiveWrite { .. } => "archive_write",
            Self::EnvSet { .. } => "env_set",
            Self::EnvClear => "env_clear",
            Self::Configure(_) => "configure",
            Self::Freeze { .. } => "freeze",
            Self::Thaw { .. } => "thaw",
            Self::Sync => "sync",
            Self::Shutdown { .. } => "shutdown",
            Self::Info => "info",
            Self::Void { .. } => "void",
        }
    }
}

impl std::fmt::Debug for Request {
    // A request carries environment values, arguments and contents of files: none of it belongs into a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Request").field(&self.name()).finish()
    }
}

/// A command to run as root in the guest.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Program and arguments; the program is looked up in PATH if it has no slash. Not empty.
    pub argv: Vec<String>,
    /// Environment on top of the machine's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Absolute path to start in; `/root` if it exists, else `/`, if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
}

impl std::fmt::Debug for Command {
    // Values of environment variables are secrets; their names are not.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Command")
            .field("argv", &self.argv)
            .field("env", &self.env.keys().collect::<Vec<_>>())
            .field("workdir", &self.workdir)
            .finish()
    }
}

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct TtySize {
    /// Characters a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// How a tar stream is packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    /// Plain tar.
    #[default]
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
    /// Found out from the first bytes.
    Detect,
}

/// Identity and surroundings of a machine. What is `None` stays as it is.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Configuration {
    /// Host name, 1-63 characters of `[A-Za-z0-9-]`; also written to /etc/hostname and /etc/hosts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// 32 hexadecimal digits for /etc/machine-id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine_id: Option<String>,
    /// The network card's address and routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkConfiguration>,
    /// Wall clock, in nanoseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_ns: Option<u64>,
    /// Hexadecimal digits mixed into the kernel's entropy pool and credited; the pool is reseeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<String>,
    /// Grow the root file system to its disk.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub grow_root: bool,
    /// The machine's memory is a copy of another's, or of its own at an earlier time: every connection that is older
    /// than this one is gone. Before anything else they are ended; a command that one of them ran goes on as a
    /// background job.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub clone: bool,
    /// Run what is in `/etc/agentiso/after-fork.d/`, once all else is in force. A hook that fails is an error.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub run_hooks: bool,
}

impl std::fmt::Debug for Configuration {
    // Entropy is a secret and never reaches a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Configuration")
            .field("hostname", &self.hostname)
            .field("network", &self.network)
            .field("time_ns", &self.time_ns)
            .field("grow_root", &self.grow_root)
            .field("clone", &self.clone)
            .field("run_hooks", &self.run_hooks)
            .finish_non_exhaustive()
    }
}

/// Addresses of the network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct NetworkConfiguration {
    /// Six bytes, `aa:bb:cc:dd:ee:ff`; finds the card. The card keeps its own address if this is `None`.
    pub mac: Option<String>,
    /// IPv4 address.
    pub address: String,
    /// Bits of the network part, 1-32.
    pub prefix: u8,
    /// Default route; none leaves the machine without one.
    pub gateway: Option<String>,
    /// Name servers for /etc/resolv.conf.
    pub dns: Vec<String>,
    /// Largest packet, in bytes.
    pub mtu: Option<u32>,
    /// Whether the network carries IPv6: the card then gets a link-local address. Without, the machine does not spend
    /// its first seconds on asking for neighbours and routers that cannot answer.
    pub ipv6: bool,
}

/// What the host sends while an operation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "in", rename_all = "snake_case", deny_unknown_fields)]
pub enum Input {
    /// Bytes for the command's standard input.
    Stdin {
        /// How many raw bytes follow.
        payload: u32,
    },
    /// End of the command's standard input.
    #[serde(deserialize_with = "nothing_else")]
    StdinEnd,
    /// The terminal has another size.
    Resize {
        /// The new size.
        size: TtySize,
    },
    /// A signal for the command's process group.
    Signal {
        /// Signal number, 1-64.
        signal: u8,
    },
    /// Bytes of a file or archive.
    Data {
        /// How many raw bytes follow.
        payload: u32,
    },
    /// All bytes of the file or archive have been sent: make it so.
    #[serde(deserialize_with = "nothing_else")]
    End,
}
