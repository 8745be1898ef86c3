//! `cargo xtask test`: everything that must hold before a change is merged.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::build::{self, Built};
use crate::clients::Clients;
use crate::fuzz;
use crate::homes::Seed;
use crate::lab;
use crate::leftovers;
use crate::readme;
use crate::room::{self, Need};
use crate::run::{self, Done};
use crate::setup;
use crate::stages::{Counts, Outcome, Stages};

/// Tests in binaries of these names boot machines.
const VM_TESTS: &str = "vm*";

/// What nextest calls the same.
const VM_FILTER: &str = "binary(/^vm/)";
/// Tests in binaries whose names begin with `lab` are for the lab's host.
const OTHER_FILTER: &str = "not binary(/^(vm|lab)/)";

/// What all stages leave in the target folder, the machines of the tests that run at once included, in MiB. Measured.
const TARGET_MIB: u64 = 14 * 1024;

/// The same for temporary files.
const TEMPORARY_MIB: u64 = 1024;

const MUSL_TARGET: &str = "x86_64-unknown-linux-musl";

/// How much is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// What every host can, in less than half an hour.
    Usual,
    /// What takes long, too.
    All,
}

pub(crate) fn test(extent: Extent) -> Done {
    let work = run::target_folder()?.join("xtask");
    let _lock = lock(&work)?;
    // As /proc shows it, whatever links lead here.
    let work = fs::canonicalize(&work).map_err(run::at("find", &work))?;
    let run_folder = RunFolder::create(&work)?;
    let mut stages = Stages::default();

    if !stages.run("setup", || setup::setup().and_then(|()| run_folder.has_room(&work)).into()) {
        return stages.summary();
    }
    stages.run("fmt", || run::run(run::cargo().args(["fmt", "--all", "--check"])).into());
    stages.run("clippy", || run::run(run::cargo().args(CLIPPY)).into());
    stages.run("doc", || run::run(run::cargo().args(DOC).env("RUSTDOCFLAGS", "-D warnings")).into());
    stages
        .run("unit", || tests(&work, "unit", Tests::WithoutMachines, |command| run_folder.show_to(command)));
    stages.run("doctests", || doctests(&work, &run_folder));
    stages.run("musl", musl);
    stages.run("deny", deny);
    let prepared = machines(&mut stages, &work, &run_folder);
    if extent == Extent::All {
        stages.run("fuzz", fuzz::stage);
        match &prepared {
            Some((built, seed)) => {
                stages.run("lab", || lab::stage(built, seed));
            }
            None => stages.skip("lab", "there is no image"),
        }
    }
    stages.run("leftovers", || {
        leftovers::check(&[&run_folder.path, &run_folder.temporary, &work.join("seed")]).into()
    });
    stages.summary()
}

const CLIPPY: [&str; 7] =
    ["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"];
const DOC: [&str; 4] = ["doc", "--workspace", "--no-deps", "--all-features"];

/// The stages that need built programs and an image, which are returned for those that come later.
fn machines(stages: &mut Stages, work: &Path, run_folder: &RunFolder) -> Option<(Built, Seed)> {
    const NEEDED: [&str; 2] = ["vm", "readme"];
    let mut built: Option<Built> = None;
    let mut seed: Option<Seed> = None;
    let mut hostile: Option<PathBuf> = None;
    stages.run("build", || {
        build::build()
            .map(|done| built = Some(done))
            .and_then(|()| build::hostile_agent())
            .map(|done| hostile = Some(done))
            .into()
    });
    match &built {
        Some(built) => {
            stages.run("image", || Seed::prepare(built, work).map(|done| seed = Some(done)).into());
        }
        None => stages.skip("image", "the build failed"),
    }
    let (Some(built), Some(seed)) = (built, seed) else {
        for name in NEEDED {
            stages.skip(name, "there is no image");
        }
        return None;
    };
    let mut clients = Clients::default();
    stages.run("clients", || clients.prepare(work));
    stages.run("vm", || {
        let home = run_folder.path.join("vm");
        match seed.clone_to(&home) {
            Err(failure) => Err(failure).into(),
            Ok(()) => tests(work, "vm", Tests::WithMachines, |command| {
                run_folder.show_to(command);
                seed.show_to(command);
                clients.show_to(command);
                command.env("AGENTISO_HOME", &home).env("AGENTISO_BIN", built.folder.join("agentiso"));
                command.envs(hostile.iter().map(|agent| ("AGENTISO_TEST_HOSTILE_AGENT", agent)));
            }),
        }
    });
    stages.run("readme", || {
        let home = run_folder.path.join("readme");
        match seed.clone_to(&home).and_then(|()| readme::text()) {
            Err(failure) => Err(failure).into(),
            Ok(text) => {
                let prepare = |command: &mut Command| {
                    run_folder.show_to(command);
                    command
                        .env("AGENTISO_HOME", &home)
                        .env("PATH", path_with(&built.folder))
                        .current_dir(&run_folder.path);
                };
                let outcome = readme::run(&text, prepare);
                // A README that fails half way has not come to the lines that remove what it made.
                readme::remove_workspaces(prepare);
                outcome
            }
        }
    });
    Some((built, seed))
}

