//! The companion processes of a machine, as one binary (`agentiso-shim`) of three trades: its network (`net`), its log
//! files (`console`) and, while it is captured, its guard (`guard`).
//!
//! They face a hostile guest, so each is a process of its own that inherits its descriptors, opens nothing else, and
//! gives up every right it does not need before it reads the first byte (see `confine`).
//!
//! The last argument is a name, `agentiso-<state folder>-<workspace>`. It means nothing to the process: it is how a
//! process is found that no record knows.

mod confine;
mod console;
mod guard;
pub(crate) mod net;
mod seccomp;
mod sys;

use std::{ffi::OsString, io::Write, process::ExitCode};

const USAGE: &str =
    "usage: agentiso-shim console|guard|net NAME (started by agentiso, with its descriptors already open)";

/// Runs the companion process that the arguments (program name first) ask for, until its machine is gone.
///
/// Takes over the descriptors from 3 up as the trade defines them, so it must be called once, first thing in `main`.
/// What goes wrong is said on stderr, and the status is then not 0.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let words: Vec<OsString> = arguments.into_iter().skip(1).collect();
    let outcome = match words.iter().map(|word| word.to_str()).collect::<Vec<_>>().as_slice() {
        [Some("console"), Some(_name)] => console::main(),
        [Some("guard"), Some(_name)] => guard::main(),
        [Some("net"), Some(_name)] => net::main(),
        _ => Err(std::io::Error::other(USAGE)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be left to read it.
            let _ = writeln!(std::io::stderr(), "agentiso-shim: {error}");
            ExitCode::FAILURE
        }
    }
}
