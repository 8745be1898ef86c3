//! The README's commands, run and compared with what it says they print.
//!
//! A block marked `console` is a session: lines that begin with `$ ` are commands, the lines after one are what it
//! prints on its standard output and then on its standard error, and `[exit status: N]` ends a command that fails.
//! `...` stands for any text within a line, and as a line of its own for any lines.

use std::process::{Command, Output, Stdio};

use crate::run::{self, Done, Failure};
use crate::stages::{Counts, Outcome};

/// One command of a session.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Step {
    line: usize,
    command: String,
    expected: Vec<String>,
    status: i32,
}

/// Runs all sessions of a text in one folder, one command after the other. `prepare` gives each command its
/// environment.
pub(crate) fn run(text: &str, prepare: impl Fn(&mut Command)) -> Outcome {
    let steps = match steps(text) {
        Ok(steps) if steps.is_empty() => return Err(Failure::new("the README has no console block")).into(),
        Ok(steps) => steps,
        Err(failure) => return Err(failure).into(),
    };
    let mut counts = Counts::default();
    for step in steps {
        println!("$ {}", step.command);
        let mut shell = Command::new("bash");
        shell.args(["-c", &step.command]).stdin(Stdio::null());
        prepare(&mut shell);
        let done = shell.output().map_err(|error| Failure::new(format!("could not run bash: {error}")));
        match done.and_then(|output| compare(&step, &output)) {
            Ok(()) => counts.passed += 1,
            Err(failure) => {
                // What follows stands on it.
                counts.failed += 1;
                return Outcome::Failed(counts, failure);
            }
        }
    }
    Outcome::Passed(counts)
}

/// Removes the workspaces that a session has left.
pub(crate) fn remove_workspaces(prepare: impl Fn(&mut Command)) {
    let mut shell = Command::new("bash");
    shell.args(["-c", "agentiso ls | awk 'NR > 1 { print $1 }' | xargs --no-run-if-empty agentiso rm -f"]);
    prepare(&mut shell);
    run::succeeds(&mut shell);
}

fn compare(step: &Step, output: &Output) -> Done {
    let printed = [&output.stdout[..], &output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed);
    let lines: Vec<&str> = printed.lines().collect();
    let expected: Vec<&str> = step.expected.iter().map(String::as_str).collect();
    if output.status.code() == Some(step.status) && lines_match(&expected, &lines) {
        return Ok(());
    }
    Err(Failure::new(format!(
        "README.md line {}: `{}` was to print\n{}\nwith exit status {}; it printed\n{}\nwith {}",
        step.line,
        step.command,
        step.expected.join("\n"),
        step.status,
        printed.trim_end(),
        output.status
    )))
}

fn steps(text: &str) -> Done<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    let mut may_follow = false;
    for (number, line) in text.lines().enumerate() {
        match (inside, line) {
            (false, "```console") => (inside, may_follow) = (true, false),
            (true, "```") => inside = false,
            (true, _) => {
                if let Some(command) = line.strip_prefix("$ ") {
                    may_follow = true;
                    steps.push(Step {
                        line: number + 1,
                        command: command.to_owned(),
                        expected: Vec::new(),
                        status: 0,
                    });
                } else if let Some(step) = steps.last_mut().filter(|_| may_follow) {
                    match line.strip_prefix("[exit status: ").and_then(|rest| rest.strip_suffix(']')) {
                        Some(status) => {
                            step.status = status.parse().map_err(|_| {
                                Failure::new(format!(
                                    "README.md line {}: no exit status in {line}",
                                    number + 1
                                ))
                            })?;
                        }
                        None => step.expected.push(line.to_owned()),
                    }
                } else {
                    return Err(Failure::new(format!(
                        "README.md line {}: output without a command",
                        number + 1
                    )));
                }
            }
            (false, _) => {}
        }
    }
    Ok(steps)
}

/// `...` as a line stands for any number of lines.
fn lines_match(expected: &[&str], lines: &[&str]) -> bool {
    match expected.split_first() {
        None => lines.is_empty(),
        Some((&"...", rest)) => (0..=lines.len()).any(|skipped| lines_match(rest, &lines[skipped..])),
        Some((pattern, rest)) => lines
            .split_first()
            .is_some_and(|(line, others)| line_matches(pattern, line) && lines_match(rest, others)),
    }
}

/// `...` within a line stands for any text.
fn line_matches(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split("...");
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    true
}

/// Reads the README.
pub(crate) fn text() -> Done<String> {
    let path = run::repository()?.join("README.md");
    std::fs::read_to_string(&path).map_err(run::at("read", &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_from_console_blocks_only() {
        let text = "```sh\n$ no\n```\n```console\n$ agentiso ls\nNAME\n$ false\n[exit status: 1]\n```\n";
        let expected = [
            Step { line: 5, command: "agentiso ls".into(), expected: vec!["NAME".into()], status: 0 },
            Step { line: 7, command: "false".into(), expected: vec![], status: 1 },
        ];
        assert_eq!(steps(text).unwrap(), expected);
        assert!(steps("```console\nno command\n```\n").is_err());
        assert!(steps("```console\n$ x\n[exit status: y]\n```\n").is_err());
    }

    #[test]
    fn dots_stand_for_text_in_a_line() {
        for (pattern, line) in [
            ("6.1...amd64", "6.1.0-56-cloud-amd64"),
            ("...", ""),
            ("a...b...c", "a1b2c"),
            ("exact", "exact"),
            ("end...", "end of line"),
        ] {
            assert!(line_matches(pattern, line), "{pattern}");
        }
        for (pattern, line) in
            [("exact", "exactly"), ("6.1...x", "6.1 y"), ("a...b...c", "a2c"), ("x...", "yx")]
        {
            assert!(!line_matches(pattern, line), "{pattern}");
        }
    }

    #[test]
    fn dots_as_a_line_stand_for_lines() {
        assert!(lines_match(&["...", "end"], &["a", "b", "end"]));
        assert!(lines_match(&["start", "..."], &["start"]));
        assert!(!lines_match(&["...", "end"], &["a", "b"]));
        assert!(!lines_match(&[], &["surplus"]));
        assert!(!lines_match(&["missing"], &[]));
    }

    #[test]
    fn session_that_prints_something_else_fails_with_its_line() {
        let Outcome::Failed(counts, failure) =
            run("```console\n$ echo one\none\n$ echo two\nthree\n```\n", |_| ())
        else {
            panic!("it passed")
        };
        assert_eq!((counts.passed, counts.failed), (1, 1));
        assert!(failure.to_string().contains("README.md line 4"), "{failure}");
    }

    #[test]
    fn session_shows_output_then_errors_then_status() {
        let text = "```console\n$ echo two >&2; echo one; exit 3\none\ntwo\n[exit status: 3]\n```\n";
        assert!(matches!(run(text, |_| ()), Outcome::Passed(Counts { passed: 1, .. })));
    }
}
