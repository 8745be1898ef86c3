//! What came of a run.

use std::{fmt::Write as _, time::Duration};

use super::protocol::{Message, Status};
use crate::stages::Counts;

/// The kinds of backend that this host usually lacks, each of which a test must have shown to work.
const BACKENDS: [&str; 5] = ["zfs", "kvm", "vsock", "netlink", "cgroup"];

/// Test programs of this name use all of them.
const ALL: &str = "native";

/// One test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Test {
    /// `binary::test`.
    pub(crate) name: String,
    pub(crate) status: Status,
    pub(crate) took: Duration,
    pub(crate) output: Vec<u8>,
}

/// A run, as far as it came.
#[derive(Debug, Default)]
pub(crate) struct Report {
    tests: Vec<Test>,
    running: Option<(String, Vec<u8>)>,
    planned: Option<usize>,
    /// Whether the lab said itself that it was through, with the right count.
    complete: bool,
    /// Whether all backends are asked for.
    filtered: bool,
}

impl Report {
    /// Of a run of all tests, or of some.
    pub(crate) fn new(filtered: bool) -> Self {
        Self { filtered, ..Self::default() }
    }

    /// Takes what the lab said; returns a test that has just ended. What makes no sense makes the run incomplete.
    pub(crate) fn see(&mut self, message: Message) -> Option<&Test> {
        match message {
            Message::Plan(count) => self.planned = Some(count),
            Message::Begin(name) => self.running = Some((name, Vec::new())),
            Message::Output(bytes) => {
                if let Some((_, output)) = &mut self.running {
                    output.extend(bytes);
                }
            }
            Message::End { status, millis } => {
                let (name, output) = self.running.take()?;
                self.tests.push(Test { name, status, took: Duration::from_millis(millis), output });
                return self.tests.last();
            }
            Message::Done(count) => {
                self.complete =
                    self.running.is_none() && self.planned == Some(count) && self.tests.len() == count;
            }
        }
        None
    }

    /// The lab is gone: a test that was running has failed.
    pub(crate) fn close(&mut self, reason: &str) {
        if let Some((name, mut output)) = self.running.take() {
            output.extend(format!("\nlab: the lab ended while this test ran: {reason}\n").bytes());
            self.tests.push(Test { name, status: Status::Failed, took: Duration::ZERO, output });
        }
    }

    /// Whether the lab came to its end.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    pub(crate) fn counts(&self) -> Counts {
        let count = |status| self.tests.iter().filter(|test| test.status == status).count();
        Counts {
            passed: count(Status::Passed),
            failed: count(Status::Failed) + count(Status::TimedOut),
            skipped: count(Status::Skipped),
        }
    }

    /// Everything that makes the run a failed one.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let Counts { passed, failed, skipped } = self.counts();
        if !self.complete {
            let planned = self.planned.map_or("?".to_owned(), |count| count.to_string());
            problems.push(format!(
                "the lab did not say that it was done; {} of {planned} tests were begun",
                self.tests.len()
            ));
        }
        if failed > 0 {
            problems.push(format!("{failed} tests failed"));
        }
        if skipped > 0 {
            problems.push(format!("{skipped} tests were skipped, and the lab is where nothing is"));
        }
        if passed + failed + skipped == 0 {
            problems.push("no test was run".to_owned());
        }
        let shown = self.backends();
        let missing: Vec<&str> = BACKENDS.into_iter().filter(|backend| !shown.contains(backend)).collect();
        if !self.filtered && !missing.is_empty() {
            problems.push(format!("no test passed for {}", missing.join(", ")));
        }
        problems
    }

    /// The backends of which a test passed.
    fn backends(&self) -> Vec<&'static str> {
        let passed = || self.tests.iter().filter(|test| test.status == Status::Passed);
        BACKENDS.into_iter().filter(|backend| passed().any(|test| counts_for(&test.name, backend))).collect()
    }

    /// The line that the run ends with.
    pub(crate) fn line(&self) -> String {
        let Counts { passed, failed, skipped } = self.counts();
        let backends = self.backends();
        let backends = if backends.is_empty() { "none".to_owned() } else { backends.join(" ") };
        format!("lab: {passed} passed, {failed} failed, {skipped} skipped; backends: {backends}")
    }

    /// All of it, for programs that read such files.
    pub(crate) fn junit(&self) -> String {
        let Counts { passed, failed, skipped } = self.counts();
        let time: Duration = self.tests.iter().map(|test| test.took).sum();
        let mut xml = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"lab\" tests=\"{}\" failures=\"{failed}\" skipped=\"{skipped}\" time=\"{:.3}\">\n",
            passed + failed + skipped,
            time.as_secs_f64()
        );
        for test in &self.tests {
            let (binary, name) = test.name.split_once("::").unwrap_or(("", &test.name));
            let outcome = match test.status {
                Status::Passed => "",
                Status::Skipped => "<skipped/>",
                Status::Failed => "<failure message=\"failed\"/>",
                Status::TimedOut => "<failure message=\"timed out\"/>",
            };
            // Writing to a string cannot fail.
            let _ = writeln!(
                xml,
                "<testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\">{outcome}<system-out>{}</system-out></testcase>",
                escaped(binary),
                escaped(name),
                test.took.as_secs_f64(),
                escaped(&String::from_utf8_lossy(&test.output)),
            );
        }
        xml + "</testsuite>\n"
    }
}

