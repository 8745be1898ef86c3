//! Methods of [`ProcessRef`].

use std::{io, os::fd::OwnedFd, sync::OnceLock, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::types::ProcessRef;

impl ProcessRef {
    /// The calling process.
    ///
    /// # Errors
    /// /proc is not mounted or not readable.
    pub fn current() -> io::Result<Self> {
        let pid = std::process::id();
        Self::of(pid)?.ok_or_else(|| io::Error::other("this process is not listed in /proc"))
    }

    /// The process that has this number now; `None` if none has.
    ///
    /// # Errors
    /// /proc is not mounted or not readable.
    pub fn of(pid: u32) -> io::Result<Option<Self>> {
        let boot_id = boot_id()?.to_owned();
        Ok(start_ticks(pid)?.map(|start_ticks| Self { pid, start_ticks, boot_id }))
    }

    /// Whether the process still runs. One that has ended but was not collected by its parent does not run; one that
    /// has the number but started at another time is another one. What cannot be found out counts as not running.
    pub fn is_alive(&self) -> bool {
        match self.open() {
            Ok(Some(pidfd)) => !has_ended(&pidfd),
            Ok(None) | Err(_) => false,
        }
    }

    /// Whether the process is alive and has not begun to end. One that was killed closes its sockets some time before it
    /// counts as ended, for its memory has to be freed: whoever saw a connection to it close asks this.
    ///
    /// A process whose first thread has ended while others go on counts as ending too, which makes this no proof that it
    /// does nothing any more: [`ProcessRef::is_alive`] and [`ProcessRef::wait_exit`] are.
    pub(crate) fn is_running(&self) -> bool {
        self.is_alive() && !matches!(stat_field(self.pid, FLAGS), Ok(Some(flags)) if flags & PF_EXITING != 0)
    }

    /// Sends a signal. `false` if the process is gone already; never reaches another process.
    ///
    /// # Errors
    /// The process belongs to someone else.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<bool> {
        let Some(pidfd) = self.open()? else { return Ok(false) };
        match pidfd_send_signal(&pidfd, signal) {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the process has ended; `false` if the time was over first. Needs no polling and works for
    /// processes that are not children of this one. Cancel safe.
    ///
    /// # Errors
    /// No more descriptors, or called outside a tokio runtime with I/O enabled.
    pub(crate) async fn wait_exit(&self, limit: Duration) -> io::Result<bool> {
        let Some(pidfd) = self.open()? else { return Ok(true) };
        if has_ended(&pidfd) {
            return Ok(true);
        }
        let pidfd = super::sys::watch(pidfd)?;
        match tokio::time::timeout(limit, pidfd.readable()).await {
            Ok(ready) => ready.map(|_| true),
            Err(_) => Ok(false),
        }
    }

    /// A descriptor for exactly this process; `None` if it is gone.
    pub(crate) fn open(&self) -> io::Result<Option<OwnedFd>> {
        if boot_id()? != self.boot_id {
            return Ok(None);
        }
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            // EINVAL: the number belongs to a thread that is not a process.
            Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // In this order: if the process that has the number *now* is the one recorded, it had it when the descriptor
        // was opened.
        Ok((start_ticks(self.pid)? == Some(self.start_ticks)).then_some(pidfd))
    }
}

/// Whether the process behind a pidfd has ended, all of its threads included; it may still be a zombie.
pub(super) fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(ready) if ready > 0)
}

/// The host's boot id.
pub(crate) fn boot_id() -> io::Result<&'static str> {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    if let Some(known) = BOOT_ID.get() {
        return Ok(known);
    }
    let read = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(BOOT_ID.get_or_init(|| read.trim().to_owned()))
}

/// When a process started, in clock ticks since the host did: a field of /proc/PID/stat as proc(5) counts them.
const START_TICKS: usize = 22;

/// The kernel's flags of a process's first thread, likewise.
const FLAGS: usize = 9;

/// Flag of a thread that is being shut down (include/linux/sched.h). Set before anything of the process is taken down.
const PF_EXITING: u64 = 0x4;

