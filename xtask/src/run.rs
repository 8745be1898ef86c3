//! Running other programs.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    fmt,
    fs::File,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Why a task failed, for people.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(crate) type Done<T = ()> = Result<T, Failure>;

/// Names what was being done with a file in an error of the system.
pub(crate) fn at<'a>(operation: &'a str, path: &'a Path) -> impl Fn(std::io::Error) -> Failure + 'a {
    move |error| Failure::new(format!("could not {operation} {}: {error}", path.display()))
}

/// The folder of this repository.
pub(crate) fn repository() -> Done<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().map(Path::to_owned).ok_or_else(|| Failure::new("xtask is not in a repository"))
}

/// The folder that cargo builds into.
pub(crate) fn target_folder() -> Done<PathBuf> {
    const KEY: &str = "\"target_directory\":\"";
    let metadata = output(cargo().args(["metadata", "--no-deps", "--offline", "--format-version=1"]))?;
    let after = metadata.split_once(KEY).map(|(_, rest)| rest);
    let folder = after.and_then(|rest| rest.split_once('"')).map(|(folder, _)| folder);
    folder.map(PathBuf::from).ok_or_else(|| Failure::new("cargo metadata names no target directory"))
}

/// The cargo that runs this, in the repository.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")));
    // What cargo sets for us is not for those that we start.
    for (name, _) in std::env::vars_os() {
        let passes_on =
            name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR");
        if passes_on {
            command.env_remove(name);
        }
    }
    command
}

/// As people would type it.
pub(crate) fn shown(command: &Command) -> String {
    // The folder of a program says nothing to people, and cargo's is long.
    let program = Path::new(command.get_program());
    let words = std::iter::once(program.file_name().unwrap_or(program.as_os_str())).chain(command.get_args());
    words.map(quoted).collect::<Vec<_>>().join(" ")
}

/// A word as a shell takes it for one.
pub(crate) fn quoted(word: impl AsRef<OsStr>) -> String {
    let word = word.as_ref().to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Runs a program with our output, and says what it is.
pub(crate) fn run(command: &mut Command) -> Done {
    println!("+ {}", shown(command));
    let status = command.stdin(Stdio::null()).status();
    let status =
        status.map_err(|error| Failure::new(format!("could not run {}: {error}", shown(command))))?;
    if status.success() {
        Ok(())
    } else {
        Err(Failure::new(format!("{} ended with {status}", shown(command))))
    }
}

/// Runs a program that only answers a question.
pub(crate) fn output(command: &mut Command) -> Done<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output =
        output.map_err(|error| Failure::new(format!("could not run {}: {error}", shown(command))))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(Failure::new(format!("{} ended with {}", shown(command), output.status)))
    }
}

/// Whether a program is found and ends with success. It prints nothing.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// Lines of the log that are shown when a logged program fails.
const SHOWN_LOG_LINES: usize = 400;

/// Lines shown of the output of one failed test: what it asserted comes first, a backtrace behind it.
const SHOWN_LINES_OF_A_TEST: usize = 60;

/// What is shown of a log when its program failed: what the failed tests printed, or else the end of the log.
///
/// Where nearly all of many tests pass, the end of the log tells of those.
#[derive(Default)]
struct Digest {
    last: VecDeque<String>,
    failed: Vec<String>,
    /// Lines still to be taken of the test whose output is being read.
    room: usize,
}

impl Digest {
    fn see(&mut self, line: String) {
        // nextest: `        FAIL [   7.015s] ( 8/74) binary test`, then what the test printed, indented by four.
        let word = line.trim_start().split_once(" [").map_or("", |(word, _)| word);
        let is_heading = line.starts_with("     ") && word.len() > 3 && word.chars().all(is_of_a_heading);
        if is_heading {
            let has_failed = !["PASS", "SLOW", "START", "SETUP", "LEAK", "Summary"].contains(&word);
            self.room = if has_failed { SHOWN_LINES_OF_A_TEST } else { 0 };
        }
        if self.room > 0 && self.failed.len() < SHOWN_LOG_LINES {
            self.room -= 1;
            self.failed.push(line.clone());
        }
        self.last.push_back(line);
        if self.last.len() > SHOWN_LOG_LINES {
            self.last.pop_front();
        }
    }

    fn show(&self, log: &Path) {
        if self.failed.is_empty() {
            println!("--- the last {} lines of {}", self.last.len(), log.display());
            self.last.iter().for_each(|line| println!("{line}"));
        } else {
            println!("--- what failed tests printed, all of it in {}", log.display());
            self.failed.iter().for_each(|line| println!("{line}"));
        }
        println!("---");
    }
}

fn is_of_a_heading(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-'
}

