//! Runs the few host programs that the image pipeline needs, each with fixed arguments and a small environment.

use std::{
    ffi::OsStr,
    io::Read,
    path::PathBuf,
    process::{Command, ExitStatus, Stdio},
};

/// Most bytes of a program's standard output or error that are kept.
const MAX_OUTPUT_BYTES: u64 = 1024 * 1024;

/// Most bytes of a program's standard error that an error shows: its end.
pub(super) const SHOWN_ERROR_BYTES: usize = 2048;

/// Where programs are that an ordinary user's PATH often leaves out.
const SYSTEM_FOLDERS: [&str; 6] =
    ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"];

/// Variables that are passed on: where temporary files go, and how the network is reached.
const PASSED_VARIABLES: [&str; 6] = ["HOME", "TMPDIR", "http_proxy", "https_proxy", "ftp_proxy", "no_proxy"];

/// Why a program of the host did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It is not installed.
    #[error("{program} is missing: {remedy}")]
    Missing {
        /// Its name.
        program: &'static str,
        /// What to do about it.
        remedy: String,
    },
    /// It ran and failed.
    #[error("could not {operation}: {program} ended with {status}{}", shown(.stderr))]
    Failed {
        /// What was being done, as in "fetch the kernel package".
        operation: String,
        /// Its name.
        program: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said, cleaned of control characters.
        stderr: String,
    },
    /// It could not be run or listened to.
    #[error("could not run {program}")]
    Io {
        /// Its name.
        program: &'static str,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
}

fn shown(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!("\nit said:\n{stderr}") }
}

/// A program of the host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Program {
    name: &'static str,
    /// The Debian package it is in.
    package: &'static str,
}

pub(super) const APT_CACHE: Program = Program { name: "apt-cache", package: "apt" };
pub(super) const APT_CONFIG: Program = Program { name: "apt-config", package: "apt" };
pub(super) const APT_GET: Program = Program { name: "apt-get", package: "apt" };
pub(super) const DPKG_DEB: Program = Program { name: "dpkg-deb", package: "dpkg" };
pub(super) const DEPMOD: Program = Program { name: "depmod", package: "kmod" };
pub(super) const MKE2FS: Program = Program { name: "mke2fs", package: "e2fsprogs" };
pub(super) const MMDEBSTRAP: Program = Program { name: "mmdebstrap", package: "mmdebstrap" };

impl Program {
    pub(super) fn name(self) -> &'static str {
        self.name
    }

    /// Where it is: in PATH, or in a system folder.
    pub(super) fn find(self) -> Result<PathBuf, CommandError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .chain(SYSTEM_FOLDERS.map(PathBuf::from))
            .filter(|folder| folder.is_absolute())
            .map(|folder| folder.join(self.name))
            .find(|file| file.is_file())
            .ok_or_else(|| CommandError::Missing {
                program: self.name,
                remedy: format!("install it (on Debian: apt-get install {})", self.package),
            })
    }

    /// A command with the environment that every one gets.
    pub(super) fn command(self) -> Result<Command, CommandError> {
        let mut command = Command::new(self.find()?);
        command.env_clear().envs(environment()).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs it to its end and returns what it printed. Blocks.
    pub(super) fn run<A: AsRef<OsStr>>(
        self,
        operation: &str,
        arguments: impl IntoIterator<Item = A>,
    ) -> Result<String, CommandError> {
        let mut command = self.command()?;
        command.args(arguments);
        self.run_command(operation, command)
    }

    pub(super) fn run_command(self, operation: &str, mut command: Command) -> Result<String, CommandError> {
        let io = |source| CommandError::Io { program: self.name, source };
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(io)?;
        // Two pipes are read at once, or the program could block on the one that nobody reads.
        let stderr = child.stderr.take();
        let errors = std::thread::spawn(move || stderr.map(read_bounded).unwrap_or_default());
        let output = child.stdout.take().map(read_bounded).unwrap_or_default();
        let status = child.wait().map_err(io)?;
        let errors = errors.join().unwrap_or_default();
        if status.success() { Ok(output) } else { Err(self.failed(operation, status, &errors)) }
    }

    pub(super) fn failed(self, operation: &str, status: ExitStatus, stderr: &str) -> CommandError {
        CommandError::Failed {
            operation: operation.to_owned(),
            program: self.name,
            status,
            stderr: clean_tail(stderr, SHOWN_ERROR_BYTES),
        }
    }
}

/// The environment of every program: known folders, no translations, and how the network is reached.
pub(super) fn environment() -> Vec<(&'static str, std::ffi::OsString)> {
    let fixed = [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()),
        ("LC_ALL", "C.UTF-8".into()),
        ("DEBIAN_FRONTEND", "noninteractive".into()),
    ];
    let passed = PASSED_VARIABLES.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
    fixed.into_iter().chain(passed).collect()
}

/// Reads to the end, keeping a bounded part: a program must never block because nobody reads.
fn read_bounded(mut source: impl Read) -> String {
    let mut kept = Vec::new();
    let _ = source.by_ref().take(MAX_OUTPUT_BYTES).read_to_end(&mut kept);
    let _ = std::io::copy(&mut source, &mut std::io::sink());
    String::from_utf8_lossy(&kept).into_owned()
}

/// The end of a text, at most so many bytes and from the beginning of a line if it was cut, without control
/// characters (line feeds excepted).
pub(super) fn clean_tail(text: &str, max_bytes: usize) -> String {
    let text = text.trim_end();
    let mut from = text.len().saturating_sub(max_bytes);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    let tail = text.get(from..).unwrap_or_default();
    let tail = if from > 0 { tail.split_once('\n').map_or(tail, |(_, rest)| rest) } else { tail };
    tail.chars().filter(|c| !c.is_control() || *c == '\n').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHELL: Program = Program { name: "sh", package: "dash" };

    #[test]
    fn run_returns_what_the_program_printed() {
        assert_eq!(SHELL.run("try", ["-c", "echo one; echo two >&2"]).unwrap(), "one\n");
    }

    #[test]
    fn run_of_a_failing_program_shows_what_it_said() {
        let error = SHELL.run("try it", ["-c", "echo no such luck >&2; exit 3"]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("could not try it: sh ended with exit status: 3"), "{text}");
        assert!(text.contains("no such luck"), "{text}");
    }

    #[test]
    fn run_of_a_program_that_prints_without_end_on_both_pipes_keeps_a_bounded_part() {
        let script = "head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2";
        assert_eq!(SHELL.run("try", ["-c", script]).unwrap().len() as u64, MAX_OUTPUT_BYTES);
    }

    #[test]
    fn missing_program_is_named_with_its_package() {
        let program = Program { name: "agentiso-no-such-program", package: "some-package" };
        let text = program.run("try", ["x"]).unwrap_err().to_string();
        assert!(text.contains("apt-get install some-package"), "{text}");
    }

    #[test]
    fn clean_tail_keeps_whole_lines_and_drops_control_characters() {
        assert_eq!(clean_tail("first line\nsecond\x1b[1m line\n", 20), "second[1m line");
        assert_eq!(clean_tail("short", 100), "short");
        assert_eq!(clean_tail("ääää", 3), "ä");
    }
}
