//! `fork`.

use agentiso_core::{
    ForkReport, ForkSpec, MAX_FORKS,
    types::{SnapshotName, WorkspaceName},
};
use clap::Args;

use crate::{context::Context, error::CliError, stdio};

/// Make running copies of a workspace, memory and processes included if it runs; prints their names
#[derive(Debug, Args)]
pub(crate) struct ForkArgs {
    /// The workspace
    #[arg(value_name = "WORKSPACE")]
    workspace: String,

    /// Fork from this snapshot; without it from the workspace as it is
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Option<SnapshotName>,

    /// Copy the disk alone: the forks boot
    #[arg(long)]
    disk_only: bool,

    /// How many, 1 to 20; they are named PREFIX-1, PREFIX-2, ...
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_FORKS)))]
    count: Option<u32>,

    /// With --count the prefix of their names (the workspace's name otherwise), without it the name of the fork
    #[arg(long, value_name = "PREFIX")]
    name: Option<WorkspaceName>,
}

impl ForkArgs {
    fn spec(self) -> ForkSpec {
        let (name, prefix) = if self.count.is_some() { (None, self.name) } else { (self.name, None) };
        ForkSpec {
            snapshot: self.snapshot,
            disk_only: self.disk_only,
            count: self.count.unwrap_or(1),
            name,
            prefix,
        }
    }
}

pub(crate) async fn fork(args: ForkArgs, context: &Context) -> Result<u8, CliError> {
    let workspace = context.workspace(&args.workspace).await?;
    let spec = args.spec();
    let total = spec.count;
    let progress = context.progress(format!("forking {}", workspace.name()));
    let report = workspace.fork(spec).await?;
    drop(progress);
    if !context.output.json {
        for failure in &report.failures {
            stdio::say(&format!("agentiso: {} could not be made: {}", failure.name, failure.error));
        }
    }
    context.output.print(&report, names)?;
    match report.failure_count {
        0 => Ok(0),
        failed => Err(CliError::Partly { failed, total: usize::try_from(total).unwrap_or(usize::MAX) }),
    }
}

fn names(report: &ForkReport) -> String {
    report.workers.iter().map(|worker| format!("{}\n", worker.name)).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: ForkArgs,
    }

    fn spec(line: &[&str]) -> ForkSpec {
        Line::try_parse_from([&["fork", "ws"], line].concat()).unwrap().args.spec()
    }

    #[test]
    fn name_without_a_count_is_the_name_of_the_fork() {
        let spec = spec(&["--name", "x"]);

        assert_eq!((spec.count, spec.name.unwrap().as_str(), spec.prefix), (1, "x", None));
    }

    #[test]
    fn name_with_a_count_is_a_prefix() {
        let spec = spec(&["--name", "x", "--count", "1", "--snapshot", "s"]);

        assert_eq!((spec.count, spec.name, spec.prefix.unwrap().as_str()), (1, None, "x"));
        assert_eq!(spec.snapshot.unwrap().as_str(), "s");
    }

    #[test]
    fn count_is_bounded() {
        for (count, valid) in [("0", false), ("1", true), ("20", true), ("21", false)] {
            assert_eq!(Line::try_parse_from(["fork", "ws", "--count", count]).is_ok(), valid, "{count}");
        }
    }
}
