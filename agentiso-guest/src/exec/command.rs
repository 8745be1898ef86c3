//! From a request's [`Command`] to a running process.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::BorrowedFd;

use agentiso_guest::limits::{MAX_ARGUMENT_BYTES, MAX_ARGUMENTS, MAX_PATH_BYTES};
use agentiso_guest::message::{Command, ErrorCode};
use rustix::io::Errno;

use crate::agent::Agent;
use crate::environment::{self, for_execve};
use crate::failure::Failure;
use crate::freezer::Entry;
use crate::sys::spawn::{Plan, SpawnError, Spawned, spawn};

/// A command that was checked and is ready to start.
#[derive(Debug)]
pub(crate) struct Prepared {
    program: String,
    search_path: Option<String>,
    workdir: Option<String>,
    programs: Vec<CString>,
    argv: Vec<CString>,
    environment: Vec<CString>,
    folders: Vec<CString>,
}

impl Prepared {
    /// Checks a command against the limits and looks up where its program may be.
    ///
    /// # Errors
    /// It has no program, is too long, names a refused variable, or contains a NUL.
    pub(crate) fn new(agent: &Agent, command: &Command, terminal: bool) -> Result<Self, Failure> {
        let environment = agent.environment.of_command(&command.env, terminal)?;
        Self::with_environment(command, &environment)
    }

    /// The same for a program of the system's own: nothing is in its environment that someone set for all commands.
    ///
    /// # Errors
    /// As [`Prepared::new`].
    pub(crate) fn clean(command: &Command) -> Result<Self, Failure> {
        Self::with_environment(command, &environment::clean(&command.env))
    }

    fn with_environment(command: &Command, environment: &BTreeMap<String, String>) -> Result<Self, Failure> {
        let Some(program) = command.argv.first().filter(|program| !program.is_empty()) else {
            return Err(Failure::invalid("the command is empty: its first argument must be a program"));
        };
        let bytes: usize = command.argv.iter().map(|argument| argument.len() + 1).sum();
        if command.argv.len() > MAX_ARGUMENTS || bytes > MAX_ARGUMENT_BYTES {
            return Err(Failure::new(
                ErrorCode::Exhausted,
                format!(
                    "the command has {} arguments of {bytes} bytes; at most {MAX_ARGUMENTS} arguments of \
                     {MAX_ARGUMENT_BYTES} bytes can be passed, put more into a file or standard input",
                    command.argv.len()
                ),
            ));
        }
        let argv = command.argv.iter().map(|text| c_string(text, "an argument")).collect::<Result<_, _>>()?;
        let search_path =
            (!program.contains('/')).then(|| environment.get("PATH").cloned().unwrap_or_default());
        let programs = match &search_path {
            None => vec![c_string(program, "the program")?],
            Some(path) => candidates(path, program)?,
        };
        let folders = match &command.workdir {
            None => vec![c"/root".to_owned(), c"/".to_owned()],
            Some(folder) if folder.starts_with('/') && folder.len() <= MAX_PATH_BYTES => {
                vec![c_string(folder, "the working folder")?]
            }
            Some(folder) => {
                return Err(Failure::invalid(format!("the working folder {folder:?} is no absolute path")));
            }
        };
        Ok(Self {
            program: program.clone(),
            search_path,
            workdir: command.workdir.clone(),
            programs,
            argv,
            environment: for_execve(environment),
            folders,
        })
    }

    /// Starts the command on the given standard streams, in the group that `entry` leads into.
    ///
    /// # Errors
    /// It cannot be started; the failure says what is missing.
    pub(crate) fn start(
        &self,
        agent: &Agent,
        entry: Option<&Entry<'_>>,
        stdio: [BorrowedFd<'_>; 3],
        terminal: bool,
    ) -> Result<Spawned, Failure> {
        let plan = Plan {
            programs: self.programs.clone(),
            argv: self.argv.clone(),
            environment: self.environment.clone(),
            folders: self.folders.clone(),
            stdio,
            terminal,
            cgroup: entry.map(|entry| entry.folder),
            reset_oom_score: agent.reset_oom_score,
            open_files: agent.open_files,
        };
        spawn(&plan).map_err(|error| self.explain(error))
    }

    fn explain(&self, error: SpawnError) -> Failure {
        let program = &self.program;
        match error {
            SpawnError::Folder(error) => {
                let folder = self.workdir.as_deref().unwrap_or("/");
                Failure::system(format!("entering the working folder {folder}"), error)
            }
            SpawnError::Execute(Errno::NOENT | Errno::NOTDIR) => self.explain_missing(),
            SpawnError::Execute(Errno::NOEXEC) => Failure::new(
                ErrorCode::NotPermitted,
                format!("{program} is no program that this machine can run"),
            ),
            SpawnError::Execute(Errno::ACCESS) => Failure::new(
                ErrorCode::NotPermitted,
                format!("{program} may not be executed: it is not marked executable, or is a folder"),
            ),
            SpawnError::Execute(error) => Failure::system(format!("executing {program}"), error),
            SpawnError::Clone(error) => Failure::system(format!("starting a process for {program}"), error),
            SpawnError::Streams(error) => {
                Failure::system(format!("setting up the streams of {program}"), error)
            }
        }
    }

    fn explain_missing(&self) -> Failure {
        let program = &self.program;
        let text = if let Some(path) = &self.search_path {
            format!("there is no program {program} in this machine (looked in {path})")
        } else if std::fs::symlink_metadata(program).is_ok() {
            format!(
                "{program} is there, but the interpreter or loader that it names, or what it links to, is not"
            )
        } else if program == "/bin/sh" {
            "there is no /bin/sh in this image: give a program and its arguments instead of a shell command"
                .to_owned()
        } else {
            format!("there is no program {program} in this machine")
        };
        Failure::new(ErrorCode::NotFound, text)
    }
}

/// The program in each folder of a search path; an empty folder is the current one, as POSIX has it.
fn candidates(path: &str, program: &str) -> Result<Vec<CString>, Failure> {
    path.split(':')
        .map(|folder| if folder.is_empty() { "." } else { folder })
        .map(|folder| c_string(&format!("{folder}/{program}"), "the program"))
        .collect()
}

fn c_string(text: &str, what: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| Failure::invalid(format!("{what} contains a NUL")))
}
