//! What runs in the lab: each test as a process of its own, with a time limit, its output and its end sent out.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use super::plan::{self, Plan};
use super::protocol::{MAX_OUTPUT, Message, Status};
use crate::run::{self, Done, Failure};

/// Where the kernel lists the ports that results can go out through.
const PORTS: &str = "/sys/class/virtio-ports";

/// How long the host's side of the port may take.
const PORT_LIMIT: Duration = Duration::from_secs(20);

/// What a program may take to say which tests it has.
const LIST_LIMIT: Duration = Duration::from_secs(60);

/// How long what a test left running may keep its output open after it has ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Most bytes of one test's output that are sent; the rest is dropped, and it is said how much.
const MAX_TEST_OUTPUT: usize = 4 * 1024 * 1024;

/// Runs what the plan in the folder says.
pub(crate) fn inside(folder: &Path) -> Done {
    let path = folder.join(plan::FILE);
    let text = fs::read_to_string(&path).map_err(run::at("read", &path))?;
    let plan = Plan::parse(&text).ok_or_else(|| Failure::new(format!("{} is no plan", path.display())))?;
    let mut port = open_port()?;
    run_plan(&plan, &folder.join(plan::TESTS), &mut port)
        .map_err(|error| Failure::new(format!("could not send results: {error}")))
}

