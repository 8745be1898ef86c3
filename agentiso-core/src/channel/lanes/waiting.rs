//! Sleeping until a lane becomes free.
//!
//! A lock that is released wakes nobody but those who block on that very lock, and a blocked thread cannot be
//! cancelled. So waiters watch the folder with inotify instead: a holder keeps its lock file open for writing and
//! closes it last, which the kernel reports as "closed after writing", also when the holder was killed. Searching
//! opens lock files for reading only, so that waiters never wake each other by looking.
//!
//! When a holder is killed, the report can come an instant before the lock is free. A waiter therefore looks again a
//! few times after each report, at growing distances, and then sleeps until the next one.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::{
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::Errno,
};
use tokio::{
    io::unix::AsyncFd,
    time::{Instant, sleep_until, timeout_at},
};

use super::{folder::RunDir, sys};
use crate::channel::ChannelError;

/// After a report a waiter looks again after this long, then after twice as long, and so on.
const FIRST_LOOK: Duration = Duration::from_millis(1);
/// The last of these looks comes after this long: a killed holder's files are closed by then.
const LAST_LOOK: Duration = Duration::from_millis(256);

/// How often a waiter looks when the user's limit of inotify instances (128 by default) is used up.
const LOOK_WITHOUT_INOTIFY: Duration = Duration::from_millis(50);

/// Rings when a lane of one machine may have become free.
pub(super) struct LaneBell {
    /// `None` where the host has no inotify instance left.
    inotify: Option<AsyncFd<OwnedFd>>,
    /// When to look again without a report; doubles up to [`LAST_LOOK`], then `None`.
    next_look: Option<Duration>,
}

impl LaneBell {
    /// Begins to listen. Every lane that is given back from now on is heard.
    pub(super) fn hang(run_dir: &RunDir) -> Result<Self, ChannelError> {
        let watch = || {
            let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
            // Deletion wakes waiters of a released channel, who then find that nobody listens.
            let flags = WatchFlags::CLOSE_WRITE | WatchFlags::DELETE | WatchFlags::ONLYDIR;
            inotify::add_watch(&inotify, run_dir.short_path(), flags)?;
            Ok(inotify)
        };
        let inotify = match watch() {
            Ok(inotify) => Some(sys::readable(inotify).map_err(|error| watch_error(run_dir, error))?),
            Err(Errno::MFILE | Errno::NFILE | Errno::NOSPC) => None,
            Err(errno) => return Err(watch_error(run_dir, errno.into())),
        };
        Ok(Self { inotify, next_look: None })
    }

    /// Sleeps until it is worth looking for a free lane again; `false` once the deadline has passed.
    pub(super) async fn wait_until(&mut self, deadline: Instant) -> Result<bool, ChannelError> {
        let now = Instant::now();
        if now >= deadline {
            return Ok(false);
        }
        let Some(inotify) = &self.inotify else {
            sleep_until(deadline.min(now + LOOK_WITHOUT_INOTIFY)).await;
            return Ok(true);
        };
        let wake = self.next_look.map_or(deadline, |look| deadline.min(now + look));
        match timeout_at(wake, drain(inotify)).await {
            Ok(Ok(())) => self.next_look = Some(FIRST_LOOK),
            Ok(Err(source)) => {
                return Err(ChannelError::Io { operation: "read", object: "inotify".to_owned(), source });
            }
            Err(_elapsed) => {
                self.next_look = self.next_look.map(|look| look * 2).filter(|look| *look <= LAST_LOOK);
            }
        }
        // At the deadline there is one last look: true here, false in the next call.
        Ok(true)
    }
}

/// Waits for reports and throws them away: any of them is a reason to look.
async fn drain(inotify: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut reports = [0; 4096];
    loop {
        let mut ready = inotify.readable().await?;
        let read = ready
            .try_io(|inotify| rustix::io::read(inotify.get_ref(), &mut reports).map_err(io::Error::from));
        match read {
            Ok(result) => return result.map(|_| ()),
            Err(_would_block) => {}
        }
    }
}

fn watch_error(run_dir: &RunDir, source: io::Error) -> ChannelError {
    ChannelError::Io { operation: "watch folder", object: run_dir.display().to_string(), source }
}