fn start_ticks(pid: u32) -> io::Result<Option<u64>> {
    stat_field(pid, START_TICKS)
}

/// A number from /proc/PID/stat; `None` if there is no such process.
fn stat_field(pid: u32, number: usize) -> io::Result<Option<u64>> {
    let stat = match std::fs::read(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        // ESRCH: it went away between open and read.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let missing =
        || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/PID/stat has no field {number}"));
    parse_field(&stat, number).map(Some).ok_or_else(missing)
}

fn parse_field(stat: &[u8], number: usize) -> Option<u64> {
    // The second field is the program's name in parentheses and may hold anything, blanks and parentheses included.
    let after_name = stat.iter().rposition(|&byte| byte == b')')? + 1;
    let rest = std::str::from_utf8(stat.get(after_name..)?).ok()?;
    // The first of these is field 3.
    rest.split_ascii_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_a_hostile_name() {
        let stat = b"7 (a) R 1 2 (x) S 1 7 7 0 -1 4194304 1 0 0 0 1 2 0 0 20 0 1 0 987654 4096 1 18446744073709551615";

        assert_eq!(parse_field(stat, START_TICKS), Some(987_654));
        assert_eq!(parse_field(stat, FLAGS), Some(4_194_304));
    }

    #[test]
    fn truncated_stat_is_refused() {
        assert_eq!(parse_field(b"7 (a) R 1 2", START_TICKS), None);
        assert_eq!(parse_field(b"", FLAGS), None);
        assert_eq!(parse_field(b"7 (a) R 1 2", 2), None);
    }

    #[test]
    fn this_process_is_alive() {
        let current = ProcessRef::current().unwrap();

        assert!(current.is_alive() && current.is_running());
    }

    /// It holds files in memory by descriptors before and after that of its output: freeing them takes the kernel long
    /// enough to be seen, in whatever order it closes them.
    #[test]
    fn process_whose_sockets_have_closed_runs_no_more() {
        use rustix::fs::{MemfdFlags, memfd_create};
        use std::{
            fs::File,
            io::{Read, Write},
            process::{Command, Stdio},
        };
        let large_file = || {
            let mut file = File::from(memfd_create("large", MemfdFlags::CLOEXEC).unwrap());
            file.write_all(&vec![0; 64 << 20]).unwrap();
            file
        };
        let mut child = Command::new("sleep")
            .arg("1000")
            .stdin(large_file())
            .stdout(Stdio::piped())
            .stderr(large_file())
            .spawn()
            .unwrap();
        let process = ProcessRef::of(child.id()).unwrap().unwrap();
        let was_running = process.is_running();

        process.signal(Signal::KILL).unwrap();
        let read = child.stdout.as_mut().unwrap().read(&mut [0]).unwrap();
        let is_running = process.is_running();

        child.wait().unwrap();
        assert_eq!((was_running, read, is_running), (true, 0, false));
    }

    #[test]
    fn same_number_of_another_time_is_another_process() {
        let current = ProcessRef::current().unwrap();
        let earlier = ProcessRef { start_ticks: current.start_ticks - 1, ..current.clone() };
        let other_boot = ProcessRef { boot_id: "another".to_owned(), ..current };

        assert!(!earlier.is_alive() && !other_boot.is_alive());
        assert!(!earlier.signal(Signal::KILL).unwrap() && !other_boot.signal(Signal::KILL).unwrap());
    }

    #[tokio::test]
    async fn wait_exit_says_whether_the_time_was_over_first() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = ProcessRef::of(child.id()).unwrap().unwrap();

        let before = process.wait_exit(Duration::from_millis(20)).await.unwrap();
        let sent = process.signal(Signal::KILL).unwrap();
        let after = process.wait_exit(Duration::from_secs(10)).await.unwrap();

        assert!(!before && sent && after);
        // A zombie until here, and dead all the same.
        assert!(!process.is_alive());
        child.wait().unwrap();
        assert!(!process.signal(Signal::KILL).unwrap());
        assert!(process.wait_exit(Duration::ZERO).await.unwrap());
    }
}
