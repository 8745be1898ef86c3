use std::time::{SystemTime, UNIX_EPOCH};

/// What time it is. Sessions of several processes share it, and it goes on while none of them runs, so it is the wall
/// clock.
pub trait Clock: std::fmt::Debug + Send + Sync {
    /// The present.
    fn now(&self) -> SystemTime;
}

/// The host's wall clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// A time as the records hold it: in milliseconds since 1970.
pub(super) fn millis(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
