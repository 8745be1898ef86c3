//! The newest bytes of a stream.

use std::collections::VecDeque;

use agentiso_guest::limits::JOB_OUTPUT_BYTES;

/// The newest [`JOB_OUTPUT_BYTES`] of what a command printed to one stream.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    bytes: VecDeque<u8>,
    /// Bytes that ever came.
    total: u64,
}

impl Kept {
    pub(crate) fn append(&mut self, news: &[u8]) {
        self.total += news.len() as u64;
        let news = &news[news.len().saturating_sub(JOB_OUTPUT_BYTES)..];
        let excess = (self.bytes.len() + news.len()).saturating_sub(JOB_OUTPUT_BYTES);
        self.bytes.drain(..excess);
        self.bytes.extend(news);
    }

    /// Bytes that ever came.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// All that is kept.
    pub(super) fn all(&self) -> Vec<u8> {
        self.bytes.iter().copied().collect()
    }

    /// Takes what came after the first `seen` bytes and is still kept, and moves `seen` to the end.
    pub(super) fn after(&self, seen: &mut u64) -> Option<Vec<u8>> {
        let unseen = usize::try_from(self.total - *seen).unwrap_or(usize::MAX).min(self.bytes.len());
        *seen = self.total;
        (unseen > 0).then(|| self.bytes.range(self.bytes.len() - unseen..).copied().collect())
    }
}