/// Whether a test of this name (`binary::test`) shows that a backend works.
fn counts_for(name: &str, backend: &str) -> bool {
    let binary = name.split("::").next().unwrap_or_default();
    binary.split('_').any(|word| word == backend || word == ALL)
}

/// For XML, which has no way to write most control characters.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(tests: &[(&str, Status)], done: bool) -> Report {
        let mut report = Report::new(false);
        report.see(Message::Plan(tests.len()));
        for (name, status) in tests {
            report.see(Message::Begin((*name).to_owned()));
            report.see(Message::Output(b"said <this>\x1b\n".to_vec()));
            report.see(Message::End { status: *status, millis: 1500 });
        }
        if done {
            report.see(Message::Done(tests.len()));
        }
        report
    }

    const NATIVE: (&str, Status) = ("lab_native_fork::a", Status::Passed);

    #[test]
    fn run_passes_when_all_backends_were_shown_and_the_lab_said_so() {
        let report = report(&[NATIVE], true);
        assert_eq!(report.problems(), [""; 0]);
        assert_eq!(
            report.line(),
            "lab: 1 passed, 0 failed, 0 skipped; backends: zfs kvm vsock netlink cgroup"
        );
    }

    #[test]
    fn backend_counts_by_a_passed_test_of_a_program_of_its_name() {
        let tests = [
            ("lab_zfs::a", Status::Passed),
            ("lab_kvm::b", Status::Failed),
            ("lab_vsock::c", Status::Skipped),
            ("lab_kvmish::zfs", Status::Passed),
            ("netlink::d", Status::Passed),
            ("netlink_rules::d", Status::TimedOut),
        ];
        let report = report(&tests, true);
        assert_eq!(report.line(), "lab: 3 passed, 2 failed, 1 skipped; backends: zfs netlink");
        let problems = report.problems().join("; ");
        for part in ["2 tests failed", "1 tests were skipped", "no test passed for kvm, vsock, cgroup"] {
            assert!(problems.contains(part), "{problems}");
        }
    }

    #[test]
    fn run_without_the_last_word_or_with_another_count_has_failed() {
        assert_eq!(
            report(&[NATIVE], false).problems(),
            ["the lab did not say that it was done; 1 of 1 tests were begun"]
        );
        let mut wrong = report(&[NATIVE], false);
        wrong.see(Message::Done(2));
        assert_eq!(wrong.problems().len(), 1);
        let mut early = report(&[NATIVE], false);
        early.see(Message::Begin("lab_zfs::b".to_owned()));
        early.see(Message::Done(1));
        early.close("no more");
        assert_eq!(early.counts(), Counts { passed: 1, failed: 1, skipped: 0 });
        assert_eq!(early.problems().len(), 2);
        assert_eq!(Report::new(true).problems().len(), 2);
    }

    #[test]
    fn some_tests_need_not_show_every_backend() {
        let mut report = Report::new(true);
        report.see(Message::Plan(1));
        report.see(Message::Begin("lab_zfs::a".to_owned()));
        report.see(Message::End { status: Status::Passed, millis: 1 });
        report.see(Message::Done(1));
        assert_eq!(report.problems(), [""; 0]);
    }

    #[test]
    fn junit_has_each_test_with_its_output_as_text() {
        let xml = report(&[NATIVE, ("lab_zfs::b", Status::TimedOut)], true).junit();
        assert!(xml.contains("tests=\"2\" failures=\"1\" skipped=\"0\" time=\"3.000\""), "{xml}");
        assert!(
            xml.contains("classname=\"lab_zfs\" name=\"b\" time=\"1.500\"><failure message=\"timed out\"/>")
        );
        assert!(xml.contains("<system-out>said &lt;this&gt;\u{fffd}\n</system-out>"), "{xml}");
    }
}
