//! The agent: process 1 of an agentiso machine, or a service under another init.

#[cfg(not(target_os = "linux"))]
compile_error!("the agent runs on Linux only");

mod agent;
mod archive;
mod configure;
mod console;
mod environment;
mod exec;
mod failure;
mod files;
mod firmware;
mod freezer;
mod info;
mod init;
mod jobs;
mod keeper;
mod serve;
mod service;
mod supervise;
mod sys;
mod walk;

use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: agentiso-guest                          (as process 1, from the initramfs)
       agentiso-guest --service [--unix PATH [--key FILE]]
                                               (under another init; --unix: serve a socket instead of devices;
                                                --key: only hosts that know the 32 bytes in this file)
       agentiso-guest --version";

fn main() -> ExitCode {
    sys::memory::keep_small();
    let mut arguments = std::env::args_os().skip(1);
    // The kernel hands words of its command line that it does not know to process 1 as arguments.
    if std::process::id() == 1 {
        return init::run();
    }
    let first = arguments.next();
    match first.as_ref().and_then(|argument| argument.to_str()) {
        Some("--version") => {
            console::say_out(&format!(
                "agentiso-guest {} (protocol generation {})",
                env!("CARGO_PKG_VERSION"),
                agentiso_guest::PROTOCOL_GENERATION
            ));
            ExitCode::SUCCESS
        }
        Some("--service") => {
            let rest: Vec<_> = arguments.collect();
            let words: Vec<_> = rest.iter().map(|word| word.to_str().unwrap_or_default()).collect();
            let path = |at: usize| rest.get(at).map(PathBuf::from);
            match (words.as_slice(), path(1)) {
                ([], _) => service::run(None),
                (["--unix", _], Some(path)) => service::run(Some(service::Socket { path, key: None })),
                (["--unix", _, "--key", _], Some(socket)) => {
                    service::run(Some(service::Socket { path: socket, key: path(3) }))
                }
                _ => wrong_usage(),
            }
        }
        _ => wrong_usage(),
    }
}

fn wrong_usage() -> ExitCode {
    console::say(USAGE);
    ExitCode::from(2)
}
