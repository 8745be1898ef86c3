//! Running the built `agentiso` as people do.
#![allow(dead_code, reason = "each test binary uses part of it")]

pub(crate) mod vm;
pub(crate) mod window;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

/// What cargo built along with these tests.
const BUILT: &str = env!("CARGO_BIN_EXE_agentiso");

/// The program, with a state folder.
pub(crate) struct Cli {
    program: PathBuf,
    home: PathBuf,
    /// Removed with the value.
    _folder: Option<tempfile::TempDir>,
}

impl Cli {
    /// With a state folder of its own, which is not there yet.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { program: BUILT.into(), home: folder.path().join("state"), _folder: Some(folder) }
    }

    /// With this state folder.
    pub(crate) fn at(home: impl Into<PathBuf>) -> Self {
        Self { program: BUILT.into(), home: home.into(), _folder: None }
    }

    /// The same, as this program.
    pub(crate) fn with_program(self, program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), ..self }
    }

    pub(crate) fn program(&self) -> &Path {
        &self.program
    }

    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// The program with these arguments, not yet started: nothing on standard input, output kept.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env("AGENTISO_HOME", &self.home)
            .env_remove("AGENTISO_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ended {
        Ended::from(self.command(arguments).output().unwrap())
    }

    /// Runs it and expects success. Returns its standard output.
    #[track_caller]
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments);
        assert_eq!(ended.status, 0, "{arguments:?}: {ended:?}");
        ended.stdout
    }
}

/// How it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ended {
    /// The error on standard error, which is nothing else.
    #[track_caller]
    pub(crate) fn error(&self) -> Value {
        let value: Value = serde_json::from_str(&self.stderr).unwrap_or_else(|_| panic!("{self:?}"));
        let error = value["error"].clone();
        let keys: Vec<_> = error.as_object().unwrap().keys().cloned().collect();
        assert_eq!(keys, ["code", "message", "next_step"], "{self:?}");
        error
    }
}
