//! What the main thread does once everything runs: signals, the power button, new ports, requests to end.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

use crate::agent::Agent;
use crate::init::power::PowerButton;
use crate::init::uevents::Uevents;
use crate::serve::slots::Slots;
use crate::sys::signal::{self, Arrived};

/// How long user processes have when the power button or a signal ends the machine.
const DEFAULT_GRACE: Duration = Duration::from_secs(5);

/// Why supervision ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// A shutdown was requested by the host, or the power button was pressed.
    Requested(Duration),
    /// A signal asked the agent to end.
    Signal(Duration),
}

/// Where new serial ports show up.
#[derive(Debug)]
pub(crate) struct Ports {
    pub(crate) slots: Slots,
    pub(crate) uevents: Uevents,
}

/// Supervises until the end is asked for.
pub(crate) fn supervise(
    agent: &Arc<Agent>,
    signals: &OwnedFd,
    mut ports: Option<Ports>,
    mut button: Option<PowerButton>,
    reaps: bool,
) -> Ending {
    loop {
        let nothing = signals.as_fd();
        let mut fds = [
            PollFd::new(signals, PollFlags::IN),
            PollFd::new(&agent.shutdown_wanted, PollFlags::IN),
            PollFd::from_borrowed_fd(
                ports.as_ref().map_or(nothing, |ports| ports.uevents.as_fd()),
                if ports.is_some() { PollFlags::IN } else { PollFlags::empty() },
            ),
            PollFd::from_borrowed_fd(
                button.as_ref().map_or(nothing, PowerButton::as_fd),
                if button.is_some() { PollFlags::IN } else { PollFlags::empty() },
            ),
        ];
        // An interrupted wait leaves no answers, and is repeated.
        let _ = poll(&mut fds, None);
        let [signalled, wanted, changed, pressed] = fds.map(|fd| !fd.revents().is_empty());
        if signalled {
            while let Some(arrived) = signal::next(signals) {
                if arrived == Arrived::End {
                    agent.shut_down(DEFAULT_GRACE);
                    return Ending::Signal(DEFAULT_GRACE);
                }
            }
            while reaps && signal::reap_inherited() {}
        }
        if wanted {
            return Ending::Requested(agent.shutdown_grace());
        }
        if let Some(ports) = ports.as_mut().filter(|_| changed)
            && ports.uevents.take_any("virtio-ports")
        {
            ports.slots.look(agent);
        }
        if pressed {
            match button.as_mut().map(PowerButton::was_pressed) {
                Some(Ok(true)) => {
                    agent.shut_down(DEFAULT_GRACE);
                    return Ending::Requested(DEFAULT_GRACE);
                }
                Some(Err(())) => button = None,
                _ => {}
            }
        }
    }
}
