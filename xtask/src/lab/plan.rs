//! What is to be run in the lab, handed over as a file on the disk of the run.

use std::time::Duration;

/// The folder of a run in the lab.
pub(crate) const FOLDER: &str = "/lab";

/// Below the folder: the test programs.
pub(crate) const TESTS: &str = "tests";

/// Below the folder: the plan.
pub(crate) const FILE: &str = "plan";

/// The name of the port that results go out through.
pub(crate) const PORT: &str = "agentiso.lab.results";

/// What is run, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// What each test may take.
    pub(crate) limit: Duration,
    /// Only tests with this in `binary::name`.
    pub(crate) filter: Option<String>,
    /// What tests find in their environment.
    pub(crate) environment: Vec<(String, String)>,
    /// The programs, in the folder `tests`.
    pub(crate) binaries: Vec<String>,
}

impl Plan {
    /// As a file. Nothing in it has a line feed.
    pub(crate) fn text(&self) -> String {
        let mut lines = vec![format!("limit {}", self.limit.as_secs())];
        lines.extend(self.filter.iter().map(|filter| format!("filter {filter}")));
        lines.extend(self.environment.iter().map(|(name, value)| format!("environment {name}={value}")));
        lines.extend(self.binaries.iter().map(|binary| format!("binary {binary}")));
        lines.join("\n") + "\n"
    }

    /// From a file.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut plan = Self::default();
        for line in text.lines() {
            let (kind, rest) = line.split_once(' ')?;
            match kind {
                "limit" => plan.limit = Duration::from_secs(rest.parse().ok()?),
                "filter" => plan.filter = Some(rest.to_owned()),
                "environment" => {
                    let (name, value) = rest.split_once('=')?;
                    plan.environment.push((name.to_owned(), value.to_owned()));
                }
                "binary" => plan.binaries.push(rest.to_owned()),
                _ => return None,
            }
        }
        Some(plan)
    }

    /// Whether a test is to be run.
    pub(crate) fn includes(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_is_read_as_it_was_written() {
        let plan = Plan {
            limit: Duration::from_secs(7),
            filter: Some("a b".to_owned()),
            environment: vec![("A".to_owned(), "b=c d".to_owned()), ("B".to_owned(), String::new())],
            binaries: vec!["lab_x".to_owned()],
        };

        assert_eq!(Plan::parse(&plan.text()), Some(plan.clone()));
        assert!(plan.includes("lab_x::a b c") && !plan.includes("lab_x::ab"));
        assert!(Plan::parse("nothing of ours\n").is_none());
    }
}
