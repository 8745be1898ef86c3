//! `policy`.

use agentiso_core::{
    PolicyChange,
    network::NetworkPolicy,
    types::{GroupName, InvalidName},
};
use clap::{Args, ValueEnum};

use crate::{context::Context, error::CliError};

/// Show or change what a workspace may reach; what is not named stays as it is
#[derive(Debug, Args)]
pub(crate) struct PolicyArgs {
    /// The workspace
    #[arg(value_name = "WORKSPACE")]
    workspace: String,

    /// Whether the machine reaches the internet
    #[arg(long, value_name = "SWITCH", value_enum)]
    internet: Option<Switch>,

    /// Whether the machine reaches other workspaces
    #[arg(long, value_name = "SWITCH", value_enum)]
    inter_vm: Option<Switch>,

    /// With internet: the only ports reached, with commas between them, or `all`
    #[arg(long, value_name = "PORTS", value_parser = ports)]
    ports: Option<Ports>,

    /// Be in these groups, and in no others: the workspaces of a group reach each other
    #[arg(long = "group", value_name = "NAME", value_delimiter = ',', value_parser = group)]
    groups: Vec<GroupName>,

    /// Be in no group
    #[arg(long, conflicts_with = "groups")]
    no_group: bool,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    /// Allowed
    On,
    /// Not allowed
    Off,
}

/// The only ports reached; all if empty.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ports(Vec<u16>);

fn ports(word: &str) -> Result<Ports, String> {
    if word == "all" {
        return Ok(Ports(Vec::new()));
    }
    word.split(',')
        .map(|port| match port.parse() {
            Ok(0) | Err(_) => Err(format!("{port:?} is not a port: 1 to 65535")),
            Ok(port) => Ok(port),
        })
        .collect::<Result<_, _>>()
        .map(Ports)
}

fn group(word: &str) -> Result<GroupName, String> {
    word.parse().map_err(|error: InvalidName| error.to_string())
}

impl PolicyArgs {
    fn change(&self) -> PolicyChange {
        PolicyChange {
            allow_internet: self.internet.map(|switch| switch == Switch::On),
            allow_inter_vm: self.inter_vm.map(|switch| switch == Switch::On),
            allowed_ports: self.ports.as_ref().map(|Ports(ports)| ports.clone()),
            groups: (self.no_group || !self.groups.is_empty()).then(|| self.groups.iter().cloned().collect()),
        }
    }
}

pub(crate) async fn policy(args: PolicyArgs, context: &Context) -> Result<u8, CliError> {
    let workspace = context.workspace(&args.workspace).await?;
    let change = args.change();
    let policy = if change == PolicyChange::default() {
        workspace.info().await?.network
    } else {
        workspace.set_policy(change).await?
    };
    context.output.print(&policy, text)?;
    Ok(0)
}

/// A line for what is always said, and one for each exception.
fn text(policy: &NetworkPolicy) -> String {
    let on_off = |on| if on { "on" } else { "off" };
    let mut text = format!("internet {}\n", on_off(policy.allow_internet));
    if !policy.allowed_ports.is_empty() {
        let ports: Vec<String> = policy.allowed_ports.iter().map(u16::to_string).collect();
        text.push_str(&format!("ports {}\n", ports.join(",")));
    }
    if policy.allow_inter_vm {
        text.push_str("inter-vm on\n");
    }
    if !policy.groups.is_empty() {
        text.push_str(&format!("groups {}\n", group_names(policy).join(",")));
    }
    text
}

fn group_names(policy: &NetworkPolicy) -> Vec<&str> {
    policy.groups.iter().map(GroupName::as_str).collect()
}

/// Which other workspaces are reached: `not reachable`, `reachable`, or the groups whose workspaces are.
pub(super) fn others_text(policy: &NetworkPolicy) -> String {
    let groups = group_names(policy).join(", ");
    match (policy.allow_inter_vm, groups.is_empty()) {
        (false, true) => "not reachable".to_owned(),
        (true, true) => "reachable".to_owned(),
        (false, false) => format!("reachable in {groups}"),
        (true, false) => format!("reachable, and in {groups}"),
    }
}

/// `no`, `yes`, or `yes, ports 80, 443`.
pub(super) fn internet_text(policy: &NetworkPolicy) -> String {
    let ports: Vec<String> = policy.allowed_ports.iter().map(u16::to_string).collect();
    match (policy.allow_internet, ports.is_empty()) {
        (false, _) => "no".to_owned(),
        (true, true) => "yes".to_owned(),
        (true, false) => format!("yes, ports {}", ports.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: PolicyArgs,
    }

    fn change(line: &[&str]) -> PolicyChange {
        Line::try_parse_from([&["policy", "ws"], line].concat()).unwrap().args.change()
    }

    #[test]
    fn what_is_not_named_stays() {
        assert_eq!(change(&[]), PolicyChange::default());
        assert_eq!(
            change(&["--internet", "off"]),
            PolicyChange { allow_internet: Some(false), ..PolicyChange::default() }
        );
    }

    #[test]
    fn groups_are_named_one_by_one_or_as_a_list_or_left_altogether() {
        let named = |names: &[&str]| Some(names.iter().map(|name| name.parse().unwrap()).collect());
        assert_eq!(change(&["--group", "red", "--group", "blue"]).groups, named(&["blue", "red"]));
        assert_eq!(change(&["--group", "red,blue"]).groups, named(&["blue", "red"]));
        assert_eq!(change(&["--no-group"]).groups, named(&[]));
        for bad in
            [&["--group", "a b"][..], &["--group", ""], &["--group", ".."], &["--group", "a", "--no-group"]]
        {
            assert!(Line::try_parse_from([&["policy", "ws"], bad].concat()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn other_workspaces_are_told_by_the_groups_that_they_are_in() {
        let of = |allow_inter_vm, groups: &[&str]| {
            let groups = groups.iter().map(|name| name.parse().unwrap()).collect();
            others_text(&NetworkPolicy { allow_inter_vm, groups, ..NetworkPolicy::default() })
        };
        assert_eq!(of(false, &[]), "not reachable");
        assert_eq!(of(true, &[]), "reachable");
        assert_eq!(of(false, &["red", "blue"]), "reachable in blue, red");
        assert_eq!(of(true, &["red"]), "reachable, and in red");
    }

    #[test]
    fn policy_is_shown_in_the_words_that_change_it() {
        let open = NetworkPolicy {
            allow_internet: true,
            allow_inter_vm: true,
            allowed_ports: vec![80, 443],
            groups: ["red", "blue"].map(|name| name.parse().unwrap()).into(),
        };

        assert_eq!(text(&NetworkPolicy::default()), "internet off\n");
        assert_eq!(text(&open), "internet on\nports 80,443\ninter-vm on\ngroups blue,red\n");
    }

    #[test]
    fn ports_are_a_list_or_all() {
        assert_eq!(change(&["--ports", "443,80"]).allowed_ports, Some(vec![443, 80]));
        assert_eq!(change(&["--ports", "all"]).allowed_ports, Some(vec![]));
        for bad in ["", "0", "80,", "http", "65536"] {
            assert!(ports(bad).is_err(), "{bad:?}");
        }
    }
}
