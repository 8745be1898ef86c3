use std::time::{Duration, Instant, SystemTime};

use agentiso_guest::{
    limits::HOOKS_LIMIT_MS,
    message::{Configuration, NetworkConfiguration, Reply, Request},
};

use super::{CHUNK_DEADLINE, GuestClient, GuestError, SHORT_REPLY, secret::Guarded, session::kind};

/// How far a guest's clock may be off by its own account, beyond half a round trip, before it is set again.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(20);

/// How far it may be off by its own account at most. It is then right within this and half a round trip.
const CLOCK_LIMIT: Duration = Duration::from_millis(100);

/// How often a clock that is wrong is set again.
const CLOCK_CORRECTIONS: u32 = 3;

/// What a guest is given: its identity and surroundings. What is `None` or `false` stays as it is.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Configure {
    /// Host name, 1-63 characters of `[A-Za-z0-9-]`.
    pub hostname: Option<String>,
    /// 32 hexadecimal digits for /etc/machine-id; hooks know the workspace by it.
    pub machine_id: Option<String>,
    /// The network card's address and routes.
    pub network: Option<NetworkConfiguration>,
    /// Hexadecimal digits of random bytes for the kernel's pool.
    pub entropy: Option<String>,
    /// Set the wall clock to this host's.
    pub set_clock: bool,
    /// Grow the root file system to its disk.
    pub grow_root: bool,
    /// The machine's memory is a copy of another's, or of its own at an earlier time: commands whose connections it
    /// left behind become background jobs. Must come before anything else is asked of it, with its user processes frozen.
    pub clone: bool,
    /// Run the hooks in `/etc/agentiso/after-fork.d/`, at most 10 s each and 30 s in all.
    pub run_hooks: bool,
}

impl std::fmt::Debug for Configure {
    // Entropy is a secret and never reaches a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Configure")
            .field("hostname", &self.hostname)
            .field("network", &self.network)
            .field("set_clock", &self.set_clock)
            .field("grow_root", &self.grow_root)
            .field("clone", &self.clone)
            .field("run_hooks", &self.run_hooks)
            .finish_non_exhaustive()
    }
}

/// How a guest's wall clock stands, right after it was configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigureReport {
    /// How far it is ahead of this host's, in nanoseconds; behind if negative. Right within half of `round_trip_ns`, if
    /// the guest is honest.
    pub offset_ns: i64,
    /// What the way to the guest and back took, in nanoseconds, without the guest's own work.
    pub round_trip_ns: u64,
}

impl ConfigureReport {
    fn off(self) -> Duration {
        Duration::from_nanos(self.offset_ns.unsigned_abs())
    }

    fn round_trip(self) -> Duration {
        Duration::from_nanos(self.round_trip_ns)
    }

    fn is_right(self) -> bool {
        self.off() <= (CLOCK_TOLERANCE + self.round_trip() / 2).min(CLOCK_LIMIT)
    }
}

impl GuestClient {
    /// Gives the machine its identity and surroundings. All of it is in force when this returns; with `set_clock` the
    /// guest's wall clock is right within 100 ms and half the round trip, for which it is set up to four times.
    ///
    /// # Errors
    /// [`GuestError::Refused`] names the part that failed; [`GuestError::Clock`]: the clock is wrong, all else is in
    /// force. See [`GuestError`]; parts may be in force after any.
    pub async fn configure(&self, configure: Configure) -> Result<ConfigureReport, GuestError> {
        let operation = "configure the guest";
        let hooks = if configure.run_hooks { Duration::from_millis(HOOKS_LIMIT_MS) } else { Duration::ZERO };
        let sets_clock = configure.set_clock;
        let mut report = self.configure_once(operation, configure.into(), CHUNK_DEADLINE + hooks).await?;
        let mut corrections = 0;
        while sets_clock && !report.is_right() {
            if corrections == CLOCK_CORRECTIONS {
                let (off, round_trip) = (report.off(), report.round_trip());
                let times = corrections + 1;
                return Err(GuestError::Clock { operation, id: self.record.id, off, round_trip, times });
            }
            corrections += 1;
            // It will have taken half a round trip when it arrives.
            let clock = Configuration { time_ns: Some(report.round_trip_ns / 2), ..Configuration::default() };
            report = self.configure_once(operation, clock, CHUNK_DEADLINE).await?;
        }
        Ok(report)
    }

    async fn configure_once(
        &self,
        operation: &'static str,
        configuration: Configuration,
        limit: Duration,
    ) -> Result<ConfigureReport, GuestError> {
        let request = Guarded(Request::Configure(Box::new(configuration)));
        let mut session = self.open(operation, &request.0, SHORT_REPLY).await?;
        let frame = session.replies.next_within(limit).await?;
        let (received, now) = (Instant::now(), SystemTime::now());
        match frame.message {
            Reply::Configured { realtime_ns, elapsed_ns, .. } => {
                Ok(compare(received - session.sent, now, realtime_ns, elapsed_ns))
            }
            other => Err(session.replies.call().unexpected(kind(&other))),
        }
    }
}

/// Compares the guest's clock, read right before its answer left, with this host's when that arrived.
fn compare(took: Duration, now: SystemTime, realtime_ns: u64, elapsed_ns: u64) -> ConfigureReport {
    let round_trip = took.saturating_sub(Duration::from_nanos(elapsed_ns));
    let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let when_read = since_1970.saturating_sub(round_trip / 2);
    let when_read = u64::try_from(when_read.as_nanos()).unwrap_or(u64::MAX);
    let ahead = i128::from(realtime_ns) - i128::from(when_read);
    ConfigureReport {
        offset_ns: i64::try_from(ahead).unwrap_or(if ahead < 0 { i64::MIN } else { i64::MAX }),
        round_trip_ns: u64::try_from(round_trip.as_nanos()).unwrap_or(u64::MAX),
    }
}

impl From<Configure> for Configuration {
    fn from(configure: Configure) -> Self {
        let Configure { hostname, machine_id, network, entropy, set_clock, grow_root, clone, run_hooks } =
            configure;
        // The present is filled in when the request is sent.
        let time_ns = set_clock.then_some(0);
        Self { hostname, machine_id, network, time_ns, entropy, grow_root, clone, run_hooks }
    }
}