fn open_port() -> Done<File> {
    let deadline = Instant::now() + PORT_LIMIT;
    loop {
        // ENXIO until the host has answered; the kernel tells nobody when it has.
        let failure = match find_port().map(|path| OpenOptions::new().write(true).open(path)) {
            Some(Ok(port)) => return Ok(port),
            Some(Err(error)) => format!("could not open the port for results: {error}"),
            None => "there is no port for results".to_owned(),
        };
        if Instant::now() >= deadline {
            return Err(Failure::new(failure));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn find_port() -> Option<PathBuf> {
    let ports = fs::read_dir(PORTS).ok()?.flatten();
    let is_ours = |port: &fs::DirEntry| {
        fs::read_to_string(port.path().join("name")).is_ok_and(|name| name.trim() == plan::PORT)
    };
    ports.into_iter().find(is_ours).map(|port| Path::new("/dev").join(port.file_name()))
}

fn run_plan(plan: &Plan, folder: &Path, to: &mut impl io::Write) -> io::Result<()> {
    let mut tests: Vec<(&str, Result<String, String>)> = Vec::new();
    for binary in &plan.binaries {
        match list(plan, &folder.join(binary)) {
            Ok(names) => {
                let names = names.into_iter().filter(|name| plan.includes(&format!("{binary}::{name}")));
                tests.extend(names.map(|name| (binary.as_str(), Ok(name))));
            }
            Err(error) => tests.push((binary, Err(error))),
        }
    }
    Message::Plan(tests.len()).write(to)?;
    for (binary, test) in &tests {
        let begun = Instant::now();
        let status = match test {
            Ok(name) => {
                Message::Begin(format!("{binary}::{name}")).write(to)?;
                run_test(plan, &folder.join(binary), name, to)?
            }
            Err(error) => {
                Message::Begin(format!("{binary}::(list of tests)")).write(to)?;
                Message::Output(error.as_bytes().iter().copied().take(MAX_OUTPUT).collect()).write(to)?;
                Status::Failed
            }
        };
        let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        Message::End { status, millis }.write(to)?;
    }
    Message::Done(tests.len()).write(to)
}

/// The names of a program's tests, without those that are marked as ignored.
fn list(plan: &Plan, program: &Path) -> Result<Vec<String>, String> {
    let names = |extra: &[&str]| {
        let mut command = prepared(plan, program);
        command.args(["--list", "--format", "terse"]).args(extra);
        let mut output = Vec::new();
        let status = observe(command, LIST_LIMIT, |bytes| {
            output.extend_from_slice(bytes);
            Ok(())
        })
        .map_err(|error| format!("could not run it: {error}"))?;
        let text = String::from_utf8_lossy(&output).into_owned();
        match status {
            Some(status) if status.success() => {
                let tests = text.lines().filter_map(|line| line.strip_suffix(": test"));
                Ok(tests.map(str::to_owned).collect::<Vec<_>>())
            }
            Some(status) => Err(format!("it ended with {status} when asked for its tests: {text}")),
            None => Err(format!("it took longer than {LIST_LIMIT:?} to list its tests")),
        }
    };
    let ignored = names(&["--ignored"])?;
    Ok(names(&[])?.into_iter().filter(|name| !ignored.contains(name)).collect())
}

fn prepared(plan: &Plan, program: &Path) -> Command {
    let mut command = Command::new(program);
    command.envs(plan.environment.iter().map(|(name, value)| (name, value))).stdin(Stdio::null());
    command
}

fn run_test(plan: &Plan, program: &Path, name: &str, to: &mut impl io::Write) -> io::Result<Status> {
    let mut command = prepared(plan, program);
    // With one thread the harness would begin the line on which the test prints.
    command.args(["--exact", name, "--nocapture", "--test-threads=2"]);
    let mut said = Said::default();
    let mut sent = 0;
    let status = observe(command, plan.limit, |bytes| {
        said.see(bytes);
        let room = MAX_TEST_OUTPUT - sent;
        let shown = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        sent += shown.len();
        if shown.is_empty() { Ok(()) } else { Message::Output(shown.to_vec()).write(to) }
    });
    let (note, status) = match status {
        Ok(Some(status)) => (describe(status), said.status(status.success())),
        Ok(None) => (Some(format!("it was ended after {:?}", plan.limit)), Status::TimedOut),
        Err(error) if is_broken(&error) => return Err(error),
        Err(error) => (Some(format!("could not run {}: {error}", program.display())), Status::Failed),
    };
    if let Some(note) = note {
        Message::Output(format!("\nlab: {note}\n").into_bytes()).write(to)?;
    }
    Ok(status)
}

/// Whether it is the port that failed.
fn is_broken(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

fn describe(status: ExitStatus) -> Option<String> {
    status.signal().map(|signal| format!("it was ended by signal {signal}"))
}

/// What happens to a program.
enum Event {
    Printed(Vec<u8>),
    /// Nobody has its output open any more.
    Closed,
    Ended(io::Result<ExitStatus>),
}

/// Runs a program until it ends, `None` if it had to be ended. `see` gets what it prints.
fn observe(
    mut command: Command,
    limit: Duration,
    mut see: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<Option<ExitStatus>> {
    let (reader, writer) = io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer).process_group(0);
    let child = command.spawn()?;
    // Our ends of the pipe that it prints to.
    drop(command);
    let group = child.id();
    let events = events_of(child, reader);
    let mut deadline = Instant::now() + limit;
    let (mut ended, mut closed, mut stopped) = (None, false, false);
    while !(closed && ended.is_some()) {
        match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Event::Printed(bytes)) => see(&bytes)?,
            Ok(Event::Closed) => closed = true,
            Ok(Event::Ended(status)) => {
                ended = Some(status?);
                // What it started may keep its output open for ever.
                deadline = Instant::now() + LAST_WORDS;
            }
            Err(RecvTimeoutError::Timeout) if ended.is_none() && !stopped => {
                stopped = true;
                deadline = Instant::now() + LAST_WORDS;
                run::succeeds(Command::new("kill").args(["-KILL", "--", &format!("-{group}")]));
            }
            Err(_) => break,
        }
    }
    Ok(ended.filter(|_| !stopped))
}

fn events_of(mut child: Child, mut reader: io::PipeReader) -> Receiver<Event> {
    // Bounded, so that a test that prints without end waits for us.
    let (send, receive) = mpsc::sync_channel(16);
    let sender = send.clone();
    std::thread::spawn(move || sender.send(Event::Ended(child.wait())));
    std::thread::spawn(move || {
        let mut buffer = vec![0; MAX_OUTPUT];
        while let Ok(read @ 1..) = reader.read(&mut buffer) {
            let bytes = buffer.get(..read).unwrap_or_default().to_vec();
            if send.send(Event::Printed(bytes)).is_err() {
                return;
            }
        }
        // Nobody to tell if the other side is gone.
        let _ = send.send(Event::Closed);
    });
    receive
}

/// What a test's output says about it.
#[derive(Default)]
struct Said {
    line: Vec<u8>,
    skipped: bool,
    passed: bool,
}

impl Said {
    fn see(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte == b'\n' {
                self.see_line();
                self.line.clear();
            } else if self.line.len() < 256 {
                self.line.push(*byte);
            }
        }
    }

    fn see_line(&mut self) {
        self.skipped |= self.line.starts_with(b"skipped:");
        // A program that ends with success without having run the test has not passed it.
        self.passed |= self.line.starts_with(b"test result: ok. 1 passed; 0 failed;");
    }

    fn status(&self, success: bool) -> Status {
        match (success && self.passed, self.skipped) {
            (true, true) => Status::Skipped,
            (true, false) => Status::Passed,
            (false, _) => Status::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stand-in for a test program: a script that answers as libtest does.
    fn run_script(script: &str, limit: Duration) -> Vec<Message> {
        let folder =
            std::env::temp_dir().join(format!("xtask-inside-{}-{}", std::process::id(), script.len()));
        fs::create_dir_all(&folder).unwrap();
        let list = "case \"$*\" in *--ignored*) echo 'old: test'; exit;; --list*) printf 'one: test\\nold: test\\nbench: benchmark\\n'; exit;; esac";
        let program = folder.join("lab_script");
        fs::write(&program, format!("#!/bin/sh\n{list}\n{script}\n")).unwrap();
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let plan = Plan { limit, binaries: vec!["lab_script".to_owned()], ..Plan::default() };
        let mut bytes = Vec::new();
        run_plan(&plan, &folder, &mut bytes).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        let mut from = &bytes[..];
        std::iter::from_fn(|| Message::read(&mut from).unwrap()).collect()
    }

    fn outcome(messages: &[Message]) -> (Status, String) {
        let mut output = Vec::new();
        let mut status = None;
        for message in messages {
            match message {
                Message::Output(bytes) => output.extend_from_slice(bytes),
                Message::End { status: of, .. } => status = Some(*of),
                _ => {}
            }
        }
        (status.unwrap(), String::from_utf8(output).unwrap())
    }

    const PATIENT: Duration = Duration::from_secs(60);
    const PASSED: &str = "echo 'test result: ok. 1 passed; 0 failed; 0 ignored'";

    #[test]
    fn test_that_passes_is_begun_ended_and_counted() {
        let messages = run_script(&format!("echo $*; {PASSED}"), PATIENT);

        assert_eq!(messages.first(), Some(&Message::Plan(1)));
        assert_eq!(messages.get(1), Some(&Message::Begin("lab_script::one".to_owned())));
        assert_eq!(messages.last(), Some(&Message::Done(1)));
        let (status, output) = outcome(&messages);
        assert_eq!(status, Status::Passed);
        assert!(output.starts_with("--exact one --nocapture"), "{output}");
    }

    #[test]
    fn test_fails_by_status_by_signal_and_by_not_having_run() {
        for (script, said) in [
            (format!("{PASSED}; exit 101"), "test result"),
            (format!("{PASSED}; kill -SEGV $$"), "signal 11"),
            ("echo 'test result: ok. 0 passed; 0 failed'; true   ".to_owned(), "0 passed"),
        ] {
            let (status, output) = outcome(&run_script(&script, PATIENT));
            assert_eq!(status, Status::Failed, "{script}");
            assert!(output.contains(said), "{output}");
        }
    }

    #[test]
    fn test_that_says_so_is_skipped() {
        let (status, _) = outcome(&run_script(&format!("echo skipped: not here; {PASSED}"), PATIENT));
        assert_eq!(status, Status::Skipped);
    }

    #[test]
    fn test_that_hangs_is_ended_with_what_it_started_and_its_output_is_kept() {
        let (status, output) =
            outcome(&run_script("sleep 1000 & echo started; sleep 1000", Duration::from_millis(500)));
        assert_eq!(status, Status::TimedOut);
        assert!(output.starts_with("started\n") && output.contains("ended after"), "{output}");
    }

    #[test]
    fn test_whose_children_keep_its_output_open_ends_all_the_same() {
        let (status, _) = outcome(&run_script(&format!("setsid sleep 5 & {PASSED}"), PATIENT));
        assert_eq!(status, Status::Passed);
    }
}
