//! `port`.

use agentiso_core::{PortForward, types::GuestPort};
use clap::{Args, Subcommand};
use serde_json::json;

use super::args::{Port, guest_port, port as port_pair};
use crate::{context::Context, error::CliError, output::table};

/// Forward TCP ports of the host's loopback to a workspace
#[derive(Debug, Args)]
pub(crate) struct PortArgs {
    #[command(subcommand)]
    command: PortCommand,
}

#[derive(Debug, Subcommand)]
enum PortCommand {
    /// Forward a port; prints the host's address and the machine's port
    Add {
        /// The workspace
        #[arg(value_name = "WORKSPACE")]
        workspace: String,
        /// Port of the host (a free one is picked if none is given) and port of the machine
        #[arg(value_name = "[HOST:]GUEST", value_parser = port_pair)]
        ports: Port,
    },
    /// End a forward
    Rm {
        /// The workspace
        #[arg(value_name = "WORKSPACE")]
        workspace: String,
        /// Port of the machine
        #[arg(value_name = "GUEST", value_parser = guest_port)]
        guest: GuestPort,
    },
    /// List the forwards
    Ls {
        /// The workspace
        #[arg(value_name = "WORKSPACE")]
        workspace: String,
    },
}

pub(crate) async fn port(args: PortArgs, context: &Context) -> Result<u8, CliError> {
    match args.command {
        PortCommand::Add { workspace, ports } => {
            let workspace = context.workspace(&workspace).await?;
            let forward = workspace.add_forward(ports.guest, ports.host).await?;
            context.output.print(&forward, |forward| format!("{}\n", text(forward)))?;
        }
        PortCommand::Rm { workspace, guest } => {
            let workspace = context.workspace(&workspace).await?;
            workspace.remove_forward(guest).await?;
            context.output.print_json_only(&json!({ "guest_port": guest, "removed": true }))?;
        }
        PortCommand::Ls { workspace } => {
            let forwards = context.workspace(&workspace).await?.forwards().await?;
            context.output.print(&forwards, |forwards| listing(forwards))?;
        }
    }
    Ok(0)
}

/// `127.0.0.1:8080 -> 80`.
pub(super) fn text(forward: &PortForward) -> String {
    format!("127.0.0.1:{} -> {}", forward.host_port, forward.guest_port)
}

fn listing(forwards: &[PortForward]) -> String {
    let rows: Vec<Vec<String>> = forwards
        .iter()
        .map(|forward| vec![forward.guest_port.to_string(), format!("127.0.0.1:{}", forward.host_port)])
        .collect();
    table(&["GUEST", "HOST"], &rows)
}
