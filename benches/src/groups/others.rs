//! What one might use instead of a machine, to its first output: less is between the program and the host there.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{Done, run::Bench, series::Series, tools};

const SAMPLES: usize = 30;

const BWRAP: &str = "bwrap to first output";
const PODMAN: &str = "podman run to first output";

pub(super) fn measure(bench: &mut Bench) -> Done {
    let samples = bench.options.samples(SAMPLES);
    match tools::program("bwrap", "bubblewrap") {
        Ok(program) => {
            let words = ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-all"];
            put(bench, BWRAP, samples, &program, &words);
        }
        Err(error) => bench.table.not_measured(BWRAP, error.to_string()),
    }
    match tools::in_path("podman") {
        Some(program) => {
            // The host's own programs in a container, so that no image has to come from anywhere.
            let words = ["run", "--rm", "--network=none", "--rootfs", "/:O"];
            put(bench, PODMAN, samples, &program, &words);
        }
        None => bench.table.not_measured(PODMAN, "does not run here: podman is not installed"),
    }
    Ok(())
}

fn put(bench: &mut Bench, name: &str, samples: usize, program: &Path, words: &[&str]) {
    let mut series = Series::times(name);
    for _ in 0..samples {
        match first_output(program, words) {
            Ok(time) => series.add(time),
            Err(error) => {
                bench.table.not_measured(name, format!("does not run here: {error}"));
                return;
            }
        }
    }
    bench.table.add(series);
}

fn first_output(program: &Path, words: &[&str]) -> Done<Duration> {
    let mut command = Command::new(program);
    command.args(words).args(["/bin/sh", "-c", super::FIRST_COMMAND]).stdin(Stdio::null());
    let begun = Instant::now();
    let output = command.output()?;
    let time = begun.elapsed();
    if output.status.success() && output.stdout == b"ready\n" {
        return Ok(time);
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    Err(Bench::error(reason.lines().next().unwrap_or("it printed something else").to_owned()))
}
