//! The official clients of the Model Context Protocol, from their registries, for tests of the server. They are installed
//! into the target folder; a host without Python, Node.js or a way to the registries does without.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::run::{self, Done};
use crate::stages::{Counts, Outcome};

/// A client, and how it is come by.
struct Client {
    /// Where tests look for it.
    variable: &'static str,
    /// The file that says which version.
    wanted: &'static str,
    /// What `variable` names, in the folder that it is installed into.
    place: &'static str,
    /// Installs what a file names into a folder.
    install: fn(&Path, &Path) -> Done,
}

const PYTHON: Client = Client {
    variable: "AGENTISO_MCP_PYTHON",
    wanted: "requirements.txt",
    place: "environment/bin/python",
    install: install_python,
};

const NODE: Client = Client {
    variable: "AGENTISO_MCP_NODE_MODULES",
    wanted: "package.json",
    place: "node_modules",
    install: install_node,
};

/// The clients that are there.
#[derive(Default)]
pub(crate) struct Clients {
    found: Vec<(&'static str, PathBuf)>,
}

impl Clients {
    /// Installs what is not there yet. One that cannot be is passed over with the reason: the tests that use it say so, too.
    pub(crate) fn prepare(&mut self, work: &Path) -> Outcome {
        let mut skipped = Vec::new();
        for client in [PYTHON, NODE] {
            if std::env::var_os(client.variable).is_some() {
                println!("{} is set: what it names is used", client.variable);
                continue;
            }
            match client.installed(work) {
                Ok(path) => self.found.push((client.variable, path)),
                Err(failure) => {
                    println!("passed over: {failure}");
                    skipped.push(failure.to_string());
                }
            }
        }
        match (self.found.len(), skipped.is_empty()) {
            (0, false) => Outcome::Skipped(skipped.join("; ")),
            (found, _) => {
                Outcome::Passed(Counts { passed: found, skipped: skipped.len(), ..Counts::default() })
            }
        }
    }

    /// Tells tests where they are.
    pub(crate) fn show_to(&self, command: &mut Command) {
        command.envs(self.found.iter().map(|(variable, path)| (variable, path)));
    }
}

impl Client {
    /// Installs it into a folder of its own, unless that was done already. Returns what tests are told.
    fn installed(&self, work: &Path) -> Done<PathBuf> {
        let wanted = run::repository()?.join("agentiso-mcp/tests/clients").join(self.wanted);
        let content = fs::read_to_string(&wanted).map_err(run::at("read", &wanted))?;
        let folder = work.join("clients").join(self.wanted);
        // It says what is installed, and comes last.
        let marker = folder.join("installed");
        if fs::read_to_string(&marker).is_ok_and(|present| present == content) {
            println!("what {} names is installed", self.wanted);
            return Ok(folder.join(self.place));
        }
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(run::at("remove", &folder))?;
        }
        fs::create_dir_all(&folder).map_err(run::at("create", &folder))?;
        (self.install)(&folder, &wanted)?;
        fs::write(&marker, content).map_err(run::at("write", &marker))?;
        Ok(folder.join(self.place))
    }
}

fn install_python(folder: &Path, wanted: &Path) -> Done {
    run::run(Command::new("python3").args(["-m", "venv"]).arg(folder.join("environment")))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1", "-r"];
    run::run(Command::new(folder.join(PYTHON.place)).args(pip).arg(wanted))
}

fn install_node(folder: &Path, wanted: &Path) -> Done {
    run::run(Command::new("node").arg("--version"))?;
    let package = folder.join(NODE.wanted);
    fs::copy(wanted, &package).map_err(run::at("write", &package))?;
    let arguments =
        ["install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"];
    run::run(Command::new("npm").args(arguments).args(["--fetch-retries", "1"]).current_dir(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installs(_: &Path, _: &Path) -> Done {
        Ok(())
    }

    fn is_not_asked(_: &Path, _: &Path) -> Done {
        panic!("installed twice")
    }

    fn fails(_: &Path, _: &Path) -> Done {
        Err(run::Failure::new("no way to the registry"))
    }

    #[test]
    fn client_is_installed_once_and_again_when_another_is_wanted() {
        let work = std::env::temp_dir().join(format!("xtask-clients-{}", std::process::id()));
        let once = |install| Client { install, ..PYTHON }.installed(&work);
        let failed = once(fails).is_err();
        let (first, second) = (once(installs).unwrap(), once(is_not_asked).unwrap());
        let folder = work.join("clients").join(PYTHON.wanted);
        fs::write(folder.join("installed"), "mcp==0\n").unwrap();
        let failed_for_another = once(fails).is_err();
        fs::remove_dir_all(&work).unwrap();

        assert!(failed && failed_for_another);
        assert_eq!((first, second), (folder.join(PYTHON.place), folder.join(PYTHON.place)));
    }
}