/// PATH with a folder in front.
fn path_with(folder: &Path) -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&path));
    // A folder with a colon in its name cannot be in PATH at all.
    std::env::join_paths(folders).unwrap_or(path)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tests {
    WithMachines,
    WithoutMachines,
}

/// Runs tests with cargo-nextest if it is there, else with cargo test.
fn tests(work: &Path, log: &str, which: Tests, prepare: impl Fn(&mut Command)) -> Outcome {
    let mut command = run::cargo();
    if run::succeeds(run::cargo().args(["nextest", "--version"])) {
        let filter = if which == Tests::WithMachines { VM_FILTER } else { OTHER_FILTER };
        command.args([
            "nextest",
            "run",
            "--workspace",
            "--all-features",
            "--no-fail-fast",
            "--no-tests=pass",
        ]);
        // Tests that cannot run say so in their output.
        command.args(["--success-output=immediate", "--color=never", "-E", filter]);
    } else {
        command.args(["test", "--workspace", "--all-features", "--no-fail-fast"]);
        match which {
            Tests::WithMachines => command.args(["--test", VM_TESTS]),
            // Those with machines are among them, and find that they have no image.
            Tests::WithoutMachines => command.args(["--lib", "--bins", "--tests"]),
        };
        command.args(["--", "--show-output"]);
    }
    prepare(&mut command);
    counted(&mut command, &work.join(format!("{log}.log")))
}

fn doctests(work: &Path, run_folder: &RunFolder) -> Outcome {
    let mut command = run::cargo();
    command.args(["test", "--workspace", "--all-features", "--doc", "--no-fail-fast"]);
    run_folder.show_to(&mut command);
    counted(&mut command, &work.join("doctests.log"))
}

fn counted(command: &mut Command, log: &Path) -> Outcome {
    let mut counter = Counter::default();
    let done = run::run_logged(command, log, |line| counter.see(line));
    let counts = counter.counts();
    match done {
        Ok(()) => Outcome::Passed(counts),
        Err(failure) => Outcome::Failed(Counts { failed: counts.failed.max(1), ..counts }, failure),
    }
}

/// Counts tests in the output of nextest or cargo test.
#[derive(Default)]
struct Counter {
    passed: usize,
    failed: usize,
    said_skipped: usize,
}

impl Counter {
    /// Returns whether the line is worth showing.
    fn see(&mut self, line: &str) -> bool {
        // What a test itself prints is indented by nextest: it may print the results of tests that it ran.
        let is_a_tests_own = line.starts_with("    ") && !line.starts_with("     Summary [");
        let line = line.trim_start();
        if line.starts_with("skipped:") {
            self.said_skipped += 1;
            return true;
        }
        if line.starts_with("Summary [") {
            // Once at the end, and again behind the failures.
            (self.passed, self.failed) = (0, 0);
        }
        if line.starts_with("Summary [") || (line.starts_with("test result:") && !is_a_tests_own) {
            self.passed += number_before(line, " passed");
            self.failed += number_before(line, " failed") + number_before(line, " timed out");
            return true;
        }
        ["FAIL", "TIMEOUT", "SIG", "SLOW", "error", "warning"].iter().any(|word| line.starts_with(word))
    }

    fn counts(&self) -> Counts {
        // A test that says it was skipped ends with success.
        let skipped = self.said_skipped.min(self.passed);
        Counts { passed: self.passed - skipped, failed: self.failed, skipped }
    }
}

/// The number right before a word: 118 of `118 passed`. 0 if there is none.
fn number_before(line: &str, word: &str) -> usize {
    let before = line.split_once(word).map(|(before, _)| before);
    before.and_then(|text| text.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()).unwrap_or(0)
}

