//! The official clients of the Model Context Protocol, from their registries, for tests of the server. They are installed
//! into the target folder; a host without Python, Node.js or a way to the registries does without.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::run::{self, Done};
use crate::stages::{Counts, Outcome};

/// What says which versions.
const REQUIREMENTS: &str = "requirements.txt";
const PACKAGE: &str = "package.json";

/// Where tests look for a Python with the client.
const PYTHON_VARIABLE: &str = "AGENTISO_MCP_PYTHON";

/// Where tests look for the packages of Node.js.
const NODE_VARIABLE: &str = "AGENTISO_MCP_NODE_MODULES";

/// The clients that are there.
#[derive(Default)]
pub(crate) struct Clients {
    found: Vec<(&'static str, PathBuf)>,
}

impl Clients {
    /// Installs what is not there yet. One that cannot be is passed over with the reason: the tests that use it say so, too.
    pub(crate) fn prepare(&mut self, work: &Path) -> Outcome {
        let mut skipped = Vec::new();
        for (variable, name, install) in [
            (PYTHON_VARIABLE, REQUIREMENTS, install_python as fn(&Path, &Path) -> Done<PathBuf>),
            (NODE_VARIABLE, PACKAGE, install_node),
        ] {
            if std::env::var_os(variable).is_some() {
                println!("{variable} is set: what it names is used");
                continue;
            }
            match install_once(work, name, install) {
                Ok(path) => self.found.push((variable, path)),
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

/// Installs what a file names into a folder of its own, unless that was done already.
fn install_once(work: &Path, name: &str, install: fn(&Path, &Path) -> Done<PathBuf>) -> Done<PathBuf> {
    let wanted = run::repository()?.join("agentiso-mcp/tests/clients").join(name);
    let content = fs::read_to_string(&wanted).map_err(run::at("read", &wanted))?;
    let folder = work.join("clients").join(name);
    let marker = folder.join("installed");
    // It holds what is installed and where that is.
    let key = |path: &Path| format!("{}\n{content}", path.display());
    if let Ok(present) = fs::read_to_string(&marker)
        && let Some((path, _)) = present.split_once('\n')
        && present == key(Path::new(path))
    {
        println!("what {name} names is installed");
        return Ok(path.into());
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(run::at("remove", &folder))?;
    }
    fs::create_dir_all(&folder).map_err(run::at("create", &folder))?;
    let path = install(&folder, &wanted)?;
    fs::write(&marker, key(&path)).map_err(run::at("write", &marker))?;
    Ok(path)
}

/// Returns the Python that has it.
fn install_python(folder: &Path, wanted: &Path) -> Done<PathBuf> {
    let environment = folder.join("environment");
    run::run(Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
    let python = environment.join("bin/python");
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1", "-r"];
    run::run(Command::new(&python).args(pip).arg(wanted))?;
    Ok(python)
}

/// Returns the folder of its packages.
fn install_node(folder: &Path, wanted: &Path) -> Done<PathBuf> {
    run::run(Command::new("node").arg("--version"))?;
    let package = folder.join(PACKAGE);
    fs::copy(wanted, &package).map_err(run::at("write", &package))?;
    let arguments =
        ["install", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock"];
    run::run(Command::new("npm").args(arguments).args(["--fetch-retries", "1"]).current_dir(folder))?;
    Ok(folder.join("node_modules"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installs(_: &Path, _: &Path) -> Done<PathBuf> {
        Ok("/somewhere/python".into())
    }

    fn is_not_asked(_: &Path, _: &Path) -> Done<PathBuf> {
        panic!("installed twice")
    }

    fn fails(_: &Path, _: &Path) -> Done<PathBuf> {
        Err(run::Failure::new("no way to the registry"))
    }

    #[test]
    fn client_is_installed_once_and_again_when_another_is_wanted() {
        let work = std::env::temp_dir().join(format!("xtask-clients-{}", std::process::id()));
        let once = |install| install_once(&work, REQUIREMENTS, install);
        let failed = once(fails).is_err();
        let (first, second) = (once(installs).unwrap(), once(is_not_asked).unwrap());
        fs::write(work.join("clients").join(REQUIREMENTS).join("installed"), "/x\nmcp==0\n").unwrap();
        let failed_for_another = once(fails).is_err();
        fs::remove_dir_all(&work).unwrap();

        assert!(failed && failed_for_another);
        assert_eq!((first, second), ("/somewhere/python".into(), "/somewhere/python".into()));
    }
}
