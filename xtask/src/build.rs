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

    let mut agent = run::cargo();
    agent.args([
        "build",
        "--release",
        "--target",
        AGENT_TARGET,
        "-p",
        "agentiso-guest",
        "--features",
        "agent",
    ]);
    agent
        .args(["--bin", "agentiso-guest"])
        .env("RUSTFLAGS", AGENT_FLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    run::run(&mut agent)?;

    let folder = target.join("release");
    let agent = target.join(AGENT_TARGET).join("release/agentiso-guest");
    copy_if_changed(&agent, &folder.join("agentiso-guest"))?;
    Ok(Built { folder })
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
