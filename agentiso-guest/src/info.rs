//! What the guest says of itself.

use agentiso_guest::message::{GuestInfo, Reply};

use crate::failure::Failure;

/// Kernel, host name, uptime, memory and root file system.
///
/// # Errors
/// The root file system cannot be asked.
pub(crate) fn gather() -> Result<Reply, Failure> {
    let uname = rustix::system::uname();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let root = rustix::fs::statvfs("/").map_err(|error| Failure::system("reading the size of /", error))?;
    let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(uptime.tv_sec).unwrap_or_default();
    let millis = u64::try_from(uptime.tv_nsec / 1_000_000).unwrap_or_default();
    Ok(Reply::Info {
        info: Box::new(GuestInfo {
            kernel: uname.release().to_string_lossy().into_owned(),
            hostname: uname.nodename().to_string_lossy().into_owned(),
            uptime_ms: seconds.saturating_mul(1000).saturating_add(millis),
            memory_kib: meminfo(&memory, "MemTotal:"),
            memory_available_kib: meminfo(&memory, "MemAvailable:"),
            root_bytes: root.f_blocks.saturating_mul(root.f_frsize),
            root_free_bytes: root.f_bavail.saturating_mul(root.f_frsize),
        }),
    })
}

fn meminfo(text: &str, field: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|value| value.parse().ok())
        .unwrap_or_default()
}