/// The agent is meant to be built for musl too, where the target is there.
fn musl() -> Outcome {
    let sysroot = match run::output(Command::new("rustc").args(["--print", "sysroot"])) {
        Ok(sysroot) => PathBuf::from(sysroot.trim()),
        Err(failure) => return Err(failure).into(),
    };
    if !sysroot.join("lib/rustlib").join(MUSL_TARGET).join("lib").is_dir() {
        return Outcome::Skipped(format!("the target {MUSL_TARGET} is not installed"));
    }
    let arguments = ["check", "--target", MUSL_TARGET, "-p", "agentiso-guest", "--features", "agent"];
    run::run(run::cargo().args(arguments)).into()
}

/// Licences, bans and sources of what is built in; `docs/dependencies.md` is compared by a test.
fn deny() -> Outcome {
    if !run::succeeds(run::cargo().args(["deny", "--version"])) {
        return Outcome::Skipped("cargo-deny is not installed".to_owned());
    }
    run::run(run::cargo().args(["deny", "check", "licenses", "bans", "sources"])).into()
}

/// Two runs in one target folder would share the seed, and each take the other's processes for its own leftovers.
fn lock(work: &Path) -> Done<fs::File> {
    fs::create_dir_all(work).map_err(run::at("create", work))?;
    let path = work.join("lock");
    let file = fs::File::create(&path).map_err(run::at("create", &path))?;
    if file.try_lock().is_err() {
        println!("waiting for another `cargo xtask test` in this target folder");
        file.lock().map_err(run::at("lock", &path))?;
    }
    Ok(file)
}

/// A folder for all files of one run, so that what is left of it can be told from everything else. Removed at the end.
///
/// State folders share the seed's files by hard links and so lie beside it. Temporary files have a folder with a short
/// path, for tests that make sockets.
struct RunFolder {
    temporary: PathBuf,
    path: PathBuf,
}

impl RunFolder {
    fn create(work: &Path) -> Done<Self> {
        let path = work.join(format!("run-{}", std::process::id()));
        fs::create_dir_all(&path).map_err(run::at("create", &path))?;
        let temporary = std::env::temp_dir().join(format!("agentiso-test-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o755).create(&temporary).map_err(run::at("create", &temporary))?;
        Ok(Self { temporary, path })
    }

    /// Refuses where the disks would be full before the end.
    fn has_room(&self, work: &Path) -> Done {
        let target = work.parent().unwrap_or(work);
        room::check(&[
            Need { folder: target, mib: TARGET_MIB, what: "what is built and the tests' machines" },
            Need { folder: &self.temporary, mib: TEMPORARY_MIB, what: "temporary files" },
        ])
    }

    /// Has a program make its temporary files in here.
    fn show_to(&self, command: &mut Command) {
        command.env("TMPDIR", &self.temporary);
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        for folder in [&self.path, &self.temporary] {
            if let Err(error) = fs::remove_dir_all(folder) {
                eprintln!("xtask: could not remove {}: {error}", folder.display());
            }
        }
    }
}

#[cfg(test)]
mod tests_of_test {
    use super::*;

    #[test]
    fn counter_reads_nextest_and_cargo_test() {
        let mut counter = Counter::default();
        for line in [
            "     Summary [  10.334s] 120 tests run: 117 passed (1 slow), 2 failed, 1 timed out, 3 skipped",
            "     Summary [  10.334s] 120 tests run: 117 passed (1 slow), 2 failed, 1 timed out, 3 skipped",
            "test result: ok. 46 passed; 0 failed; 0 ignored; 0 measured; 4 filtered out; finished in 8.21s",
            "    skipped: cpio is not installed",
        ] {
            assert!(counter.see(line), "{line}");
        }
        assert!(!counter.see("        PASS [   0.004s] agentiso-core image::x"));
        assert!(
            !counter.see("    test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 26 filtered out")
        );
        assert_eq!(counter.counts(), Counts { passed: 162, failed: 3, skipped: 1 });
    }

    #[test]
    fn number_is_read_only_right_before_the_word() {
        assert_eq!(number_before("120 tests run: 118 passed", " passed"), 118);
        assert_eq!(number_before("nothing passed", " passed"), 0);
        assert_eq!(number_before("", " passed"), 0);
    }
}
