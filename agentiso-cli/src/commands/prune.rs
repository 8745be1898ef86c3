//! `prune`.

use agentiso_core::{PruneReport, Pruned};
use clap::Args;

use super::confirm::{can_ask, confirmed};
use crate::{context::Context, error::CliError, output, stdio};

/// Remove images that no workspace uses, and throwaway workspaces whose owner is gone
#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Only show what would be removed
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub(crate) async fn prune(args: PruneArgs, context: &Context) -> Result<u8, CliError> {
    let host = context.host().await?;
    if !args.dry_run && !args.force {
        if !can_ask(context) {
            return Err(CliError::request(
                "there is nobody to ask whether to remove",
                "see what would be removed with --dry-run, or remove it without asking with --force",
            ));
        }
        let planned = host.prune(true).await?;
        stdio::write_out(text(&planned).as_bytes()).map_err(CliError::stdout)?;
        if (planned.images.is_empty() && planned.workspaces.is_empty())
            || !confirmed("Remove all this?").await?
        {
            return Ok(0);
        }
    }
    let report = host.prune(args.dry_run).await?;
    context.output.print(&report, text)?;
    Ok(0)
}

fn text(report: &PruneReport) -> String {
    let line =
        |kind: &str, pruned: &Pruned| format!("{kind} {} ({})\n", pruned.name, output::bytes(pruned.bytes));
    let mut text = String::new();
    text.extend(report.workspaces.iter().map(|pruned| line("workspace", pruned)));
    text.extend(report.images.iter().map(|pruned| line("image", pruned)));
    let verb = if report.done { "removed" } else { "to remove" };
    text.push_str(&format!("{verb}: {}\n", output::bytes(report.total_bytes)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_says_what_and_how_much() {
        let report = PruneReport {
            images: vec![Pruned { name: "old".into(), bytes: 1024 }],
            workspaces: vec![Pruned { name: "w".into(), bytes: 512 }],
            total_bytes: 1536,
            done: true,
        };

        assert_eq!(text(&report), "workspace w (512 B)\nimage old (1.00 KiB)\nremoved: 1.50 KiB\n");
    }
}
