//! Every limit of the protocol, by name. Each is checked before anything is allocated.

/// Longest JSON part of one message, in bytes. A length of zero or above this is an error.
pub const MAX_MESSAGE_SIZE: u32 = 32 * 1024 * 1024;

/// Most bytes of raw payload that one message may announce. Longer data is sent in several messages.
pub const MAX_PAYLOAD_SIZE: u32 = 1024 * 1024;

/// Most bytes of hello or welcome; both are far shorter.
pub const MAX_HELLO_SIZE: u32 = 1024;

/// Most arguments of one command.
pub const MAX_ARGUMENTS: usize = 4096;

/// Most bytes of all arguments of one command together.
pub const MAX_ARGUMENT_BYTES: usize = 1024 * 1024;

/// Most environment variables of one command.
pub const MAX_ENV_VARS: usize = 256;

/// Most bytes of one environment variable, name and value together.
pub const MAX_ENV_VAR_BYTES: usize = 32 * 1024;

/// Longest path in bytes, Linux's PATH_MAX without its NUL.
pub const MAX_PATH_BYTES: usize = 4095;

/// Most directory entries that one reply holds; a longer listing comes in several replies.
pub const MAX_ENTRIES_PER_REPLY: usize = 512;

/// Connections that the agent serves at once; one more is told so and closed.
pub const MAX_CONNECTIONS: usize = 64;

/// Output that the agent keeps of each stream of a background job, in bytes (the newest).
pub const JOB_OUTPUT_BYTES: usize = 256 * 1024;

/// Finished background jobs that the agent remembers; the oldest is forgotten first.
pub const MAX_FINISHED_JOBS: usize = 256;

/// Background jobs that may run at once.
pub const MAX_RUNNING_JOBS: usize = 256;

/// Virtio-serial slots of a machine: one device carries at most 31 ports.
pub const SERIAL_SLOTS: u32 = 31;

/// How often the agent looks for a channel device before it gives up, and the pause between two looks.
pub const CHANNEL_TRIES: u32 = 20;
/// See [`CHANNEL_TRIES`]. Milliseconds.
pub const CHANNEL_RETRY_MS: u64 = 50;

/// How long the process group of an exec whose connection was lost has between SIGHUP and SIGKILL, in ms.
pub const HANGUP_GRACE_MS: u64 = 5_000;

/// How long a message may stay incomplete before the agent resets the connection, in ms of guest time.
pub const STALLED_MESSAGE_MS: u64 = 10_000;

/// How long one hook may take after a machine was copied, in ms of guest time.
pub const HOOK_LIMIT_MS: u64 = 10_000;

/// How long all hooks together may take, in ms of guest time.
pub const HOOKS_LIMIT_MS: u64 = 30_000;

/// Most bytes of entropy that one configure carries.
pub const MAX_ENTROPY_BYTES: usize = 1024;

/// Most bytes of names in one folder that is walked; the agent sorts them in memory.
pub const MAX_FOLDER_NAMES_BYTES: usize = 32 * 1024 * 1024;

/// Bytes of paths and link targets after which one reply of a walk is sent, before they are escaped.
pub const TREE_REPLY_BYTES: usize = 64 * 1024;

/// Most files of one hash request.
pub const MAX_HASHED_FILES: usize = 256;

/// Bytes after which the agent says that it is still reading a file to be hashed.
pub const HASH_PROGRESS_BYTES: u64 = 4 * 1024 * 1024;
