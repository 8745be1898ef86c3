//! The machine's end: user processes first, then the disk, then the power.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};
use rustix::system::{RebootCommand, reboot};

use crate::agent::Agent;
use crate::console::say;
use crate::freezer::GroupEvents;
use crate::serve::timeout_until;
use crate::sys::signal::{reap_inherited, signal_everyone};

/// How long killed processes have to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(2);
/// How often orphans are collected while waiting, as nobody else does it then.
const REAP_INTERVAL: Duration = Duration::from_millis(20);
/// File systems of the kernel's own, which hold no data.
const KERNEL_FILE_SYSTEMS: [&str; 7] = ["proc", "sysfs", "devtmpfs", "devpts", "cgroup2", "tmpfs", "rootfs"];

/// Ends all processes and brings every file system to rest.
pub(super) fn end_everything(agent: &Agent, grace: Duration) {
    let events = agent.group.as_ref().and_then(|group| {
        // What is frozen hears no signal but SIGKILL.
        let _ = group.thaw();
        group.events().ok()
    });
    signal_everyone(libc::SIGTERM);
    // Stopped processes must run to end.
    signal_everyone(libc::SIGCONT);
    wait_until_empty(events.as_ref(), grace);
    signal_everyone(libc::SIGKILL);
    if let Some(group) = &agent.group {
        let _ = group.kill();
    }
    wait_until_empty(events.as_ref(), KILL_LIMIT);
    rustix::fs::sync();
    unmount_all();
}

/// Waits until no user process is left, or the time is over.
fn wait_until_empty(events: Option<&GroupEvents>, limit: Duration) {
    let deadline = Instant::now().checked_add(limit);
    let is_over = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
    while let Some(events) = events
        && events.is_populated().unwrap_or(false)
        && !is_over()
    {
        while reap_inherited() {}
        let next = Instant::now() + REAP_INTERVAL;
        let mut fds = [PollFd::new(events, PollFlags::PRI)];
        let _ =
            poll(&mut fds, Some(&timeout_until(Some(deadline.map_or(next, |deadline| deadline.min(next))))));
    }
    while reap_inherited() {}
}

/// Unmounts what was mounted on disks, last first, and makes the root read-only, which flushes it.
pub(super) fn unmount_all() {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines().rev() {
        let mut fields = line.split(' ').skip(1);
        let (Some(place), Some(kind)) = (fields.next(), fields.next()) else { continue };
        if place == "/" || KERNEL_FILE_SYSTEMS.contains(&kind) {
            continue;
        }
        let place = unescape(place);
        if let Err(error) = unmount(place.as_str(), UnmountFlags::empty()) {
            say(&format!("unmounting {place}: {error}"));
            let _ = unmount(place.as_str(), UnmountFlags::DETACH);
        }
    }
    if let Err(error) = mount_remount("/", MountFlags::RDONLY, "") {
        say(&format!("making / read-only: {error}"));
    }
    rustix::fs::sync();
}

/// The kernel writes blanks and backslashes in mount points as three octal digits.
fn unescape(field: &str) -> String {
    let mut plain = Vec::with_capacity(field.len());
    let mut bytes = field.as_bytes();
    while let Some((&first, rest)) = bytes.split_first() {
        let digits =
            rest.get(..3).filter(|_| first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                bytes = &rest[3..];
            }
            None => {
                plain.push(first);
                bytes = rest;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// Turns the power off; returns only if the kernel refuses.
pub(super) fn power_off() {
    rustix::fs::sync();
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        say(&format!("turning the power off: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::unescape;

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape(r"/a\04"), r"/a\04");
    }
}
