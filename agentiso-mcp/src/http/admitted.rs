//! Answers that end when the token of whoever gets them is removed.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use agentiso_core::types::SessionId;
use http_body_util::combinators::BoxBody;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::tokens::Tokens;

/// How often the token of a client that listens is looked up.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The body of an answer of unknown length: a stream of events, which may stay open for days.
pub(super) struct Admitted {
    body: BoxBody<Bytes, Infallible>,
    tokens: Tokens,
    session: SessionId,
    token: String,
    look: Interval,
}

impl Admitted {
    pub(super) fn new(
        body: BoxBody<Bytes, Infallible>,
        tokens: Tokens,
        session: SessionId,
        token: String,
    ) -> Self {
        let mut look = interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { body, tokens, session, token, look }
    }

    /// Whether the token is known for another one, or none. A file that cannot be read now says neither.
    fn is_removed(&self) -> bool {
        self.tokens.session(&self.token).is_ok_and(|known| known.as_ref() != Some(&self.session))
    }
}

impl Body for Admitted {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        while self.look.poll_tick(context).is_ready() {
            if self.is_removed() {
                tracing::info!(session = %self.session, "the token was removed: its client's stream is ended");
                return Poll::Ready(None);
            }
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
