//! Stages of a test run: timed, counted, all of them run although one failed.

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::run::{Done, Failure};

/// What came of a stage that could be run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl Counts {
    /// A stage that is one check.
    pub(crate) const ONE: Self = Self { passed: 1, failed: 0, skipped: 0 };
}

/// How a stage ended.
pub(crate) enum Outcome {
    /// All of it passed, or could not be run for a reason each test gave.
    Passed(Counts),
    /// Something failed.
    Failed(Counts, Failure),
    /// It cannot be run here.
    Skipped(String),
}

impl From<Done> for Outcome {
    fn from(done: Done) -> Self {
        match done {
            Ok(()) => Self::Passed(Counts::ONE),
            Err(failure) => Self::Failed(Counts { failed: 1, ..Counts::default() }, failure),
        }
    }
}

/// Stages and how they ended.
#[derive(Default)]
pub(crate) struct Stages {
    ended: Vec<Ended>,
}

struct Ended {
    name: &'static str,
    outcome: Outcome,
    took: Duration,
}

impl Stages {
    /// Runs a stage. A stage that others need (`needs` is the failure of one) is not run without it.
    pub(crate) fn run(&mut self, name: &'static str, work: impl FnOnce() -> Outcome) -> bool {
        println!("\n=== {name}");
        let begun = Instant::now();
        let outcome = work();
        let took = begun.elapsed();
        let passed = !matches!(outcome, Outcome::Failed(..));
        let ended = Ended { name, outcome, took };
        println!("=== {ended}");
        self.ended.push(ended);
        passed
    }

    /// Notes a stage that is not run.
    pub(crate) fn skip(&mut self, name: &'static str, reason: &str) {
        println!("\n=== {name}: skipped, {reason}");
        let outcome = Outcome::Skipped(reason.to_owned());
        self.ended.push(Ended { name, outcome, took: Duration::ZERO });
    }

    /// Prints everything in short. An error if something failed.
    pub(crate) fn summary(self) -> Done {
        println!("\n=== summary");
        let mut total = Counts::default();
        let mut failures = Vec::new();
        for ended in &self.ended {
            println!("  {ended}");
            let counts = match &ended.outcome {
                Outcome::Passed(counts) => *counts,
                Outcome::Failed(counts, _) => {
                    failures.push(ended.name);
                    *counts
                }
                Outcome::Skipped(_) => Counts { skipped: 1, ..Counts::default() },
            };
            total.passed += counts.passed;
            total.failed += counts.failed;
            total.skipped += counts.skipped;
        }
        let took: Duration = self.ended.iter().map(|ended| ended.took).sum();
        println!("  all stages took {} s", took.as_secs());
        println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
        if failures.is_empty() {
            Ok(())
        } else {
            Err(Failure::new(format!("failed: {}", failures.join(", "))))
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, outcome, took } = self;
        let seconds = took.as_secs_f64();
        match outcome {
            Outcome::Passed(Counts { passed, skipped: 0, .. }) => {
                write!(f, "{name:<10} {seconds:>7.1} s  ok, {passed} passed")
            }
            Outcome::Passed(Counts { passed, skipped, .. }) => {
                write!(f, "{name:<10} {seconds:>7.1} s  ok, {passed} passed, {skipped} skipped")
            }
            Outcome::Failed(Counts { passed, failed, .. }, failure) => {
                write!(f, "{name:<10} {seconds:>7.1} s  FAILED, {failed} failed, {passed} passed: {failure}")
            }
            Outcome::Skipped(reason) => write!(f, "{name:<10} {seconds:>7.1} s  skipped: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_is_an_error_that_names_what_failed() {
        let mut stages = Stages::default();
        assert!(stages.run("one", || Ok(()).into()));
        assert!(!stages.run("two", || Err(Failure::new("no")).into()));
        stages.skip("three", "not here");
        assert_eq!(stages.summary().unwrap_err().to_string(), "failed: two");
    }

    #[test]
    fn summary_without_failures_is_none() {
        let mut stages = Stages::default();
        stages.run("one", || Ok(()).into());
        stages.skip("two", "not here");
        assert!(stages.summary().is_ok());
    }
}
