//! The command line as a whole. Each command's own arguments are beside its code in `commands/`.

use clap::{Parser, Subcommand};

use crate::commands;

const AFTER_HELP: &str = "\
Wherever a WORKSPACE is asked for, its name, its UUID or a unique beginning of the UUID (8 characters or more) serves.

Exit status: run, exec and shell end with the status of their command; 124 when its time was over, 125 when agentiso
itself failed, 126 when the command could not be started, 127 when it was not found, 128+N when signal N ended it.
diff ends with 0 without differences, 1 with, 125 when it failed.
Every other command ends with 0, with 1 when it failed, or with 2 when its arguments were wrong.

Environment: AGENTISO_HOME is the state folder (otherwise /var/lib/agentiso for root, agentiso in the XDG data folder
for others). AGENTISO_LOG is what to log on standard error (warn, debug, agentiso_core::storage=trace, ...).";

/// fork() for machines: real Linux machines to run anything in, snapshot and fork.
#[derive(Debug, Parser)]
#[command(name = "agentiso", disable_version_flag = true, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    /// Print the result as JSON on standard output, and errors as JSON on standard error
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Print the version, the protocol generation and the QEMU found
    #[arg(short = 'V', long)]
    pub(crate) version: bool,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Init(commands::init::InitArgs),
    Run(commands::run::RunArgs),
    Create(commands::create::CreateArgs),
    Ls(commands::list::LsArgs),
    Info(commands::list::InfoArgs),
    Start(commands::lifecycle::StartArgs),
    Stop(commands::lifecycle::StopArgs),
    Pause(commands::lifecycle::PauseArgs),
    Resume(commands::lifecycle::ResumeArgs),
    Rm(commands::lifecycle::RmArgs),
    Exec(commands::exec::ExecArgs),
    Shell(commands::exec::ShellArgs),
    Cp(commands::copy::CpArgs),
    Logs(commands::logs::LogsArgs),
    Snapshot(commands::snapshot::SnapshotArgs),
    Restore(commands::snapshot::RestoreArgs),
    Fork(commands::fork::ForkArgs),
    Tree(commands::tree::TreeArgs),
    Diff(commands::diff::DiffArgs),
    Promote(commands::promote::PromoteArgs),
    Share(commands::share::ShareArgs),
    Port(commands::port::PortArgs),
    Policy(commands::policy::PolicyArgs),
    Image(commands::image::ImageArgs),
    Prune(commands::prune::PruneArgs),
    Doctor(commands::doctor::DoctorArgs),
    Mcp(commands::mcp::McpArgs),
    Completions(commands::completions::CompletionsArgs),
    Man(commands::man::ManArgs),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_argument_has_a_help_text() {
        fn check(command: &clap::Command, missing: &mut Vec<String>) {
            if command.get_about().is_none() {
                missing.push(command.get_name().to_owned());
            }
            missing.extend(
                command
                    .get_arguments()
                    .filter(|argument| argument.get_help().is_none())
                    .map(|argument| format!("{} {}", command.get_name(), argument.get_id())),
            );
            command.get_subcommands().for_each(|sub| check(sub, missing));
        }
        let mut missing = Vec::new();
        check(&Cli::command(), &mut missing);
        assert_eq!(missing, Vec::<String>::new());
    }

    #[test]
    fn json_is_accepted_before_and_after_the_command() {
        for line in [["agentiso", "--json", "ls"], ["agentiso", "ls", "--json"]] {
            assert!(Cli::try_parse_from(line).unwrap().json, "{line:?}");
        }
    }
}
