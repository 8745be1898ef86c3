//! The test programs that run in the lab.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use crate::build;
use crate::run::{self, Done, Failure};

/// What the names of test programs that need the lab begin with.
pub(crate) const NEED_THE_LAB: &[&str] = &["lab", "netlink"];

/// What the names of those begin with that boot machines, wherever they are.
pub(crate) const WITH_MACHINES: &[&str] = &["vm"];

/// What cargo built.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Binaries {
    pub(crate) tests: Vec<(String, PathBuf)>,
    /// Programs that tests start from where cargo has put them.
    pub(crate) programs: Vec<PathBuf>,
}

impl Binaries {
    /// Builds those whose names begin with one of the prefixes.
    pub(crate) fn build(prefixes: &[&'static str]) -> Done<Self> {
        let mut command = run::cargo();
        command.args([
            "test",
            "--no-run",
            "--workspace",
            "--all-features",
            "--message-format=json-render-diagnostics",
        ]);
        for prefix in prefixes_in_use(prefixes)? {
            command.args(["--test", &format!("{prefix}*")]);
        }
        println!("+ {}", run::shown(&command));
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
        let output = output.map_err(|error| Failure::new(format!("could not run cargo: {error}")))?;
        let messages = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            return Err(Failure::new("the test programs of the lab could not be built"));
        }
        let mut binaries = Self::default();
        for line in messages.lines() {
            binaries.see(line);
        }
        binaries.tests.sort();
        binaries.programs.sort();
        if binaries.tests.is_empty() {
            return Err(Failure::new("cargo has built no test program for the lab"));
        }
        Ok(binaries)
    }

    /// Takes one of cargo's messages.
    fn see(&mut self, line: &str) {
        if build::json_text(line, "reason") != Some("compiler-artifact") {
            return;
        }
        let Some((_, target)) = line.split_once("\"target\":{\"kind\":[\"") else { return };
        let kind = target.split('"').next();
        let (Some(name), Some(executable)) =
            (build::json_text(target, "name"), build::json_text(line, "executable"))
        else {
            return;
        };
        match kind {
            Some("test") => self.tests.push((name.to_owned(), PathBuf::from(executable))),
            Some("bin") => self.programs.push(PathBuf::from(executable)),
            _ => {}
        }
    }
}

/// Those of the prefixes that a test of the workspace has: cargo refuses a pattern that nothing matches.
fn prefixes_in_use(prefixes: &[&'static str]) -> Done<Vec<&'static str>> {
    let repository = run::repository()?;
    let crates = fs::read_dir(&repository).map_err(run::at("read", &repository))?.flatten();
    let tests: Vec<String> = crates
        .filter_map(|entry| fs::read_dir(entry.path().join("tests")).ok())
        .flat_map(|tests| tests.flatten())
        .filter(|test| is_test(&test.path()))
        .filter_map(|test| test.file_name().into_string().ok())
        .collect();
    let in_use = |prefix: &&str| tests.iter().any(|test| test.starts_with(*prefix));
    Ok(prefixes.iter().copied().filter(in_use).collect())
}

fn is_test(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "rs") || path.join("main.rs").is_file()
}

#[cfg(test)]
mod tests_of_binaries {
    use super::*;

    #[test]
    fn programs_are_found_in_cargos_messages() {
        let mut binaries = Binaries::default();
        for line in [
            r#"{"reason":"compiler-artifact","package_id":"path+file:///x","target":{"kind":["test"],"crate_types":["bin"],"name":"lab_kvm","src_path":"/x/lab_kvm.rs"},"profile":{},"filenames":["/t/lab_kvm-1"],"executable":"/t/lab_kvm-1","fresh":true}"#,
            r#"{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"agentiso-shim"},"executable":"/t/agentiso-shim","fresh":true}"#,
            r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"agentiso_core"},"executable":null,"fresh":true}"#,
            r#"{"reason":"build-finished","success":true}"#,
        ] {
            binaries.see(line);
        }

        assert_eq!(binaries.tests, [("lab_kvm".to_owned(), PathBuf::from("/t/lab_kvm-1"))]);
        assert_eq!(binaries.programs, [PathBuf::from("/t/agentiso-shim")]);
    }
}
