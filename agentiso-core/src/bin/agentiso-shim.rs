//! The companion process of a machine; see `agentiso_core::shim`.

use std::process::ExitCode;

fn main() -> ExitCode {
    agentiso_core::shim::main(std::env::args_os())
}
