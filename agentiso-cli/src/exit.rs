//! Exit statuses.
//!
//! `run`, `exec` and `shell` end as their command did; what agentiso itself has to say uses the numbers that shells
//! and container tools use. Every other command: 0, 1 for a failure, 2 for a wrong command line.

use crate::cli::{Cli, Command};

/// A command that is not `run`, `exec` or `shell` failed.
pub(crate) const FAILURE: u8 = 1;
/// The command line was wrong.
pub(crate) const USAGE: u8 = 2;
/// agentiso itself failed where the status is otherwise the guest command's.
pub(crate) const AGENTISO_FAILED: u8 = 125;

/// SIGHUP, the same number on every Linux.
pub(crate) const SIGHUP: u8 = 1;
/// SIGINT.
pub(crate) const SIGINT: u8 = 2;
/// SIGQUIT.
pub(crate) const SIGQUIT: u8 = 3;
/// SIGPIPE.
pub(crate) const SIGPIPE: u8 = 13;
/// SIGTERM.
pub(crate) const SIGTERM: u8 = 15;

/// The status of something that a signal ended.
pub(crate) const fn of_signal(signal: u8) -> u8 {
    128u8.saturating_add(signal)
}

/// What a failure of agentiso itself ends with.
pub(crate) fn failure_status(cli: &Cli) -> u8 {
    match cli.command {
        // A comparison that failed is told from one that found differences.
        Some(Command::Run(_) | Command::Exec(_) | Command::Shell(_) | Command::Diff(_)) => AGENTISO_FAILED,
        _ => FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn signals_become_128_and_their_number() {
        assert_eq!((of_signal(SIGINT), of_signal(SIGTERM), of_signal(9)), (130, 143, 137));
        assert_eq!(of_signal(u8::MAX), 255);
    }

    #[test]
    fn failures_of_agentiso_are_told_apart_from_those_of_guest_commands() {
        for (line, expected) in [
            (vec!["agentiso", "run", "true"], AGENTISO_FAILED),
            (vec!["agentiso", "exec", "ws", "true"], AGENTISO_FAILED),
            (vec!["agentiso", "shell", "ws"], AGENTISO_FAILED),
            (vec!["agentiso", "diff", "a", "b"], AGENTISO_FAILED),
            (vec!["agentiso", "ls"], FAILURE),
            (vec!["agentiso", "rm", "ws"], FAILURE),
        ] {
            assert_eq!(failure_status(&Cli::try_parse_from(&line).unwrap()), expected, "{line:?}");
        }
    }
}
