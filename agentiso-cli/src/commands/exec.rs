//! `exec` and `shell`.

use std::time::Duration;

use agentiso_core::channel::client::{ExecSpec, Exit, GuestClient, exit_status};
use clap::Args;
use serde::Serialize;

use super::args::{GuestCommandArgs, SurroundingsArgs};
use crate::{
    context::Context,
    error::CliError,
    session::{self, Collected, Streams},
    signals::Signals,
    stdio, terminal,
};

/// Run a command in a workspace; ends with its exit status
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    options: GuestCommandArgs,

    /// The workspace
    #[arg(value_name = "WORKSPACE")]
    workspace: String,

    /// Program and arguments, without a shell; `--` may come before them
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

/// Open a login shell in a workspace
#[derive(Debug, Args)]
pub(crate) struct ShellArgs {
    /// The workspace
    #[arg(value_name = "WORKSPACE")]
    workspace: String,

    #[command(flatten)]
    surroundings: SurroundingsArgs,
}

/// What a command did, with the keys of the tool exec.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) exit_code: u8,
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) timed_out: bool,
}

/// The shell that `shell` opens: bash where there is one.
const LOGIN_SHELL: &str = "if [ -x /bin/bash ]; then exec /bin/bash -l; fi; exec /bin/sh -l";

impl GuestCommandArgs {
    /// What the guest is asked for.
    pub(super) fn spec(&self, command: Vec<String>, context: &Context) -> Result<ExecSpec, CliError> {
        if self.tty && context.output.json {
            return Err(CliError::request(
                "--json and --tty exclude each other",
                "leave out --tty to have the output as JSON",
            ));
        }
        let mut spec = with_surroundings(ExecSpec::program(command), &self.surroundings);
        spec.stdin = self.interactive;
        spec.timeout = self.timeout.map(Duration::from_secs);
        Ok(if self.tty { with_terminal(spec) } else { spec })
    }
}

fn with_surroundings(mut spec: ExecSpec, surroundings: &SurroundingsArgs) -> ExecSpec {
    spec.command.env = surroundings.environment();
    spec.command.workdir.clone_from(&surroundings.workdir);
    spec
}

fn with_terminal(mut spec: ExecSpec) -> ExecSpec {
    spec.command.env.entry("TERM".to_owned()).or_insert_with(terminal::kind);
    spec.tty(terminal::size())
}

pub(crate) async fn exec(args: ExecArgs, context: &Context) -> Result<u8, CliError> {
    let spec = args.options.spec(args.command, context)?;
    let mut signals = Signals::new()?;
    let guest =
        signals.unless(async { Ok(context.workspace(&args.workspace).await?.guest().await?) }).await?;
    if context.output.json {
        let outcome = collect(&guest, spec, &mut signals).await?;
        context.output.print_json_only(&outcome)?;
        return Ok(outcome.exit_code);
    }
    stream(&guest, spec, &mut signals).await
}

pub(crate) async fn shell(args: ShellArgs, context: &Context) -> Result<u8, CliError> {
    if context.output.json {
        return Err(CliError::request(
            "a shell has no JSON form",
            "`agentiso exec --json WORKSPACE -- COMMAND` has one",
        ));
    }
    let mut spec = with_surroundings(ExecSpec::shell(LOGIN_SHELL), &args.surroundings).stdin();
    // A script on standard input, or output into a file: no terminal then.
    if terminal::is_interactive() {
        spec = with_terminal(spec);
    }
    let mut signals = Signals::new()?;
    let guest =
        signals.unless(async { Ok(context.workspace(&args.workspace).await?.guest().await?) }).await?;
    stream(&guest, spec, &mut signals).await
}

/// Runs a command joined to our standard streams. Returns its exit status.
pub(super) async fn stream(
    guest: &GuestClient,
    spec: ExecSpec,
    signals: &mut Signals,
) -> Result<u8, CliError> {
    let timeout = spec.timeout;
    let exit = session::run(guest, spec, signals, &mut Streams::new()).await?;
    if let (Exit::TimedOut, Some(timeout)) = (exit, timeout) {
        stdio::say(&format!("agentiso: the command was killed after its {} s", timeout.as_secs()));
    }
    Ok(exit_status(exit))
}

/// Runs a command and keeps what it prints.
pub(super) async fn collect(
    guest: &GuestClient,
    spec: ExecSpec,
    signals: &mut Signals,
) -> Result<Outcome, CliError> {
    let mut collected = Collected::default();
    let exit = session::run(guest, spec, signals, &mut collected).await?;
    let (stdout, stderr) = collected.into_text();
    Ok(Outcome { exit_code: exit_status(exit), stdout, stderr, timed_out: exit == Exit::TimedOut })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: ExecArgs,
    }

    fn parse(line: &[&str]) -> ExecArgs {
        Line::try_parse_from([&["exec"], line].concat()).unwrap().args
    }

    #[test]
    fn words_after_the_double_dash_are_the_argument_vector() {
        let args = parse(&["-i", "ws", "--", "grep", "-e", "a b", "--json", "--"]);

        assert_eq!(args.workspace, "ws");
        assert_eq!(args.command, ["grep", "-e", "a b", "--json", "--"]);
        assert!(args.options.interactive && !args.options.tty);
    }

    #[test]
    fn double_dash_may_be_left_out() {
        assert_eq!(parse(&["ws", "ls", "-l", "-t"]).command, ["ls", "-l", "-t"]);
    }

    #[test]
    fn command_is_required() {
        assert!(Line::try_parse_from(["exec", "ws"]).is_err());
        assert!(Line::try_parse_from(["exec", "ws", "--"]).is_err());
    }

    #[test]
    fn options_reach_the_spec() {
        let args = parse(&["-e", "A=1", "-w", "/tmp", "--timeout", "5", "ws", "true"]);

        let spec = args.options.spec(args.command, &Context::new(false)).unwrap();

        assert_eq!(spec.command.argv, ["true"]);
        assert_eq!(spec.command.env["A"], "1");
        assert_eq!(spec.command.workdir.as_deref(), Some("/tmp"));
        assert_eq!(spec.timeout, Some(Duration::from_secs(5)));
        assert!(!spec.stdin && spec.tty.is_none());
    }

    #[test]
    fn terminal_brings_its_kind_unless_one_is_given() {
        let given = parse(&["-t", "-e", "TERM=dumb", "ws", "true"]);
        let spec = given.options.spec(given.command, &Context::new(false)).unwrap();

        assert_eq!(spec.command.env["TERM"], "dumb");
        assert!(spec.tty.is_some());
    }

    #[test]
    fn terminal_and_json_exclude_each_other() {
        let args = parse(&["-t", "ws", "true"]);

        assert!(args.options.spec(args.command, &Context::new(true)).is_err());
    }
}
