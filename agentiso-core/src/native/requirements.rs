//! What the configuration wants to hold.

use crate::config::{Config, Requirement};
use crate::workspace::Isolation;

/// Each requirement that does not hold, why, and what to do about it.
pub(crate) fn unmet(config: &Config, isolation: &Isolation, limited: bool, by_root: bool) -> Vec<String> {
    let problem = |requirement: &Requirement| match requirement {
        Requirement::Kvm if isolation.level != "vm-kvm" => {
            Some("guests are not run by the CPU (`agentiso doctor` says why)".to_owned())
        }
        Requirement::Limits if !limited => {
            Some("what machines use of the host is not limited (`agentiso doctor` says why)".to_owned())
        }
        Requirement::OwnUser if !by_root => {
            Some("machines run under the user id that starts them: run agentiso as root".to_owned())
        }
        Requirement::NothingOpen if !isolation.open.is_empty() => {
            Some(format!("this is open: {}", isolation.open.join(", ")))
        }
        _ => None,
    };
    let shown = |requirement| problem(requirement).map(|problem| format!("{requirement}, but {problem}"));
    config.require.iter().filter_map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn isolation(level: &str, open: &[&str]) -> Isolation {
        Isolation {
            level: level.to_owned(),
            hypervisor: String::new(),
            storage: String::new(),
            network: String::new(),
            channel: String::new(),
            confinement: Vec::new(),
            open: open.iter().map(|line| (*line).to_owned()).collect(),
            backends: Vec::new(),
        }
    }

    #[test]
    fn each_requirement_is_met_or_named() {
        let all = [Requirement::Kvm, Requirement::Limits, Requirement::OwnUser, Requirement::NothingOpen];
        for requirement in all {
            let config = Config::at("/state").require(requirement);

            let good = unmet(&config, &isolation("vm-kvm", &[]), true, true);
            let bad = unmet(&config, &isolation("vm-tcg", &["a door"]), false, false);

            assert_eq!(good, [""; 0]);
            assert_eq!(bad.len(), 1);
            assert!(bad[0].starts_with(&requirement.to_string()), "{bad:?}");
        }
    }

    #[test]
    fn nothing_required_is_met_anywhere() {
        assert_eq!(unmet(&Config::at("/state"), &isolation("vm-tcg", &["a door"]), false, false), [""; 0]);
    }
}
