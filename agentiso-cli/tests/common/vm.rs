//! Real machines. The state folder is prepared by `cargo xtask test`.

use std::{
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Child, ChildStdout, Command},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{Cli, Ended};

/// How long anything may take. An emulated machine boots in seconds; a busy host makes that many.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// The program at the state folder prepared for tests with machines; none, with the reason printed, without one.
///
/// `cargo xtask test` prepares one, and says so with AGENTISO_TEST_SEED; AGENTISO_VM_TESTS=1 says it by hand.
pub(crate) fn cli() -> Option<Cli> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let is_prepared = variable("AGENTISO_TEST_SEED").is_some()
        || variable("AGENTISO_VM_TESTS").is_some_and(|value| value == "1");
    let Some(home) = variable("AGENTISO_HOME").filter(|_| is_prepared) else {
        println!("skipped: there is no state folder with an image; `cargo xtask test` makes one");
        return None;
    };
    let cli = Cli::at(PathBuf::from(home));
    Some(match variable("AGENTISO_BIN") {
        Some(program) => cli.with_program(PathBuf::from(program)),
        None => cli,
    })
}

/// A workspace name that no other test uses.
pub(crate) fn unique(prefix: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A workspace that is removed with the value, also if the test fails.
pub(crate) struct Machine<'a> {
    pub(crate) cli: &'a Cli,
    pub(crate) name: String,
}

impl<'a> Machine<'a> {
    /// Creates one with the least memory that the tests need.
    #[track_caller]
    pub(crate) fn create(cli: &'a Cli, prefix: &str, options: &[&str]) -> Self {
        let machine = Self::named(cli, &unique(prefix));
        let printed =
            cli.ok(&[&["create", "--memory", "256", "--disk", "4"], options, &[&machine.name]].concat());
        assert_eq!(printed, format!("{}\n", machine.name), "create prints the name alone");
        machine
    }

    /// Removes what is called so in the end, whoever creates it.
    pub(crate) fn named(cli: &'a Cli, name: &str) -> Self {
        Self { cli, name: name.to_owned() }
    }

    #[track_caller]
    pub(crate) fn exec(&self, words: &[&str]) -> Ended {
        self.cli.run(&[&["exec", &self.name, "--"], words].concat())
    }

    /// Runs a shell script in it and expects success. Returns its standard output.
    #[track_caller]
    pub(crate) fn sh(&self, script: &str) -> String {
        self.cli.ok(&["exec", &self.name, "--", "sh", "-c", script])
    }

    #[track_caller]
    pub(crate) fn info(&self) -> Value {
        serde_json::from_str(&self.cli.ok(&["info", &self.name, "--json"])).unwrap()
    }

    /// `NAME:PATH`.
    pub(crate) fn path(&self, path: &str) -> String {
        format!("{}:{path}", self.name)
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        let ended = self.cli.run(&["rm", "-f", &self.name]);
        if ended.status != 0 && !ended.stderr.contains("there is no workspace") {
            eprintln!("could not remove {}: {ended:?}", self.name);
        }
    }
}

/// The line of `ls` about a workspace.
pub(crate) fn listed(cli: &Cli, name: &str) -> Option<Value> {
    let all: Vec<Value> = serde_json::from_str(&cli.ok(&["ls", "--json"])).unwrap();
    all.into_iter().find(|workspace| workspace["name"] == name)
}

/// Processes whose command line holds a workspace's id, and its files in the state folder.
pub(crate) fn leftovers(cli: &Cli, id: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(id) {
            found.push(format!("process {}: {command}", entry.file_name().to_string_lossy()));
        }
    }
    let run = cli.home().join("run").join(id);
    if run.exists() {
        found.push(run.display().to_string());
    }
    found
}

/// Waits until the check gives something.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(begin.elapsed() < PATIENCE, "{what} did not happen within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A program under way, killed with the value.
pub(crate) struct Running {
    child: Child,
    stdout: Option<BufReader<ChildStdout>>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().map(BufReader::new);
        Self { child, stdout }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn stdout(&mut self) -> &mut BufReader<ChildStdout> {
        self.stdout.as_mut().unwrap()
    }

    /// Closes our end of its standard output.
    pub(crate) fn close_stdout(&mut self) {
        self.stdout = None;
    }

    /// Its next line of standard output.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout().read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end and what it still prints.
    #[track_caller]
    pub(crate) fn end(mut self) -> Ended {
        let mut stdout = String::new();
        if let Some(out) = &mut self.stdout {
            out.read_to_string(&mut stdout).unwrap();
        }
        let mut stderr = String::new();
        if let Some(err) = &mut self.child.stderr {
            err.read_to_string(&mut stderr).unwrap();
        }
        let status = wait_for("the end of the program", || self.child.try_wait().unwrap());
        Ended { status: status.code().unwrap_or(-1), stdout, stderr }
    }

    /// Kills it as a crash would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
