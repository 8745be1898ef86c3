//! `mcp`.

use agentiso_mcp::RunError;

pub(crate) use agentiso_mcp::McpArgs;

use crate::{context::Context, error::CliError, stdio};

pub(crate) async fn mcp(args: McpArgs, context: &Context) -> Result<u8, CliError> {
    let config = context.config()?;
    if let Some(printed) = args.print(&config)? {
        match &printed.json {
            Some(json) => context.output.print(json, |_| printed.text.clone())?,
            None => stdio::write_out(printed.text.as_bytes()).map_err(CliError::stdout)?,
        }
        return Ok(0);
    }
    args.serve(&config, context.host().await?.clone()).await?;
    Ok(0)
}

impl From<RunError> for CliError {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Engine(error) => error.into(),
            error => Self::Mcp(Box::new(error)),
        }
    }
}
