//! `cargo xtask build`: everything that a user of agentiso runs, and a filled state folder.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::run::{self, Done};

/// The agent runs where there is no libc.
const AGENT_FLAGS: &str = "-C target-feature=+crt-static";
const AGENT_TARGET: &str = "x86_64-unknown-linux-gnu";

/// Where the built programs are.
pub(crate) struct Built {
    pub(crate) folder: PathBuf,
}

impl Built {
    /// The command line.
    pub(crate) fn agentiso(&self) -> Command {
        Command::new(self.folder.join("agentiso"))
    }
}

/// Makes the Debian image of a state folder that `init` has filled, unless it has one with the modules of its kernel.
/// `agentiso` gives the command line at that folder.
pub(crate) fn ensure_image(agentiso: impl Fn() -> Command) -> Done {
    if is_current(&agentiso)? {
        println!("the image debian is up to date");
        return Ok(());
    }
    run::run(agentiso().args(["image", "build", "debian"]))
}

fn is_current(agentiso: impl Fn() -> Command) -> Done<bool> {
    if !run::succeeds(agentiso().args(["image", "info", "debian"])) {
        return Ok(false);
    }
    let image = run::output(agentiso().args(["image", "info", "debian", "--json"]))?;
    let installed = run::output(agentiso().args(["init", "--json"]))?;
    let (Some(modules), Some(state)) =
        (json_text(&image, "modules_sha256"), json_text(&installed, "state_dir"))
    else {
        return Ok(false);
    };
    let manifest = Path::new(state).join("lib/manifest.json");
    let manifest = fs::read_to_string(&manifest).map_err(run::at("read", &manifest))?;
    Ok(manifest.contains(modules))
}

/// The text after a key, in JSON of our own that has each key once and no escapes in this text.
pub(crate) fn json_text<'a>(json: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = json.split_once(&format!("\"{key}\""))?;
    rest.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?.split('"').next()
}

pub(crate) fn build_all() -> Done {
    let built = build()?;
    run::run(built.agentiso().arg("init"))
}

/// Builds all programs; the agent ends up beside the others, where `agentiso init` looks for it.
pub(crate) fn build() -> Done<Built> {
    let target = run::target_folder()?;
    let mut programs = run::cargo();
    programs.args(["build", "--release", "-p", "agentiso-cli", "-p", "agentiso-mcp", "-p", "agentiso-core"]);
    programs.args([
        "--features",
        "agentiso-core/shim",
        "--bin",
        "agentiso",
        "--bin",
        "agentiso-mcp",
        "--bin",
        "agentiso-shim",
    ]);
    run::run(&mut programs)?;

    run::run(&mut agent("agent"))?;

    let folder = target.join("release");
    let agent = target.join(AGENT_TARGET).join("release/agentiso-guest");
    copy_if_changed(&agent, &folder.join("agentiso-guest"))?;
    Ok(Built { folder })
}

/// Builds the agent that misbehaves when it is told to. In a folder of its own: nothing that is installed ever comes from
/// there.
pub(crate) fn hostile_agent() -> Done<PathBuf> {
    let folder = run::target_folder()?.join("hostile");
    run::run(agent("hostile").arg("--target-dir").arg(&folder))?;
    Ok(folder.join(AGENT_TARGET).join("release/agentiso-guest"))
}

/// What builds the agent with a feature of it.
fn agent(feature: &str) -> Command {
    let mut agent = run::cargo();
    agent.args(["build", "--release", "--target", AGENT_TARGET, "-p", "agentiso-guest"]);
    agent.args(["--features", feature, "--bin", "agentiso-guest"]);
    agent.env("RUSTFLAGS", AGENT_FLAGS).env_remove("CARGO_ENCODED_RUSTFLAGS");
    agent
}

fn copy_if_changed(from: &Path, to: &Path) -> Done {
    let content = fs::read(from).map_err(run::at("read", from))?;
    if fs::read(to).is_ok_and(|present| present == content) {
        return Ok(());
    }
    // Whole or not at all, and never into a file that runs.
    let temporary = to.with_extension(format!("tmp{}", std::process::id()));
    fs::copy(from, &temporary).map_err(run::at("write", &temporary))?;
    fs::rename(&temporary, to).map_err(run::at("write", to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_found_by_its_key_in_compact_and_indented_json() {
        assert_eq!(json_text(r#"{"a":"1","modules_sha256":"ab"}"#, "modules_sha256"), Some("ab"));
        assert_eq!(json_text("{\n  \"state_dir\": \"/x y\"\n}", "state_dir"), Some("/x y"));
        assert_eq!(json_text(r#"{"state_dir":7}"#, "state_dir"), None);
        assert_eq!(json_text("", "state_dir"), None);
    }
}
