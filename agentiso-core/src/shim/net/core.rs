//! What every part of the network process shares: readiness, timers, the way to the machine, the time, the counters.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::event::{Timespec, epoll};

use super::link::Outbound;
use crate::network::user::protocol::Counters;

/// What an event or a timer is about. The numbers are never used twice, so an event that comes late finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Token {
    /// The socket to QEMU.
    Link,
    /// The listening control socket.
    Control,
    /// A connection to the control socket.
    Client(u64),
    /// A listening socket of a forward.
    Listener(u64),
    /// A TCP flow.
    Tcp(u64),
    /// A UDP flow.
    Udp(u64),
}

/// Bits of a token's number; the kind lies above them.
const NUMBER_BITS: u32 = 56;

impl Token {
    fn pack(self) -> u64 {
        let (kind, number) = match self {
            Self::Link => (0, 0),
            Self::Control => (1, 0),
            Self::Client(number) => (2, number),
            Self::Listener(number) => (3, number),
            Self::Tcp(number) => (4, number),
            Self::Udp(number) => (5, number),
        };
        kind << NUMBER_BITS | number
    }

    fn unpack(packed: u64) -> Option<Self> {
        let number = packed & ((1 << NUMBER_BITS) - 1);
        match packed >> NUMBER_BITS {
            0 => Some(Self::Link),
            1 => Some(Self::Control),
            2 => Some(Self::Client(number)),
            3 => Some(Self::Listener(number)),
            4 => Some(Self::Tcp(number)),
            5 => Some(Self::Udp(number)),
            _ => None,
        }
    }
}

/// What became possible on a descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ready {
    pub(super) token: Token,
    pub(super) readable: bool,
    pub(super) writable: bool,
}

/// See the module.
pub(super) struct Core {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    timers: BTreeSet<(Instant, Token)>,
    /// What has more to do as soon as there is room in `out`.
    again: BTreeSet<Token>,
    last_number: u64,
    start: Instant,
    /// The time of this round of the loop.
    pub(super) now: Instant,
    pub(super) out: Outbound,
    pub(super) counters: Counters,
}

impl Core {
    pub(super) fn new() -> io::Result<Self> {
        let now = Instant::now();
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(256),
            timers: BTreeSet::new(),
            again: BTreeSet::new(),
            last_number: 0,
            start: now,
            now,
            out: Outbound::new(),
            counters: Counters::default(),
        })
    }

    /// A number for a token.
    pub(super) fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Watches a descriptor until it is closed. Edge-triggered: an event says that something *became* possible.
    pub(super) fn watch(&self, descriptor: impl AsFd, token: Token) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, descriptor, epoll::EventData::new_u64(token.pack()), flags)?)
    }

    /// Moves a token's timer. `held` is where its owner remembers it.
    pub(super) fn set_timer(&mut self, token: Token, held: &mut Option<Instant>, due: Option<Instant>) {
        if *held == due {
            return;
        }
        if let Some(old) = held.take() {
            self.timers.remove(&(old, token));
        }
        if let Some(due) = due {
            self.timers.insert((due, token));
        }
        *held = due;
    }

    /// Takes the timers that are due. Their owners' memory of them is then out of date, which does no harm.
    pub(super) fn take_due(&mut self) -> Vec<Token> {
        let mut due = Vec::new();
        while let Some(&(when, token)) = self.timers.first()
            && when <= self.now
        {
            self.timers.pop_first();
            due.push(token);
        }
        due
    }

    /// Comes back to a token when there is room on the way to the machine.
    pub(super) fn come_back(&mut self, token: Token) {
        self.again.insert(token);
    }

    /// What was put off, if there is room now.
    pub(super) fn take_put_off(&mut self) -> BTreeSet<Token> {
        if self.out.has_room() { std::mem::take(&mut self.again) } else { BTreeSet::new() }
    }

    /// Waits for events, the next timer, or nothing at all if there is more to do.
    pub(super) fn wait(&mut self, more_to_do: bool) -> io::Result<Vec<Ready>> {
        let put_off = !self.again.is_empty() && self.out.has_room();
        let limit = if more_to_do || put_off {
            Some(Duration::ZERO)
        } else {
            self.timers.first().map(|(due, _)| due.saturating_duration_since(Instant::now()))
        };
        // Rounded up to what the kernel counts in: a wait that ends just before a timer would spin.
        let limit = limit.map(|limit| match limit {
            Duration::ZERO => Timespec::default(),
            limit => Timespec {
                tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX).min(3600),
                tv_nsec: (i64::from(limit.subsec_millis()) + 1).min(999) * 1_000_000,
            },
        });
        self.events.clear();
        let outcome =
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), limit.as_ref());
        self.now = Instant::now();
        match outcome {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let failed = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
        Ok(self
            .events
            .iter()
            .filter_map(|event| {
                let (flags, data) = (event.flags, event.data);
                Some(Ready {
                    token: Token::unpack(data.u64())?,
                    readable: flags.intersects(epoll::EventFlags::IN | failed),
                    writable: flags.intersects(epoll::EventFlags::OUT | failed),
                })
            })
            .collect())
    }

    /// The time as the TCP machinery counts it.
    pub(super) fn stack_time(&self) -> smoltcp::time::Instant {
        let micros = self.now.saturating_duration_since(self.start).as_micros();
        smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_packing() {
        let number = (1 << NUMBER_BITS) - 1;
        for token in [
            Token::Link,
            Token::Control,
            Token::Client(1),
            Token::Listener(number),
            Token::Tcp(number),
            Token::Udp(7),
        ] {
            assert_eq!(Token::unpack(token.pack()), Some(token));
        }
        assert_eq!(Token::unpack(u64::MAX), None);
    }

    #[test]
    fn timer_moves_and_fires_once() {
        let mut core = Core::new().unwrap();
        let (mut held, start) = (None, core.now);
        let later = |seconds| Some(start + Duration::from_secs(seconds));
        core.set_timer(Token::Tcp(1), &mut held, later(1));
        core.set_timer(Token::Tcp(1), &mut held, later(3));
        core.now = start + Duration::from_secs(2);
        assert_eq!(core.take_due(), []);
        core.now = start + Duration::from_secs(3);
        assert_eq!(core.take_due(), [Token::Tcp(1)]);
        assert_eq!(core.take_due(), []);
    }
}
