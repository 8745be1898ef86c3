use std::{
    fs,
    path::{Path, PathBuf},
};

use super::AssetError;

/// Most bytes of an agent or shim.
const MAX_BINARY_BYTES: u64 = 256 * 1024 * 1024;

/// The two programs that agentiso brings along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryKind {
    /// The agent, PID 1 of every guest.
    Agent,
    /// The companion process of each machine.
    Shim,
}

impl std::fmt::Display for BinaryKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Agent => "the guest agent",
            Self::Shim => "the companion program agentiso-shim",
        })
    }
}

impl BinaryKind {
    /// Name of its file.
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Agent => super::AGENT,
            Self::Shim => super::SHIM,
        }
    }

    /// The command that builds it in agentiso's source folder.
    pub const fn build_command(self) -> &'static str {
        match self {
            Self::Agent => {
                "RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --target x86_64-unknown-linux-gnu -p agentiso-guest --features agent --bin agentiso-guest"
            }
            Self::Shim => "cargo build --release -p agentiso-core --features shim --bin agentiso-shim",
        }
    }

    /// Reads it: from the path given, else from the first of the folders that has it.
    pub(super) fn read(self, given: Option<&Path>, folders: &[PathBuf]) -> Result<Vec<u8>, AssetError> {
        let searched: Vec<PathBuf> = match given {
            Some(path) => vec![path.to_owned()],
            None => folders.iter().map(|folder| folder.join(self.file_name())).collect(),
        };
        let Some(path) = searched.iter().find(|path| path.is_file()) else {
            return Err(AssetError::NoBinary { binary: self, searched });
        };
        let wrong = |reason| AssetError::WrongBinary { binary: self, path: path.clone(), reason };
        if fs::metadata(path).map_err(AssetError::io("read", path))?.len() > MAX_BINARY_BYTES {
            return Err(wrong("it is too large"));
        }
        let binary = fs::read(path).map_err(AssetError::io("read", path))?;
        check_elf(self, &binary).map_err(wrong)?;
        Ok(binary)
    }
}

/// Where the programs are when nothing is said: beside the running executable, and where packages put them.
pub(super) fn default_folders() -> Vec<PathBuf> {
    let Ok(executable) = std::env::current_exe() else { return Vec::new() };
    let Some(folder) = executable.parent() else { return Vec::new() };
    let mut folders = vec![folder.to_owned()];
    if let Some(prefix) = folder.parent() {
        folders.push(prefix.join("lib/agentiso"));
    }
    folders
}

/// A 64-bit x86 ELF program; the agent without an interpreter, for there is no libc where it runs.
fn check_elf(kind: BinaryKind, binary: &[u8]) -> Result<(), &'static str> {
    const SEGMENT_INTERPRETER: u32 = 3;
    const PROGRAM_HEADER_BYTES: usize = 56;
    let field = |at: usize, bytes: usize| {
        let field = binary.get(at..at.checked_add(bytes)?)?;
        field
            .iter()
            .rev()
            .try_fold(0usize, |value, byte| value.checked_mul(256)?.checked_add(usize::from(*byte)))
    };
    if !binary.starts_with(&[0x7f, b'E', b'L', b'F', 2, 1]) || field(18, 2) != Some(62) {
        return Err("it is not a program for x86-64 Linux");
    }
    let damaged = "its ELF header is damaged";
    let (table, count) = (field(32, 8).ok_or(damaged)?, field(56, 2).ok_or(damaged)?);
    for index in 0..count {
        let header = table.checked_add(index * PROGRAM_HEADER_BYTES).ok_or(damaged)?;
        let segment = field(header, 4).ok_or(damaged)?;
        if kind == BinaryKind::Agent && u32::try_from(segment) == Ok(SEGMENT_INTERPRETER) {
            return Err("it is not statically linked");
        }
    }
    Ok(())
}
