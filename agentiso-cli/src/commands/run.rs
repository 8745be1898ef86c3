//! `run`: a throwaway workspace.

use agentiso_core::{Host, Workspace, types::WorkspaceName};
use clap::Args;
use serde::Serialize;

use super::{
    args::{GuestCommandArgs, MachineArgs},
    exec::{self, Outcome},
};
use crate::{
    context::Context,
    error::{self, CliError},
    signals::Signals,
};

/// Run a command in a new workspace and destroy it; ends with the command's exit status
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    machine: MachineArgs,

    #[command(flatten)]
    options: GuestCommandArgs,

    /// Name of the workspace; one is made up if none is given
    #[arg(long, value_name = "NAME")]
    name: Option<WorkspaceName>,

    /// Keep the workspace, running, when the command has ended; its name is printed on standard error
    #[arg(long)]
    keep: bool,

    /// Program and arguments, without a shell; `--` may come before them
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

/// What a command did, and where.
#[derive(Debug, Serialize)]
struct RunOutcome {
    workspace_id: String,
    name: String,
    kept: bool,
    #[serde(flatten)]
    outcome: Outcome,
}

pub(crate) async fn run(args: RunArgs, context: &Context) -> Result<u8, CliError> {
    let exec_spec = args.options.spec(args.command, context)?;
    let mut machine = args.machine.spec(args.name)?;
    machine.throwaway = !args.keep;
    let mut signals = Signals::new()?;
    let workspace = signals
        .unless(async {
            let host: &Host = context.host().await?;
            let _progress = context.progress(format!("starting a machine from {}", machine.image));
            Ok(host.create(machine).await?)
        })
        .await?;

    let result = signals.unless(async { Ok(workspace.guest().await?) }).await;
    let result = match result {
        Ok(guest) if context.output.json => {
            exec::collect(&guest, exec_spec, &mut signals).await.map(Ended::Collected)
        }
        Ok(guest) => exec::stream(&guest, exec_spec, &mut signals).await.map(Ended::Streamed),
        Err(error) => Err(error),
    };
    if args.keep {
        context.output.say(&format!("agentiso: kept workspace {}", workspace.name()));
    } else {
        remove(&workspace, context, &mut signals).await;
    }
    match result? {
        Ended::Streamed(status) => Ok(status),
        Ended::Collected(outcome) => {
            let status = outcome.exit_code;
            context.output.print_json_only(&RunOutcome {
                workspace_id: workspace.id().to_string(),
                name: workspace.name().to_owned(),
                kept: args.keep,
                outcome,
            })?;
            Ok(status)
        }
    }
}

enum Ended {
    Streamed(u8),
    Collected(Outcome),
}

/// Destroys the workspace. A failure is reported and leaves the command's status alone: the workspace is marked as a
/// throwaway, so that the next command destroys it.
async fn remove(workspace: &Workspace, context: &Context, signals: &mut Signals) {
    let _progress = context.progress(format!("removing {}", workspace.name()));
    match signals.unless(async { Ok(workspace.destroy().await?) }).await {
        Ok(()) | Err(CliError::Interrupted { .. }) => {}
        Err(failure) => error::print(&failure, context.output.json),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: RunArgs,
    }

    #[test]
    fn own_options_come_before_the_command() {
        let line =
            ["run", "--image", "x", "--keep", "--name", "n", "-it", "-e", "A=1", "--", "sh", "-c", "exit 3"];

        let args = Line::try_parse_from(line).unwrap().args;

        assert_eq!(args.command, ["sh", "-c", "exit 3"]);
        assert!(args.keep && args.options.interactive && args.options.tty);
        assert_eq!(args.name.unwrap().as_str(), "n");
    }

    #[test]
    fn options_behind_the_command_are_the_commands() {
        let args = Line::try_parse_from(["run", "ls", "--keep", "-t"]).unwrap().args;

        assert_eq!(args.command, ["ls", "--keep", "-t"]);
        assert!(!args.keep && !args.options.tty);
    }

    #[test]
    fn unknown_option_is_not_taken_for_a_command() {
        assert!(Line::try_parse_from(["run", "--bogus", "ls"]).is_err());
    }
}
