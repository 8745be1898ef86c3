//! Which connections belong to the present life of this machine, and which requests were begun.
//!
//! A machine whose memory is a copy goes on with the connections of the machine it was copied from, whose hosts are not
//! there. So connections belong to an [`Era`]. When the host says that the machine is a clone, another era begins and all
//! connections of the one before end ([`Lost::Detached`](super::Lost::Detached)).

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use agentiso_guest::hello::Nonce;
use agentiso_guest::message::ErrorCode;
use rustix::event::{EventfdFlags, eventfd};

use crate::agent::lock;
use crate::failure::Failure;

/// How long connections of another life have to end; they only have to notice.
const DETACH_LIMIT: Duration = Duration::from_secs(5);

/// Nonces that are remembered of requests that went out with their hello, and as many of those made void. Far more than
/// connections can come and go in the seconds that a host waits before it asks.
const REMEMBERED: usize = 4096;

/// One life of the machine.
#[derive(Debug)]
struct Era {
    /// Readable once it is over.
    over: OwnedFd,
    /// Connections that are being served in it.
    members: Mutex<usize>,
    left: Condvar,
}

impl Era {
    fn begin() -> std::io::Result<Arc<Self>> {
        let over = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self { over, members: Mutex::new(0), left: Condvar::new() }))
    }
}

/// A connection's part in the era that it began in. Dropped when its channel is closed or it is served to its end.
#[derive(Debug)]
pub(crate) struct Member(Arc<Era>);

impl Member {
    fn of(era: &Arc<Era>) -> Self {
        *lock(&era.members) += 1;
        Self(Arc::clone(era))
    }
}

impl AsFd for Member {
    /// Readable once the era is over.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.over.as_fd()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        *lock(&self.0.members) -= 1;
        self.0.left.notify_all();
    }
}

/// What is remembered of requests that go out with their hello.
#[derive(Debug, Default)]
struct Requests {
    begun: VecDeque<Nonce>,
    void: VecDeque<Nonce>,
}

/// All connections.
#[derive(Debug)]
pub(crate) struct Sessions {
    present: Mutex<Arc<Era>>,
    requests: Mutex<Requests>,
}

impl Sessions {
    /// # Errors
    /// The system is out of descriptors.
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self { present: Mutex::new(Era::begin()?), requests: Mutex::default() })
    }

    /// A connection begins.
    pub(super) fn enter(&self) -> Member {
        Member::of(&lock(&self.present))
    }

    /// Ends every connection but the one that asks, and waits until they are gone.
    ///
    /// # Errors
    /// Some are still there after 5 s, or the system is out of descriptors.
    pub(crate) fn detach_others(&self, own: &mut Option<Member>) -> Result<(), Failure> {
        let doing = "ending the connections of the machine that this one was copied from";
        let before = {
            let mut present = lock(&self.present);
            let others = *lock(&present.members) - usize::from(own.is_some());
            if others == 0 {
                return Ok(());
            }
            let next = Era::begin().map_err(|error| Failure::io(doing, &error))?;
            *own = Some(Member::of(&next));
            std::mem::replace(&mut *present, next)
        };
        // Adding one to an eventfd fails only when it is readable already.
        let _ = rustix::io::write(&before.over, &1_u64.to_ne_bytes());
        let members = lock(&before.members);
        let (members, _) = before
            .left
            .wait_timeout_while(members, DETACH_LIMIT, |members| *members > 0)
            .unwrap_or_else(PoisonError::into_inner);
        if *members > 0 {
            return Err(Failure::new(
                ErrorCode::TimedOut,
                format!("{doing}: {} did not end within {} s", *members, DETACH_LIMIT.as_secs()),
            ));
        }
        Ok(())
    }

    /// A request that came with this hello is about to be carried out; `false` if it must not be.
    pub(super) fn begin_request(&self, nonce: Nonce) -> bool {
        let mut requests = lock(&self.requests);
        if requests.void.contains(&nonce) {
            return false;
        }
        remember(&mut requests.begun, nonce);
        true
    }

    /// Makes sure that the request that came with this hello is not carried out; `false` if it was begun.
    pub(super) fn make_void(&self, nonce: Nonce) -> bool {
        let mut requests = lock(&self.requests);
        if requests.begun.contains(&nonce) {
            return false;
        }
        remember(&mut requests.void, nonce);
        true
    }
}

fn remember(nonces: &mut VecDeque<Nonce>, nonce: Nonce) {
    if nonces.len() >= REMEMBERED {
        nonces.pop_front();
    }
    nonces.push_back(nonce);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nonce(number: usize) -> Nonce {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        Nonce::from_bytes(bytes)
    }

    #[test]
    fn request_is_begun_or_void_and_never_both() {
        let sessions = Sessions::new().unwrap();

        assert!(sessions.begin_request(nonce(1)));
        assert!(!sessions.make_void(nonce(1)));
        assert!(sessions.make_void(nonce(2)));
        assert!(!sessions.begin_request(nonce(2)));
    }

    #[test]
    fn as_many_requests_as_promised_are_remembered_and_no_more() {
        let sessions = Sessions::new().unwrap();
        for number in 0..=REMEMBERED {
            assert!(sessions.begin_request(nonce(number)));
        }

        assert!(sessions.make_void(nonce(0)), "the oldest is forgotten");
        assert!(!sessions.make_void(nonce(1)));
        assert_eq!(lock(&sessions.requests).begun.len(), REMEMBERED);
    }

    #[test]
    fn detaching_waits_until_the_others_are_gone() {
        let sessions = Sessions::new().unwrap();
        let other = sessions.enter();
        let mut own = Some(sessions.enter());
        let waiter = std::thread::spawn(move || {
            let mut fds = [rustix::event::PollFd::new(&other, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut fds, None).unwrap();
            drop(other);
        });

        sessions.detach_others(&mut own).unwrap();

        waiter.join().unwrap();
        assert_eq!(*lock(&lock(&sessions.present).members), 1, "the one that asked is in the new era");
        sessions.detach_others(&mut own).unwrap();
    }
}
