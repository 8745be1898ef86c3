//! `cargo bench -p agentiso-benches [-- [--quick] [NAME...]]`. See the library.

use std::{path::Path, process::ExitCode};

use agentiso_benches::Options;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --all-targets` starts it too.
    if !words.iter().any(|word| word == "--bench") {
        println!("not measured, for this is not `cargo bench`");
        return ExitCode::SUCCESS;
    }
    match Options::parse(words.iter().filter(|word| *word != "--bench")) {
        Ok(options) => {
            agentiso_benches::run(&options, Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench"))
        }
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::from(2)
        }
    }
}
