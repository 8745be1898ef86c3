//! `cargo xtask demo`: from a clone to a command that runs in a machine.

use std::process::Stdio;

use crate::build;
use crate::run::{self, Done, Failure};
use crate::setup;

const SCRIPT: &str =
    "echo \"kernel $(uname -r), user $(id -un), $(nproc) CPUs\"; python3 -c 'print(6*7)' >&2; exit 3";

pub(crate) fn demo() -> Done {
    setup::setup()?;
    let built = build::build()?;
    run::run(built.agentiso().arg("init"))?;
    build::ensure_image(|| built.agentiso())?;
    let mut command = built.agentiso();
    command.args(["run", "--", "sh", "-c", SCRIPT]).stdin(Stdio::null());
    println!("+ {}", run::shown(&command));
    let status =
        command.status().map_err(|error| Failure::new(format!("could not run agentiso: {error}")))?;
    println!("[{status}]");
    match status.code() {
        Some(3) => Ok(()),
        _ => Err(Failure::new("the command in the machine was to end with exit status 3")),
    }
}
