//! The agent as process 1: brings the machine up ([`boot`]), opens its channels ([`channels`]), and takes it down again
//! ([`shutdown`]).

mod boot;
pub(crate) mod channels;
pub(crate) mod power;
mod shutdown;
pub(crate) mod uevents;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use crate::agent::Agent;
use crate::configure;
use crate::console::say;
use crate::freezer::UserGroup;
use crate::supervise::{Ending, Ports, supervise};
use crate::sys::signal;

/// Where user work runs.
const USER_GROUP: &str = "/sys/fs/cgroup/user";

/// Runs the machine from its first moment to its last. Returns only if the power cannot be turned off.
pub(crate) fn run() -> ExitCode {
    if let Err(error) = live() {
        say(&format!("cannot go on: {error}"));
        shutdown::unmount_all();
        shutdown::power_off();
    }
    ExitCode::FAILURE
}

fn live() -> Result<(), String> {
    boot::attach_console();
    let signals = signal::take_over().map_err(|error| format!("preparing signals: {error}"))?;
    boot::bring_up()?;
    if let Err(error) = configure::loopback_up() {
        say(&format!("the loopback interface stays down: {error}"));
    }
    configure::adopt_host_name();
    let group =
        UserGroup::create(Path::new(USER_GROUP)).map_err(|error| format!("making {USER_GROUP}: {error}"))?;
    let agent = Agent::new(Some(group)).map_err(|error| format!("starting: {error}"))?;
    let agent = Arc::new(agent);
    let button = power::PowerButton::find();
    let (slots, uevents) = channels::open(&agent)?;
    let ending = supervise(&agent, &signals, Some(Ports { slots, uevents }), button, true);
    let (Ending::Requested(grace) | Ending::Signal(grace)) = ending;
    shutdown::end_everything(&agent, grace);
    shutdown::power_off();
    Err("the power could not be turned off".to_owned())
}
