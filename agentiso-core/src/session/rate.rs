use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How many sessions' worth of calls all sessions together may make: whoever takes ever new names gets no further.
pub const CEILING_FACTOR: u32 = 10;

/// Kinds of calls. Each has an allowance of its own, so that a session that has created too much can still clean up. A
/// batch is one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// What makes workspaces: create, fork.
    Create,
    /// What runs commands.
    Exec,
    /// Messages between machines of a team.
    Message,
    /// Everything else.
    Other,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Create, Self::Exec, Self::Message, Self::Other];

    /// How many calls of this kind one session may make.
    pub const fn limit(self) -> RateLimit {
        match self {
            Self::Create => RateLimit { burst: 3, per_minute: 5 },
            Self::Exec => RateLimit { burst: 10, per_minute: 60 },
            Self::Message => RateLimit { burst: 50, per_minute: 300 },
            Self::Other => RateLimit { burst: 20, per_minute: 120 },
        }
    }

    /// How many calls of this kind all sessions together may make.
    pub const fn ceiling(self) -> RateLimit {
        let RateLimit { burst, per_minute } = self.limit();
        RateLimit { burst: burst * CEILING_FACTOR, per_minute: per_minute * CEILING_FACTOR }
    }

    /// As it is written in records and errors.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Exec => "exec",
            Self::Message => "message",
            Self::Other => "other",
        }
    }
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A bucket of tokens: full at first, a call takes one, and they come back at a constant rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Calls that can be made at once after a pause.
    pub burst: u32,
    /// Calls that can be made in the long run.
    pub per_minute: u32,
}

impl RateLimit {
    /// How long a token takes to come back, in milliseconds.
    const fn interval(self) -> i64 {
        60_000 / self.per_minute as i64
    }

    /// Takes a token of a bucket that is full again at `full_at`, both in milliseconds since 1970; one number is all
    /// that has to be kept of it. Returns when it will be full then.
    ///
    /// # Errors
    /// It is empty; there will be a token after this time.
    pub(super) fn take(self, full_at: i64, now: i64) -> Result<i64, Duration> {
        let (interval, empty) = (self.interval(), self.interval() * i64::from(self.burst));
        // Emptier than empty is a clock that was set back.
        let missing = full_at.saturating_sub(now).clamp(0, empty);
        match missing + interval - empty {
            wait @ 1.. => Err(Duration::from_millis(wait.unsigned_abs())),
            _ => Ok(now.saturating_add(missing + interval)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_the_documented_ones() {
        let limits = Class::ALL.map(|class| (class.limit().burst, class.limit().per_minute));
        assert_eq!(limits, [(3, 5), (10, 60), (50, 300), (20, 120)]);
        assert_eq!(Class::Create.ceiling(), RateLimit { burst: 30, per_minute: 50 });
    }

    #[test]
    fn bucket_gives_its_burst_and_then_one_token_per_interval() {
        for class in Class::ALL {
            let limit = class.limit();
            let (mut full_at, now) = (0, 1_000_000);
            for _ in 0..limit.burst {
                full_at = limit.take(full_at, now).unwrap();
            }
            let interval = 60_000 / i64::from(limit.per_minute);

            let wait = limit.take(full_at, now).unwrap_err();
            assert_eq!(wait, Duration::from_millis(interval.unsigned_abs()), "{class}");
            assert_eq!(limit.take(full_at, now + interval - 1), Err(Duration::from_millis(1)));
            full_at = limit.take(full_at, now + interval).unwrap();
            assert!(limit.take(full_at, now + interval).is_err(), "one token came back, not two");
        }
    }

    #[test]
    fn bucket_is_full_again_after_a_pause_and_never_fuller() {
        let limit = Class::Create.limit();
        let mut full_at = 0;
        for now in [1_000_000, 100_000_000] {
            for _ in 0..3 {
                full_at = limit.take(full_at, now).unwrap();
            }
            assert!(limit.take(full_at, now).is_err());
        }
    }

    #[test]
    fn bucket_of_a_clock_that_was_set_back_is_only_empty() {
        let wait = Class::Create.limit().take(i64::MAX, 1_000_000).unwrap_err();
        assert_eq!(wait, Duration::from_secs(12));
    }
}
