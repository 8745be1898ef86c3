//! What the agent says to people: on standard error, which is the console for process 1.

use std::io::Write;

/// Writes a line to standard error. Where nobody can read it, nothing is lost.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "agentiso-guest: {text}");
}

/// Writes a line to standard output.
pub(crate) fn say_out(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
