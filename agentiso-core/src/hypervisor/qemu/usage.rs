//! How much of the host's memory a machine takes up, as the kernel counts it.

use std::{fs::File, io::Read};

use super::files::io_error;
use crate::hypervisor::{HypervisorError, Machine, MemoryUsage};

/// Most bytes of the kernel's summary that are read. It has about 700.
const MAX_SUMMARY_BYTES: u64 = 16 * 1024;

/// Reads the kernel's summary of a machine's mappings. Takes a millisecond for some hundred MiB.
pub(super) fn memory_usage(machine: &Machine) -> Result<MemoryUsage, HypervisorError> {
    let path = std::path::PathBuf::from(format!("/proc/{}/smaps_rollup", machine.process.pid));
    let mut summary = String::new();
    let read = File::open(&path).and_then(|file| file.take(MAX_SUMMARY_BYTES).read_to_string(&mut summary));
    // Looked at afterwards: what was read is of the process that lives now.
    if !machine.process.is_running() {
        return Err(HypervisorError::Gone { id: machine.id });
    }
    read.map_err(|error| io_error("read", &path, error))?;
    parse(&summary).ok_or_else(|| {
        io_error("understand", &path, std::io::Error::other("it does not say how much is resident"))
    })
}

fn parse(summary: &str) -> Option<MemoryUsage> {
    let field = |name: &str| -> Option<u64> {
        let line = summary.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()?.checked_mul(1024)
    };
    let resident_bytes = field("Rss")?;
    let anonymous = field("Anonymous")?;
    Some(MemoryUsage {
        // Swapped out, it is still nobody else's.
        unique_bytes: anonymous + field("Swap").unwrap_or(0),
        shared_bytes: resident_bytes.saturating_sub(anonymous),
        resident_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUMMARY: &str = "\
55e0-7ffc ---p 00000000 00:00 0                          [rollup]
Rss:              260000 kB
Pss:              130000 kB
Pss_Anon:          20000 kB
Anonymous:         20000 kB
Swap:                500 kB
SwapPss:             500 kB
Locked:                0 kB
";

    #[test]
    fn anonymous_memory_is_its_own_and_files_are_shared() {
        let usage = parse(SUMMARY).unwrap();

        assert_eq!(
            usage,
            MemoryUsage {
                unique_bytes: 20_500 * 1024,
                shared_bytes: 240_000 * 1024,
                resident_bytes: 260_000 * 1024
            }
        );
    }

    #[test]
    fn damaged_summary_is_no_usage() {
        for summary in ["", "Rss: 1 kB", "Anonymous: 1 kB", "Rss: x kB\nAnonymous: 1 kB"] {
            assert_eq!(parse(summary), None, "{summary}");
        }
    }
}
