//! `promote`.

use agentiso_core::{PromoteReport, PromoteSpec, TreeNode, Workspace};
use clap::Args;

use super::confirm::{can_ask, confirmed};
use crate::{context::Context, error::CliError, stdio};

/// Give a fork the name, forwards and owner of the workspace it was forked from
///
/// The old parent is stopped and kept as NAME-old (NAME-old-2, ... if that is taken). Whatever happens meanwhile, exactly
/// one workspace has the name.
#[derive(Debug, Args)]
pub(crate) struct PromoteArgs {
    /// The fork
    #[arg(value_name = "CHILD")]
    child: String,

    /// Destroy the old parent and its other forks instead of keeping them; asks before it does
    #[arg(long)]
    drop: bool,

    /// Do not ask
    #[arg(short, long, requires = "drop")]
    yes: bool,
}

pub(crate) async fn promote(args: PromoteArgs, context: &Context) -> Result<u8, CliError> {
    let child = context.workspace(&args.child).await?;
    if args.drop && !args.yes && !is_wanted(&child, context).await? {
        return Ok(0);
    }
    let progress = context.progress(format!("promoting {}", child.name()));
    let report = child.promote(PromoteSpec { drop_others: args.drop }).await?;
    drop(progress);
    for warning in &report.warnings {
        context.output.say(&format!("agentiso: {warning}"));
    }
    for failure in &report.failures {
        context.output.say(&format!("agentiso: {} is not removed yet: {}", failure.name, failure.error));
    }
    context.output.print(&report, text)?;
    match report.failures.len() {
        0 => Ok(0),
        failed => Err(CliError::Partly { failed, total: failed + report.dropped.len() }),
    }
}

/// Shows what would be destroyed and asks.
async fn is_wanted(child: &Workspace, context: &Context) -> Result<bool, CliError> {
    if !can_ask(context) {
        return Err(CliError::request(
            "there is nobody to ask whether to destroy the old parent and its other forks",
            "see them with `agentiso tree`, and destroy them without asking with --yes",
        ));
    }
    let Some(origin) = child.info().await?.forked_from else {
        // The library says what is wrong.
        return Ok(true);
    };
    let tree = context.host().await?.tree(Some(&origin.workspace_id.to_string())).await;
    let Ok([parent]) = tree.as_deref() else { return Ok(true) };
    stdio::say(&format!("to be destroyed: {}", doomed(parent, child.name()).join(", ")));
    confirmed("Destroy all this?").await
}

/// The parent and its forks but one.
fn doomed<'a>(parent: &'a TreeNode, child: &str) -> Vec<&'a str> {
    let others = parent.forks.iter().map(|fork| fork.name.as_str()).filter(|name| *name != child);
    [parent.name.as_str()].into_iter().chain(others).collect()
}

fn text(report: &PromoteReport) -> String {
    let mut text = format!("{} is now {}\n", report.old_name, report.promoted.name);
    if let Some(parent) = &report.parent {
        text.push_str(&format!(
            "the old {} is now {} ({})\n",
            report.promoted.name, parent.name, parent.state
        ));
    }
    text.extend(report.dropped.iter().map(|name| format!("destroyed {name}\n")));
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: PromoteArgs,
    }

    #[test]
    fn yes_answers_only_the_question_of_drop() {
        assert!(Line::try_parse_from(["promote", "w", "--yes"]).is_err());
        let args = Line::try_parse_from(["promote", "w", "--drop", "-y"]).unwrap().args;
        assert!(args.drop && args.yes);
    }

    #[test]
    fn report_says_who_is_who() {
        let id = "00000000-0000-0000-0000-000000000000";
        let mut report = json!({
            "promoted": {"workspace_id": id, "name": "base", "state": "running"},
            "old_name": "base-3",
            "parent": {"workspace_id": id, "name": "base-old", "state": "stopped"},
            "dropped": [], "failures": [], "port_forwards": [], "warnings": [],
        });
        let kept: PromoteReport = serde_json::from_value(report.clone()).unwrap();
        report["parent"] = json!(null);
        report["dropped"] = json!(["base-1", "base-old"]);
        let dropped: PromoteReport = serde_json::from_value(report).unwrap();

        assert_eq!(text(&kept), "base-3 is now base\nthe old base is now base-old (stopped)\n");
        assert_eq!(text(&dropped), "base-3 is now base\ndestroyed base-1\ndestroyed base-old\n");
    }
}
