//! `--version`.

use agentiso_guest::PROTOCOL_GENERATION;
use serde::Serialize;

use crate::{context::Context, error::CliError};

/// What this is.
#[derive(Debug, Serialize)]
struct Version {
    version: &'static str,
    protocol_generation: u32,
    /// The QEMU that machines would run in; none if there is none.
    qemu: Option<String>,
}

pub(crate) async fn print(context: &Context) -> Result<u8, CliError> {
    let qemu = context.qemu().await?;
    let version =
        Version { version: env!("CARGO_PKG_VERSION"), protocol_generation: PROTOCOL_GENERATION, qemu };
    context.output.print(&version, |version| {
        let qemu = version.qemu.as_deref().unwrap_or("no QEMU found");
        format!("agentiso {}\nprotocol generation {}\n{qemu}\n", version.version, version.protocol_generation)
    })?;
    Ok(0)
}
