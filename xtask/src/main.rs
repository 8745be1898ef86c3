//! What people and CI run in this repository: `cargo xtask setup|build|demo|test|fuzz|soak|lab|bench`.
//!
//! Without dependencies, because it is built before anything else is.

mod bench;
mod build;
#[cfg(test)]
mod checks;
mod clients;
mod demo;
mod fuzz;
mod homes;
mod lab;
mod leftovers;
mod packages;
mod readme;
mod room;
mod run;
mod setup;
mod soak;
mod stages;
mod test;

use std::process::ExitCode;

use test::Extent;

const HELP: &str = "\
Usage: cargo xtask COMMAND

  setup   installs the Debian packages that agentiso needs (as root, or through sudo)
  build   builds the command line, the MCP server, the companion program and the static
          guest agent, and fills the state folder (target/release/agentiso init)
  demo    setup, build, makes the Debian image if it is missing, runs a command in a machine
  test    setup, then every check and test, with the time of each stage; --all adds the lab's
  bench   setup, build, and the measurements (docs/performance.md); words that follow pick
          some of them
  fuzz    every target of fuzz/ for a while (--seconds N); --help tells more
  soak    random operations of several processes, some killed, for --minutes N; --help tells more
  lab     a Debian host under QEMU's emulator in which ZFS, KVM, vhost-vsock, nftables and cgroup v2
          work, and the tests that need them (docs/lab.md); --help tells more
  ci      what continuous integration runs: the same as test, --all too
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["setup"] => setup::setup(),
        ["build"] => build::build_all(),
        ["demo"] => demo::demo(),
        ["test" | "ci"] => test::test(Extent::Usual),
        ["test" | "ci", "--all"] => test::test(Extent::All),
        ["bench", ref words @ ..] => bench::bench(words),
        ["fuzz", ref words @ ..] => fuzz::fuzz(words),
        ["soak", ref words @ ..] => soak::soak(words),
        ["lab", ref words @ ..] => match lab::lab(words) {
            // The run's own last line says why.
            Ok(false) => return ExitCode::FAILURE,
            done => done.map(|_| ()),
        },
        // What the lab runs in itself.
        ["lab-inside", folder] => lab::inside(folder.as_ref()),
        ["help" | "--help" | "-h"] => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
