//! A machine in five lines. Wants `cargo xtask build` to have filled the state folder, and an image `debian`.

use agentiso_core::{Config, Host, WorkspaceSpec};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let host = Host::open(Config::from_env()?).await?;
    let workspace = host.create(WorkspaceSpec::new("debian")).await?;
    let output = workspace.exec("python3 -c 'print(6 * 7)'; uname -r").await?;
    print!("{}", output.stdout_text());
    Ok(workspace.destroy().await?)
}
