//! `completions`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::{cli::Cli, error::CliError, stdio};

/// Print the completions of a shell
#[derive(Debug, Args)]
#[command(after_help = "For example: agentiso completions bash > /etc/bash_completion.d/agentiso")]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    shell: Shell,
}

pub(crate) fn completions(args: &CompletionsArgs) -> Result<u8, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "agentiso", &mut script);
    stdio::write_out(&script).map_err(CliError::stdout)?;
    Ok(0)
}
