//! One file per group of commands: its arguments, and what they become.

mod args;
pub(crate) mod completions;
mod confirm;
pub(crate) mod copy;
pub(crate) mod create;
pub(crate) mod diff;
pub(crate) mod doctor;
pub(crate) mod exec;
pub(crate) mod fork;
pub(crate) mod image;
pub(crate) mod init;
pub(crate) mod lifecycle;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod man;
pub(crate) mod mcp;
pub(crate) mod policy;
pub(crate) mod port;
pub(crate) mod promote;
pub(crate) mod prune;
pub(crate) mod run;
pub(crate) mod share;
pub(crate) mod snapshot;
pub(crate) mod tree;

use crate::{cli::Command, context::Context, error::CliError, signals::interruptible, usage, version};

/// Does what was asked for. Returns the exit status.
pub(crate) async fn dispatch(
    command: Option<Command>,
    version: bool,
    context: &Context,
) -> Result<u8, CliError> {
    if version {
        return interruptible(version::print(context)).await;
    }
    let Some(command) = command else { return usage::no_command(context) };
    match command {
        // These three give signals to the guest's command.
        Command::Run(args) => run::run(args, context).await,
        Command::Exec(args) => exec::exec(args, context).await,
        Command::Shell(args) => exec::shell(args, context).await,
        Command::Init(args) => interruptible(init::init(args, context)).await,
        Command::Create(args) => interruptible(create::create(args, context)).await,
        Command::Ls(args) => interruptible(list::ls(args, context)).await,
        Command::Info(args) => interruptible(list::info(args, context)).await,
        Command::Start(args) => interruptible(lifecycle::start(args, context)).await,
        Command::Stop(args) => interruptible(lifecycle::stop(args, context)).await,
        Command::Pause(args) => interruptible(lifecycle::pause(args, context)).await,
        Command::Resume(args) => interruptible(lifecycle::resume(args, context)).await,
        Command::Rm(args) => interruptible(lifecycle::rm(args, context)).await,
        Command::Cp(args) => interruptible(copy::cp(args, context)).await,
        Command::Logs(args) => interruptible(logs::logs(args, context)).await,
        Command::Snapshot(args) => interruptible(snapshot::snapshot(args, context)).await,
        Command::Restore(args) => interruptible(snapshot::restore(args, context)).await,
        Command::Fork(args) => interruptible(fork::fork(args, context)).await,
        Command::Tree(args) => interruptible(tree::tree(args, context)).await,
        Command::Diff(args) => interruptible(diff::diff(args, context)).await,
        Command::Promote(args) => interruptible(promote::promote(args, context)).await,
        Command::Share(args) => interruptible(share::share(args, context)).await,
        Command::Port(args) => interruptible(port::port(args, context)).await,
        Command::Policy(args) => interruptible(policy::policy(args, context)).await,
        Command::Image(args) => interruptible(image::image(args, context)).await,
        Command::Prune(args) => interruptible(prune::prune(args, context)).await,
        Command::Doctor(args) => interruptible(doctor::doctor(args, context)).await,
        Command::Mcp(args) => interruptible(mcp::mcp(args, context)).await,
        Command::Completions(args) => completions::completions(&args),
        Command::Man(args) => man::man(&args),
    }
}
