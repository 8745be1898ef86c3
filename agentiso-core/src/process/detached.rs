//! Starts a program that outlives its starter, with the descriptors and rights it is given and no others.

use std::{
    ffi::{CString, OsString},
    fs::{File, OpenOptions},
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStringExt, fs::OpenOptionsExt},
    },
    path::PathBuf,
};

use rustix::{
    io::fcntl_dupfd_cloexec,
    process::{Signal, pidfd_send_signal},
};

use super::{
    landlock::FileRules,
    reaper, seccomp,
    seccomp::Sockets,
    sys::{self, ChildPlan, Report, Step},
};
use crate::types::{MachineUid, ProcessRef};

/// Number of the first descriptor that is passed; 0, 1 and 2 are the standard ones.
const FIRST_PASSED: RawFd = 3;

/// How much sooner than its starter a machine is chosen when the host runs out of memory (oom_score_adj, -1000 to
/// 1000): it holds most of the memory, and the starter can report what happened.
const OOM_SCORE: &str = "300";

/// A program to be started in a session of its own.
///
/// It gets: the arguments and the environment given here and no other; /dev/null as standard input, and as standard
/// output and error unless others are given; the passed descriptors under the numbers that [`pass`](Self::pass)
/// returned, and no other; `/` as working folder; umask 077; no core dumps; no capability in any set; no way to gain
/// privileges; the files of its [`FileRules`] and the sockets of its [`Sockets`]. It is not tied to the life of the
/// thread, process or session that starts it.
#[derive(Debug)]
pub(crate) struct Detached {
    program: PathBuf,
    words: Vec<OsString>,
    environment: Vec<OsString>,
    passed: Vec<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    uid: Option<MachineUid>,
    files: FileRules,
    sockets: Sockets,
    open_files: u64,
    file_bytes: Option<u64>,
    threads: Option<u64>,
    any_reader: bool,
    cgroup: Option<OwnedFd>,
}

impl Detached {
    /// A program by its absolute path. When it will run under another user id, that user must be allowed to execute
    /// the file; the folders above it do not matter.
    pub(crate) fn new(program: impl Into<PathBuf>) -> Self {
        let program = program.into();
        Self {
            words: vec![program.clone().into_os_string()],
            program,
            environment: Vec::new(),
            passed: Vec::new(),
            stdout: None,
            stderr: None,
            uid: None,
            files: FileRules::nothing(),
            sockets: Sockets::None,
            open_files: 1024,
            file_bytes: None,
            threads: None,
            any_reader: false,
            cgroup: None,
        }
    }

