//! `man`.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_mangen::Man;

use crate::{cli::Cli, error::CliError, stdio};

/// Print the man page, or write those of all commands
#[derive(Debug, Args)]
#[command(after_help = "For example: agentiso man | man -l -")]
pub(crate) struct ManArgs {
    /// Write agentiso.1 and a page for each command into this folder, which exists
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(crate) fn man(args: &ManArgs) -> Result<u8, CliError> {
    let command = Cli::command();
    match &args.dir {
        Some(dir) => clap_mangen::generate_to(command, dir)
            .map_err(|error| CliError::local(format!("could not write to {}", dir.display()), error))?,
        None => {
            let mut page = Vec::new();
            Man::new(command)
                .render(&mut page)
                .map_err(|error| CliError::local("could not make the man page", error))?;
            stdio::write_out(&page).map_err(CliError::stdout)?;
        }
    }
    Ok(0)
}
