//! What becomes of a command whose connection is lost.
//!
//! Usually it is hung up. While user processes are frozen that would be wrong: the machine may be a copy, whose
//! connections were all left behind, which the host is about to say. So the command waits, frozen as it is. If the host says
//! that this is a clone the command goes on as a background job; if it thaws without having said so, the connection was
//! lost as any other, and the command is hung up.

use std::sync::Mutex;
use std::time::Duration;

use agentiso_guest::limits::HANGUP_GRACE_MS;

use crate::agent::{Agent, lock};
use crate::jobs::{self, Orphan};
use crate::serve::Lost;

/// Commands of which it is not known yet what becomes of them.
#[derive(Debug, Default)]
pub(crate) struct Stranded {
    commands: Mutex<Vec<Orphan>>,
}

/// Its connection was lost so.
pub(super) fn lose(agent: &Agent, orphan: Orphan, lost: &Lost) {
    if matches!(lost, Lost::Detached) {
        adopt(agent, orphan);
        return;
    }
    // Held until the command is in the list: nobody thaws meanwhile, and so nobody misses it.
    let frozen = agent.group.as_ref().and_then(|group| group.stay_frozen());
    match frozen {
        Some(_frozen) => lock(&agent.stranded.commands).push(orphan),
        None => hang_up(agent, orphan),
    }
}

/// The machine is a clone: what is stranded goes on as background jobs.
pub(crate) fn adopt_stranded(agent: &Agent) {
    for orphan in std::mem::take(&mut *lock(&agent.stranded.commands)) {
        adopt(agent, orphan);
    }
}

/// Makes it a job; where there are too many, it has lost its connection as any other.
fn adopt(agent: &Agent, orphan: Orphan) {
    if let Err(orphan) = jobs::adopt(agent, orphan) {
        hang_up(agent, *orphan);
    }
}

/// User processes were thawed: what is stranded has just lost its connection.
pub(crate) fn hang_up_stranded(agent: &Agent) {
    for orphan in std::mem::take(&mut *lock(&agent.stranded.commands)) {
        hang_up(agent, orphan);
    }
}

fn hang_up(agent: &Agent, orphan: Orphan) {
    if !orphan.is_terminal {
        // Children of it that still print live on. Dropping a terminal hangs up whoever is on it.
        for pipe in orphan.pipes.into_iter().flatten() {
            agent.keeper.drain(pipe);
        }
    }
    // A command that was collected has no number any more that a signal could be sent to.
    if orphan.exit.is_none() {
        agent.keeper.hang_up(orphan.child, Duration::from_millis(HANGUP_GRACE_MS));
    }
}