    /// Adds arguments.
    pub(crate) fn args<W: Into<OsString>>(&mut self, words: impl IntoIterator<Item = W>) -> &mut Self {
        self.words.extend(words.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of its environment, which is empty otherwise.
    pub(crate) fn env(&mut self, name: &str, value: &str) -> &mut Self {
        self.environment.push(format!("{name}={value}").into());
        self
    }

    /// Passes a descriptor. Returns the number it will have: 3 for the first, and so on.
    pub(crate) fn pass(&mut self, fd: OwnedFd) -> RawFd {
        self.passed.push(fd);
        first_free(self.passed.len() - 1)
    }

    /// What it writes to standard output goes here.
    pub(crate) fn stdout(&mut self, fd: OwnedFd) -> &mut Self {
        self.stdout = Some(fd);
        self
    }

    /// What it writes to standard error goes here.
    pub(crate) fn stderr(&mut self, fd: OwnedFd) -> &mut Self {
        self.stderr = Some(fd);
        self
    }

    /// The user and group id it runs under. Must be given when the starter is root, and only then.
    pub(crate) fn uid(&mut self, uid: Option<MachineUid>) -> &mut Self {
        self.uid = uid;
        self
    }

    /// What it may open; nothing unless said.
    pub(crate) fn files(&mut self, files: FileRules) -> &mut Self {
        self.files = files;
        self
    }

    /// Which sockets it may make; none unless said.
    #[allow(dead_code, reason = "for the network's companion processes")]
    pub(crate) fn sockets(&mut self, sockets: Sockets) -> &mut Self {
        self.sockets = sockets;
        self
    }

    /// How many descriptors it may have; 1,024 unless said.
    pub(crate) fn open_files(&mut self, limit: u64) -> &mut Self {
        self.open_files = limit;
        self
    }

    /// How far it may write in any file, in bytes; no limit unless said.
    pub(crate) fn file_bytes(&mut self, limit: u64) -> &mut Self {
        self.file_bytes = Some(limit);
        self
    }

    /// How many threads all processes of its user id may have, which is of use when it has one of its own; no limit
    /// unless said.
    pub(crate) fn threads(&mut self, limit: u64) -> &mut Self {
        self.threads = Some(limit);
        self
    }

    /// Lets other processes of its user than its ancestors read its memory, where the kernel wants the program's word
    /// for it; see [`asks_for_a_reader`](super::asks_for_a_reader). Not of use for root, who may anyway.
    pub(crate) fn any_reader(&mut self, any: bool) -> &mut Self {
        self.any_reader = any;
        self
    }

    /// The group that it enters before anything else, by its open `cgroup.procs`; its starter's unless said.
    pub(crate) fn cgroup(&mut self, entrance: Option<OwnedFd>) -> &mut Self {
        self.cgroup = entrance;
        self
    }

    /// Starts it. Returns once the program itself runs (its `exec` was done). Blocks for some milliseconds.
    ///
    /// # Errors
    /// What could not be prepared, or which of the steps towards the program failed. Nothing runs then.
    pub(crate) fn start(self) -> Result<Started, SpawnError> {
        let program = self.program.clone();
        let prepare = |operation, source| SpawnError::Prepare { operation, program: program.clone(), source };
        if rustix::process::geteuid().is_root() != self.uid.is_some() {
            return Err(SpawnError::Identity { program });
        }
        let executable = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(&self.program)
            .map_err(|source| prepare("open", source))?;
        let words = c_strings(self.words).map_err(|source| prepare("pass the arguments of", source))?;
        let environment =
            c_strings(self.environment).map_err(|source| prepare("pass the environment of", source))?;
        let ruleset = self
            .files
            .build(&executable)
            .map_err(|source| SpawnError::Landlock { program: program.clone(), source })?;
        let filter = seccomp::filter(self.sockets);
        let null = File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map_err(|source| prepare("open /dev/null for", source))?;

        // Whatever the child needs until exec sits above the numbers that it is about to fill.
        let above = first_free(self.passed.len());
        let lift = |fd: &dyn AsFd| {
            fcntl_dupfd_cloexec(fd.as_fd(), above)
                .map_err(|error| prepare("duplicate a descriptor for", error.into()))
        };
        let (report_read, report_low) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|error| prepare("make a pipe for", error.into()))?;
        let report_write = lift(&report_low)?;
        // Its end is heard when the child has closed the last copy.
        drop(report_low);
        let executable = lift(&executable)?;
        let ruleset = ruleset.as_ref().map(|fd| lift(fd)).transpose()?;
        let cgroup = self.cgroup.as_ref().map(|fd| lift(fd)).transpose()?;
        let stdin = lift(&null)?;
        let stdout = lift(self.stdout.as_ref().map_or(&null as &dyn AsFd, |fd| fd))?;
        let stderr = lift(self.stderr.as_ref().map_or(&null as &dyn AsFd, |fd| fd))?;
        let passed = self.passed.iter().map(|fd| lift(fd)).collect::<Result<Vec<_>, _>>()?;

        // Enough for what is passed and what the program itself opens.
        let open_files = self.open_files.max(u64::try_from(above).unwrap_or(0) + 16);
        let mut limits =
            vec![sys::limit(sys::Resource::Core, 0), sys::limit(sys::Resource::OpenFiles, open_files)];
        limits.extend(self.file_bytes.map(|bytes| sys::limit(sys::Resource::FileBytes, bytes)));
        limits.extend(self.threads.map(|threads| sys::limit(sys::Resource::Threads, threads)));
        let mut sources = vec![stdin.as_raw_fd(), stdout.as_raw_fd(), stderr.as_raw_fd()];
        sources.extend(passed.iter().map(AsRawFd::as_raw_fd));
        let plan = ChildPlan {
            executable: executable.as_raw_fd(),
            words: &words,
            environment: &environment,
            cgroup: cgroup.as_ref().map(AsRawFd::as_raw_fd),
            sources: &sources,
            limits: &limits,
            uid: self.uid.map(|uid| uid.0),
            ruleset: ruleset.as_ref().map(AsRawFd::as_raw_fd),
            filter: filter.as_ref(),
            any_reader: self.any_reader,
            oom_score: OOM_SCORE.as_bytes(),
            report: report_write.as_raw_fd(),
        };
        let (pid, pidfd) =
            sys::fork_and_exec(&plan).map_err(|source| prepare("make a process for", source))?;
        drop(report_write);
        // Before anything can fail: from here on the child is collected, and killed unless it is handed out. Its
        // identity is read first, while it cannot have been collected.
        let process = ProcessRef::of(pid);
        let collected = pidfd.try_clone();
        let watched = Watched { pidfd: Some(pidfd) };
        collected.and_then(reaper::reap).map_err(|source| prepare("watch over", source))?;
        if let Some(report) =
            read_report(report_read.into()).map_err(|source| prepare("hear from", source))?
        {
            return Err(SpawnError::Child {
                program,
                step: report.step,
                source: io::Error::from_raw_os_error(report.errno),
            });
        }
        let process = process
            .and_then(|found| found.ok_or_else(|| io::Error::other("it ended at once")))
            .map_err(|source| prepare("identify", source))?;
        Ok(Started { process, watched })
    }
}

fn first_free(passed: usize) -> RawFd {
    RawFd::try_from(passed).map_or(RawFd::MAX, |passed| FIRST_PASSED.saturating_add(passed))
}

fn c_strings(words: Vec<OsString>) -> io::Result<Vec<CString>> {
    words.into_iter().map(|word| Ok(CString::new(word.into_vec())?)).collect()
}

fn read_report(mut pipe: File) -> io::Result<Option<Report>> {
    let mut bytes = Vec::new();
    pipe.read_to_end(&mut bytes)?;
    Ok(Report::parse(&bytes))
}

/// Kills its process when it is dropped, unless it was let go.
#[derive(Debug)]
struct Watched {
    pidfd: Option<OwnedFd>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(pidfd) = &self.pidfd {
            // ESRCH: it has ended. Nothing else can be wrong with the signal of a process to its own child.
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
    }
}

/// A program that runs. Killed on drop unless it is let go with [`keep`](Self::keep).
#[derive(Debug)]
pub(crate) struct Started {
    process: ProcessRef,
    watched: Watched,
}

impl Started {
    /// The process.
    pub(crate) fn process(&self) -> &ProcessRef {
        &self.process
    }

    /// Lets it run on. It is still collected when it ends while this process lives.
    pub(crate) fn keep(mut self) -> ProcessRef {
        self.watched.pidfd = None;
        self.process.clone()
    }
}

/// Why a program could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    /// Root gave no user id, or someone else did.
    #[error("{program} must run under a user id of its own exactly when it is started by root")]
    Identity {
        /// The program.
        program: PathBuf,
    },
    /// Something it needs before it is a process.
    #[error("could not {operation} {program}")]
    Prepare {
        /// What was being done.
        operation: &'static str,
        /// The program.
        program: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The kernel did not take the file rules.
    #[error("could not make the file rules of {program}")]
    Landlock {
        /// The program.
        program: PathBuf,
        /// What went wrong.
        #[source]
        source: landlock::RulesetError,
    },
    /// A step in the child, on the way to the program.
    #[error("could not start {program}: its process failed to {step}")]
    Child {
        /// The program.
        program: PathBuf,
        /// Which step.
        step: Step,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

#[cfg(test)]
#[path = "detached_tests.rs"]
mod tests;
