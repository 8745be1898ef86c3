//! The commands a fake guest knows.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use agentiso_guest::message::{Command, ErrorCode};
use tokio::sync::mpsc;

use super::Refusal;
use crate::testkit::{FakeFile, FakeGuest, FakeInvocation};

/// Programs that can be run. `sh -c LINE` runs commands separated by `;`; the last redirection `> FILE`, `>&2` counts.
const PROGRAMS: &[&str] =
    &["cat", "echo", "env", "exit", "false", "hostname", "sh", "sleep", "sync", "true", "yes"];

/// Bytes that `yes` prints at once.
const YES_BYTES: usize = 64 * 1024;

/// Which stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Out,
    Err,
}

/// Bytes a command printed.
pub(super) type Printed = (Stream, Vec<u8>);

/// A command that can run.
pub(super) struct Program {
    guest: FakeGuest,
    argv: Vec<String>,
    env: BTreeMap<String, String>,
    stdin: mpsc::Receiver<Vec<u8>>,
    output: mpsc::Sender<Printed>,
}

/// Nobody takes the output any more, or the guest is off.
struct Ended;

impl Program {
    /// Finds the program of a command.
    pub(super) fn find(
        guest: &FakeGuest,
        command: Command,
        stdin: mpsc::Receiver<Vec<u8>>,
        output: mpsc::Sender<Printed>,
    ) -> Result<Self, Refusal> {
        let Some(program) = command.argv.first() else {
            return Err(Refusal::new(ErrorCode::Invalid, "run a command: it is empty"));
        };
        if !PROGRAMS.contains(&base_name(program)) && guest.program(base_name(program)).is_none() {
            return Err(Refusal::new(
                ErrorCode::NotFound,
                format!("run {program}: there is no such program"),
            ));
        }
        let mut env = guest.env();
        env.extend(command.env);
        Ok(Self { guest: guest.clone(), argv: command.argv, env, stdin, output: output.clone() })
    }

    /// Runs it to its end and gives its exit status.
    pub(super) async fn run(mut self) -> u8 {
        let argv = std::mem::take(&mut self.argv);
        let is_shell = base_name(&argv[0]) == "sh" && argv.get(1).is_some_and(|flag| flag == "-c");
        let result = if is_shell {
            self.shell(argv.get(2).map_or("", String::as_str)).await
        } else {
            self.simple(&argv, &Target::Stream(Stream::Out)).await
        };
        // Whoever is told of an end like this is gone.
        result.unwrap_or(1)
    }

    async fn shell(&mut self, line: &str) -> Result<u8, Ended> {
        let mut status = 0;
        for part in line.split(';') {
            let mut argv: Vec<String> = part.split_whitespace().map(str::to_owned).collect();
            let mut target = Target::Stream(Stream::Out);
            if let Some(at) = argv.iter().position(|word| word == ">&2") {
                argv.remove(at);
                target = Target::Stream(Stream::Err);
            } else if let Some(at) = argv.iter().position(|word| word == ">") {
                target = Target::File(argv.get(at + 1).cloned().unwrap_or_default());
                argv.truncate(at);
                self.write_file(&target, Vec::new());
            }
            if argv.is_empty() {
                continue;
            }
            status = if PROGRAMS.contains(&argv[0].as_str()) {
                self.simple(&argv, &target).await?
            } else {
                self.print(
                    &Target::Stream(Stream::Err),
                    format!("sh: {}: not found\n", argv[0]).into_bytes(),
                )
                .await?;
                127
            };
            if argv[0] == "exit" {
                break;
            }
        }
        Ok(status)
    }

    async fn simple(&mut self, argv: &[String], target: &Target) -> Result<u8, Ended> {
        if let Some(program) = self.guest.program(base_name(&argv[0])) {
            let mut stdin = Vec::new();
            while let Some(bytes) = self.stdin.recv().await {
                stdin.extend(bytes);
            }
            let done = program(FakeInvocation { argv: argv.to_vec(), env: self.env.clone(), stdin });
            self.print(&Target::Stream(Stream::Err), done.stderr).await?;
            self.print(target, done.stdout).await?;
            return Ok(done.status);
        }
        let arguments = &argv[1..];
        match base_name(&argv[0]) {
            "true" => {}
            "false" => return Ok(1),
            "exit" => return Ok(arguments.first().and_then(|status| status.parse().ok()).unwrap_or(0)),
            "echo" => self.print(target, format!("{}\n", arguments.join(" ")).into_bytes()).await?,
            "hostname" => {
                let hostname = self.guest.configuration().hostname.unwrap_or_else(|| "localhost".to_owned());
                self.print(target, format!("{hostname}\n").into_bytes()).await?;
            }
            "env" => {
                let lines: String =
                    self.env.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
                self.print(target, lines.into_bytes()).await?;
            }
            "sync" => self.guest.sync(),
            "sleep" => {
                let seconds = arguments.first().and_then(|seconds| seconds.parse::<f64>().ok());
                let time = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                tokio::time::sleep(time.unwrap_or_default()).await;
            }
            "yes" => {
                let line = arguments.first().map_or("y", String::as_str).to_owned() + "\n";
                let lines = line.repeat((YES_BYTES / line.len()).max(1)).into_bytes();
                loop {
                    self.print(target, lines.clone()).await?;
                }
            }
            "cat" if arguments.is_empty() => {
                while let Some(bytes) = self.stdin.recv().await {
                    self.print(target, bytes).await?;
                }
            }
            "cat" => {
                for path in arguments {
                    let Some(file) = self.guest.file(path) else {
                        let complaint = format!("cat: {path}: No such file or directory\n").into_bytes();
                        self.print(&Target::Stream(Stream::Err), complaint).await?;
                        return Ok(1);
                    };
                    self.print(target, file.content).await?;
                }
            }
            // "sh" without -c, as with a script on its standard input: nothing to do.
            _ => {}
        }
        Ok(0)
    }

    async fn print(&self, target: &Target, bytes: Vec<u8>) -> Result<(), Ended> {
        self.guest.processes_run().await.map_err(|_| Ended)?;
        match target {
            Target::Stream(stream) if !bytes.is_empty() => {
                self.output.send((*stream, bytes)).await.map_err(|_| Ended)
            }
            Target::Stream(_) => Ok(()),
            Target::File(_) => {
                self.write_file(target, bytes);
                Ok(())
            }
        }
    }

    /// Appends to the file that output goes to.
    fn write_file(&self, target: &Target, bytes: Vec<u8>) {
        let Target::File(path) = target else { return };
        let mut state = self.guest.state();
        if bytes.is_empty() {
            state.files.insert(path.clone(), FakeFile { content: bytes, mode: 0o644 });
        } else {
            state.files.entry(path.clone()).or_default().content.extend(bytes);
        }
    }
}

/// Where output goes.
enum Target {
    Stream(Stream),
    File(String),
}

fn base_name(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}

/// Lets a command be ended by a signal from elsewhere.
#[derive(Clone, Default)]
pub(super) struct Signals {
    sent: Arc<tokio::sync::watch::Sender<Option<u8>>>,
}

impl Signals {
    pub(super) fn send(&self, signal: u8) {
        self.sent.send_replace(Some(signal));
    }

    /// The first signal that was sent.
    pub(super) async fn received(&self) -> u8 {
        let mut sent = self.sent.subscribe();
        let signal = sent.wait_for(Option::is_some).await.ok().and_then(|signal| *signal);
        match signal {
            Some(signal) => signal,
            // The sender lives as long as `self`: there is always a signal.
            None => std::future::pending().await,
        }
    }
}
