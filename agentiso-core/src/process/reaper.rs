//! Collects the children that [`Detached`](super::Detached) started, so that a long-lived embedder keeps no zombies.
//!
//! One thread for the whole process, started with the first child. It waits for exactly the pidfds it was given and
//! never for "any child": the embedder's own children, and tokio's, are theirs to collect.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, OnceLock, PoisonError},
};

use rustix::{
    buffer::spare_capacity,
    event::epoll,
    io::Errno,
    process::{WaitId, WaitIdOptions, waitid},
};

struct Reaper {
    epoll: OwnedFd,
    children: Mutex<Children>,
}

#[derive(Default)]
struct Children {
    next: u64,
    pidfds: HashMap<u64, OwnedFd>,
}

/// Has a child collected when it ends.
pub(super) fn reap(pidfd: OwnedFd) -> io::Result<()> {
    let reaper = reaper()?;
    let mut children = reaper.children.lock().unwrap_or_else(PoisonError::into_inner);
    let key = children.next;
    children.next += 1;
    epoll::add(&reaper.epoll, &pidfd, epoll::EventData::new_u64(key), epoll::EventFlags::IN)?;
    children.pidfds.insert(key, pidfd);
    Ok(())
}

fn reaper() -> io::Result<&'static Reaper> {
    static REAPER: OnceLock<Reaper> = OnceLock::new();
    static STARTING: Mutex<()> = Mutex::new(());
    if let Some(reaper) = REAPER.get() {
        return Ok(reaper);
    }
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(reaper) = REAPER.get() {
        return Ok(reaper);
    }
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let reaper = REAPER.get_or_init(|| Reaper { epoll, children: Mutex::default() });
    std::thread::Builder::new()
        .name("agentiso-reaper".to_owned())
        .stack_size(64 * 1024)
        .spawn(move || reaper.run())?;
    Ok(reaper)
}

impl Reaper {
    fn run(&self) {
        let mut events = Vec::with_capacity(16);
        loop {
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot wait for machines that end: they stay zombies");
                    return;
                }
            }
            for event in events.drain(..) {
                self.collect(event.data.u64());
            }
        }
    }

    fn collect(&self, key: u64) {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pidfd) = children.pidfds.remove(&key) else { return };
        drop(children);
        // Errors: someone else collected it, or SIGCHLD is ignored. Gone is gone.
        let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
        let _ = epoll::delete(&self.epoll, &pidfd);
    }
}
