//! How far a call is, told to clients that asked for it.
//!
//! A client asks with a `progressToken`. Until the call ends it is told each second, or when there is news, how long the
//! call has taken, what it does now, and what its command printed meanwhile. A client that does not read delays nobody:
//! what was not sent is put together, cut, and sent with the next message.

use std::{
    future::Future,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rmcp::{
    RoleServer,
    model::{ProgressNotificationParam, ProgressToken},
    service::{Peer, RequestContext},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use crate::tools::cut;

/// The least time between two messages.
const INTERVAL: Duration = Duration::from_millis(250);

/// The most time between two messages.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Most bytes of output in one message; the call's result has all of it.
const MAX_OUTPUT_BYTES: usize = 16 * 1024;

/// Where a call says how far it is.
#[derive(Default)]
pub(crate) struct Progress {
    news: Mutex<News>,
    changed: Notify,
    is_wanted: bool,
}

/// What was not sent yet.
#[derive(Default)]
struct News {
    stage: &'static str,
    output: String,
    /// Bytes of output that did not fit.
    left_out: usize,
    amount: Option<(u64, Option<u64>)>,
}

impl Progress {
    /// For a call whose client wants to hear of it.
    fn wanted() -> Self {
        Self { is_wanted: true, ..Self::default() }
    }

    /// What is being done now.
    pub(crate) fn stage(&self, stage: &'static str) {
        self.lock().stage = stage;
        self.changed.notify_one();
    }

    /// How many bytes of how many have been copied.
    pub(crate) fn amount(&self, done: u64, total: Option<u64>) {
        self.lock().amount = Some((done, total));
        self.changed.notify_one();
    }

    /// What a command printed just now.
    pub(crate) fn output(&self, bytes: &[u8]) {
        if !self.is_wanted {
            return;
        }
        let mut news = self.lock();
        let text = String::from_utf8_lossy(bytes);
        let shown = cut(&text, MAX_OUTPUT_BYTES - news.output.len());
        news.left_out += text.len() - shown.len();
        news.output.push_str(shown);
        drop(news);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, News> {
        // Nothing that holds it can panic half way.
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to say now, and forgets the output in it.
    fn message(&self) -> (String, Option<(u64, Option<u64>)>) {
        let mut news = self.lock();
        let mut text = std::mem::take(&mut news.output);
        let left_out = std::mem::take(&mut news.left_out);
        if left_out > 0 {
            text.push_str(&format!("[{left_out} bytes left out here]"));
        }
        if text.is_empty() {
            text.push_str(news.stage);
        }
        (text, news.amount)
    }

    /// Awaits work that reports to a `Progress`, and tells the client meanwhile if it asked for that.
    pub(crate) async fn follow<T, F>(
        context: &RequestContext<RoleServer>,
        work: impl FnOnce(ProgressRef) -> F,
    ) -> T
    where
        F: Future<Output = T>,
    {
        let Some(token) = context.meta.get_progress_token() else {
            return work(ProgressRef::default()).await;
        };
        let progress = ProgressRef(std::sync::Arc::new(Self::wanted()));
        let telling = tell(progress.clone(), context.peer.clone(), token);
        tokio::select! {
            biased;
            outcome = work(progress) => outcome,
            never = telling => match never {},
        }
    }
}

/// A shared [`Progress`].
#[derive(Clone, Default)]
pub(crate) struct ProgressRef(std::sync::Arc<Progress>);

impl std::ops::Deref for ProgressRef {
    type Target = Progress;

    fn deref(&self) -> &Progress {
        &self.0
    }
}

/// Tells the client how far the call is, until it is dropped.
async fn tell(
    progress: ProgressRef,
    peer: Peer<RoleServer>,
    token: ProgressToken,
) -> std::convert::Infallible {
    let began = Instant::now();
    let mut last = -1.0;
    loop {
        sleep(INTERVAL).await;
        // Nothing new for a second: it is told that the call goes on.
        let _ = timeout(HEARTBEAT.saturating_sub(INTERVAL), progress.changed.notified()).await;
        let (message, amount) = progress.message();
        // Each message must say more than the last one: what is not counted is counted in seconds.
        let (done, total) = match amount {
            Some((done, total)) => (done as f64, total.map(|total| total as f64)),
            None => (began.elapsed().as_secs_f64(), None),
        };
        if done <= last {
            continue;
        }
        last = done;
        let mut param = ProgressNotificationParam::new(token.clone(), done);
        param.total = total;
        param.message = Some(message).filter(|message| !message.is_empty());
        // A client that went away, or reads nothing, ends or finishes the call elsewhere.
        if let Err(error) = peer.notify_progress(param).await {
            tracing::debug!(%error, "could not tell a client how far its call is");
            return std::future::pending().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_bounded_and_what_was_left_out_is_counted() {
        let progress = Progress::wanted();
        progress.output(&vec![b'a'; MAX_OUTPUT_BYTES - 1]);
        progress.output("€uro".as_bytes());

        let (text, _) = progress.message();

        assert!(text.ends_with("a[6 bytes left out here]"), "{}", &text[text.len() - 40..]);
        progress.stage("next");
        assert_eq!(progress.message().0, "next");
    }

    #[test]
    fn nobody_who_did_not_ask_keeps_output() {
        let progress = Progress::default();
        progress.output(b"text");
        assert_eq!(progress.message().0, "");
    }
}