/// Runs a program whose output goes to a log file; `see` gets each line and says whether it is worth showing at once.
/// If it fails, what its failed tests printed or the end of the log is shown.
pub(crate) fn run_logged(command: &mut Command, log: &Path, mut see: impl FnMut(&str) -> bool) -> Done {
    println!("+ {}", shown(command));
    let failed = |error| Failure::new(format!("could not run {}: {error}", shown(command)));
    let (reader, writer) = std::io::pipe().map_err(failed)?;
    let second = writer.try_clone().map_err(failed)?;
    let name = shown(command);
    let failed = |error| Failure::new(format!("could not run {name}: {error}"));
    let child = command.stdin(Stdio::null()).stdout(writer).stderr(second).spawn();
    let mut child = child.map_err(failed)?;
    // Our copies of the pipe's end would keep it open for ever.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut file = File::create(log).map_err(at("write", log))?;
    let mut digest = Digest::default();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).map_err(failed)? > 0 {
        file.write_all(&line).map_err(at("write", log))?;
        let text = without_colors(&String::from_utf8_lossy(&line));
        if see(&text) {
            println!("{text}");
        }
        digest.see(text);
        line.clear();
    }
    let status = child.wait().map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    digest.show(log);
    Err(Failure::new(format!("{name} ended with {status}")))
}

/// Runs a program whose standard output goes to a file, and what it says to a log. If it fails, the same is shown
/// as by [`run_logged`].
pub(crate) fn run_logged_to(command: &mut Command, log: &Path, output: File) -> Done {
    println!("+ {}", shown(command));
    let name = shown(command);
    let failed = |error| Failure::new(format!("could not run {name}: {error}"));
    let errors = File::create(log).map_err(at("write", log))?;
    let status = command.stdin(Stdio::null()).stdout(output).stderr(errors).status().map_err(failed)?;
    // Our copy of the output must not outlive its end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    if status.success() {
        return Ok(());
    }
    let text = std::fs::read(log).map_err(at("read", log))?;
    let mut digest = Digest::default();
    for line in String::from_utf8_lossy(&text).lines() {
        digest.see(without_colors(line));
    }
    digest.show(log);
    Err(Failure::new(format!("{name} ended with {status}")))
}

fn without_colors(line: &str) -> String {
    let mut plain = String::new();
    let mut characters = line.trim_end().chars();
    while let Some(c) = characters.next() {
        if c == '\u{1b}' {
            // ESC [ ... letter
            let _ = characters.by_ref().find(char::is_ascii_alphabetic);
        } else {
            plain.push(c);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_they_would_be_typed() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'a b'", ""]);
        assert_eq!(shown(&command), r"sh -c 'echo '\''a b'\''' ''");
    }

    #[test]
    fn colors_are_taken_out_of_lines() {
        assert_eq!(without_colors("\u{1b}[32;1m  PASS\u{1b}[0m x\n"), "  PASS x");
    }

    #[test]
    fn digest_holds_what_failed_tests_printed() {
        let mut digest = Digest::default();
        for line in [
            "        PASS [   0.696s] ( 1/74) a::b passes",
            "    test passes ... ok",
            "        FAIL [   7.015s] ( 8/74) a::b fails",
            "    panicked at a.rs:1 [not a heading]:",
            "     TIMEOUT [   7.015s] ( 9/74) a::b hangs",
            "     SIGSEGV [   7.015s] (10/74) a::b crashes",
            "        PASS [   0.696s] (11/74) a::b passes_too",
            "    more",
            "     Summary [ 415.523s] 74 tests run",
        ] {
            digest.see(line.to_owned());
        }
        let shown: Vec<&str> = digest.failed.iter().map(|line| line.trim_start()).collect();
        assert_eq!(digest.last.len(), 9);
        assert_eq!(shown.len(), 4, "{shown:?}");
        assert!(shown[0].starts_with("FAIL") && shown[1].starts_with("panicked"), "{shown:?}");
        assert!(shown[2].starts_with("TIMEOUT") && shown[3].starts_with("SIGSEGV"), "{shown:?}");
    }

    #[test]
    fn logged_program_is_seen_line_by_line_and_its_failure_is_one() {
        let log = std::env::temp_dir().join(format!("xtask-test-{}.log", std::process::id()));
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        let done = run_logged(command.args(["-c", "echo one; echo two >&2; exit 3"]), &log, |line| {
            lines.push(line.to_owned());
            false
        });
        let written = std::fs::read_to_string(&log).unwrap();
        std::fs::remove_file(&log).unwrap();
        assert!(done.unwrap_err().to_string().contains("exit status: 3"));
        assert_eq!(lines, ["one", "two"]);
        assert_eq!(written, "one\ntwo\n");
    }
}
