//! `cargo xtask lab`: a Debian host in which ZFS, KVM, vhost-vsock, nftables and cgroup v2 work, under QEMU's emulator on
//! any host, and the tests that need them. docs/lab.md tells more.

mod binaries;
mod disks;
mod image;
mod inside;
mod machine;
mod plan;
mod protocol;
mod recipe;
mod report;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::build::{self, Built};
use crate::homes::Seed;
use crate::run::{self, Done, Failure};
use crate::setup;
use crate::stages::{Counts, Outcome};
use binaries::{Binaries, NEED_THE_LAB, WITH_MACHINES};
use disks::{Contents, Disks};
use image::Image;
use machine::Machine;
use plan::Plan;
use report::Report;

pub(crate) use inside::inside;

const HELP: &str = "\
Usage: cargo xtask lab [--shell] [--keep] [--vm] [FILTER]

  Boots a Debian host with ZFS, KVM, vhost-vsock, nftables and cgroup v2 under QEMU's emulator and
  runs the tests in it that need them: those in test programs whose names begin with lab or netlink.
  The first run makes the host's image, which takes some minutes and needs the network.

  FILTER   only tests whose name (PROGRAM::TEST) contains it
  --shell  a shell in the lab instead of the tests
  --vm     instead of those tests the ones that boot machines anywhere (vm*), here on KVM; a
           filter is a good idea
  --keep   leaves the disks of the run where they are, and says where
";

/// What one test may take: a machine that boots under an emulated CPU's virtualization takes tens of seconds.
const TEST_LIMIT: Duration = Duration::from_secs(300);

/// What all of it may take.
const RUN_LIMIT: Duration = Duration::from_secs(40 * 60);

/// What is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    shell: bool,
    keep: bool,
    vm: bool,
    filter: Option<String>,
}

impl Options {
    /// `Err` is what to print about it.
    fn parse(words: &[&str]) -> Result<Self, String> {
        let mut options = Self::default();
        for word in words {
            match *word {
                "--shell" => options.shell = true,
                "--keep" => options.keep = true,
                "--vm" => options.vm = true,
                option if option.starts_with('-') => return Err(format!("there is no option {option}")),
                filter if options.filter.is_none() && !filter.contains('\n') => {
                    options.filter = Some(filter.to_owned());
                }
                more => return Err(format!("one filter at most, and no {more}")),
            }
        }
        if options.shell && options.filter.is_some() {
            return Err("a shell runs no tests: leave out the filter".to_owned());
        }
        Ok(options)
    }
}

/// Runs what the words ask for. Says whether it went well; the last line that it prints does too.
pub(crate) fn lab(words: &[&str]) -> Done<bool> {
    if words.iter().any(|word| matches!(*word, "--help" | "-h")) {
        print!("{HELP}");
        return Ok(true);
    }
    let options = Options::parse(words).map_err(|problem| Failure::new(format!("{problem}\n\n{HELP}")))?;
    setup::setup()?;
    let built = build::build()?;
    let target = run::target_folder()?;
    let seed = Seed::prepare(&built, &target.join("xtask"))?;
    let Some(report) = run_lab(&built, &seed, &target, &options)? else { return Ok(true) };
    Ok(conclude(&report).is_empty())
}

/// The stage of `cargo xtask test --all`.
pub(crate) fn stage(built: &Built, seed: &Seed) -> Outcome {
    let done = run::target_folder().and_then(|target| run_lab(built, seed, &target, &Options::default()));
    let report = match done {
        Ok(report) => report.unwrap_or_default(),
        Err(failure) => return Err(failure).into(),
    };
    let (problems, counts) = (conclude(&report), report.counts());
    if problems.is_empty() {
        return Outcome::Passed(counts);
    }
    Outcome::Failed(Counts { failed: counts.failed.max(1), ..counts }, Failure::new(problems.join("; ")))
}

/// Prints what came of a run; returns what makes it a failed one.
fn conclude(report: &Report) -> Vec<String> {
    let problems = report.problems();
    for problem in &problems {
        println!("lab: {problem}");
    }
    println!("{}", report.line());
    problems
}

/// Boots the lab. `None` if it ran no tests.
fn run_lab(built: &Built, seed: &Seed, target: &Path, options: &Options) -> Done<Option<Report>> {
    let work = target.join("xtask/lab");
    fs::create_dir_all(&work).map_err(run::at("create", &work))?;
    let _lock = lock(&work)?;
    let lib = seed.folder().join("lib");
    let image = Image::ensure(&work, &lib)?;
    let binaries = Binaries::build(if options.vm { WITH_MACHINES } else { NEED_THE_LAB })?;
    let folder = RunFolder::create(&work, options.keep)?;
    let plan = Plan {
        limit: TEST_LIMIT,
        filter: options.filter.clone(),
        environment: disks::environment(),
        binaries: binaries.tests.iter().map(|(name, _)| name.clone()).collect(),
    };
    let contents = Contents { built, seed, binaries: &binaries, target };
    let disks = Disks::make(&folder.path, &image, &plan, &contents)?;
    let machine = Machine {
        kernel: lib.join("vmlinux"),
        disks: &disks,
        console: work.join("console.log"),
        errors: work.join("qemu.log"),
    };
    if options.shell {
        println!("lab: booting; `exit`, or Ctrl-A and then X, leaves it");
        machine.shell()?;
        return Ok(None);
    }
    println!("lab: booting; its console goes to {}", machine.console.display());
    let report = machine.run_tests(RUN_LIMIT, Report::new(options.filter.is_some() || options.vm))?;
    let junit = work.join("junit.xml");
    fs::write(&junit, report.junit()).map_err(run::at("write", &junit))?;
    println!("lab: results and all output: {}", junit.display());
    Ok(Some(report))
}

/// One lab at a time in a target folder: a run begins by removing what one before left behind.
fn lock(work: &Path) -> Done<fs::File> {
    let path = work.join("lock");
    let file = fs::File::create(&path).map_err(run::at("create", &path))?;
    if file.try_lock().is_err() {
        println!("lab: waiting for another lab in this target folder");
        file.lock().map_err(run::at("lock", &path))?;
    }
    Ok(file)
}

/// An ordinary user's PATH often lacks where mke2fs and depmod are.
fn path_with_system_folders() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
}

/// The files of one run. Removed at its end, or by the next run.
struct RunFolder {
    path: PathBuf,
    keep: bool,
}

impl RunFolder {
    fn create(work: &Path, keep: bool) -> Done<Self> {
        let path = work.join("run");
        image::remove(&path)?;
        Ok(Self { path, keep })
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        if self.keep {
            println!("lab: the disks of this run stay until the next one: {}", self.path.display());
        } else if let Err(error) = image::remove(&self.path) {
            eprintln!("xtask: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_flags_and_one_filter() {
        let filter = |text: &str| Some(text.to_owned());
        assert_eq!(Options::parse(&[]), Ok(Options::default()));
        assert_eq!(
            Options::parse(&["--keep", "lab_zfs"]),
            Ok(Options { keep: true, filter: filter("lab_zfs"), ..Options::default() })
        );
        assert_eq!(Options::parse(&["--vm"]), Ok(Options { vm: true, ..Options::default() }));
        for wrong in [&["--kepp"][..], &["a", "b"], &["--shell", "a"]] {
            assert!(Options::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
