//! Connections that stay open a moment for the next operation.
//!
//! Connecting and hanging up cost a virtual machine about as much as a whole round trip: it is told of each. So a
//! connection whose operation came to its proper end is kept for the next one of the same client, which opens it as any
//! other: with a hello of its own and all that follows from it.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    runtime::Handle,
    time::{Instant, sleep_until},
};

use crate::channel::GuestStream;

/// How long a connection is kept. Nobody else can use its lane meanwhile. Agents close sockets after twice as long.
const IDLE_LIMIT: Duration = Duration::from_millis(500);

/// Most connections that one client keeps: what is done one after the other needs no more, and lanes are few.
const MOST_IDLE: usize = 1;

struct Idle {
    stream: GuestStream,
    until: Instant,
}

/// The connections that one client and its clones keep.
#[derive(Clone, Default)]
pub(super) struct IdleStreams(Arc<Mutex<Vec<Idle>>>);

fn lock(idle: &Mutex<Vec<Idle>>) -> MutexGuard<'_, Vec<Idle>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

impl IdleStreams {
    /// Keeps a connection at a message boundary, or closes it.
    pub(super) fn keep(&self, stream: GuestStream) {
        // Without a runtime nobody would close it in time.
        let Ok(runtime) = Handle::try_current() else { return };
        let until = Instant::now() + IDLE_LIMIT;
        let mut idle = lock(&self.0);
        if idle.len() >= MOST_IDLE {
            return;
        }
        let is_first = idle.is_empty();
        idle.push(Idle { stream, until });
        drop(idle);
        if is_first {
            runtime.spawn(close_when_due(Arc::downgrade(&self.0), until));
        }
    }

    /// A connection that was kept and is still open. One on which anything has come since is none.
    pub(super) fn take(&self) -> Option<GuestStream> {
        let Idle { mut stream, until } = lock(&self.0).pop()?;
        let mut byte = [0; 1];
        let mut context = Context::from_waker(Waker::noop());
        let read = Pin::new(&mut stream).poll_read(&mut context, &mut ReadBuf::new(&mut byte));
        (matches!(read, Poll::Pending) && Instant::now() < until).then_some(stream)
    }
}

/// Closes what is due from `next` on, until nothing is kept or the client is gone.
async fn close_when_due(idle: Weak<Mutex<Vec<Idle>>>, mut next: Instant) {
    loop {
        sleep_until(next).await;
        let Some(idle) = idle.upgrade() else { return };
        let mut idle = lock(&idle);
        let now = Instant::now();
        idle.retain(|idle| idle.until > now);
        match idle.iter().map(|idle| idle.until).min() {
            Some(until) => next = until,
            None => return,
        }
    }
}
