//! Asking before something is removed.

use std::io::{self, IsTerminal, Write};

use crate::{context::Context, error::CliError, stdio};

/// Whether there is somebody at a terminal who can be asked.
pub(super) fn can_ask(context: &Context) -> bool {
    !context.output.json && io::stdin().is_terminal()
}

/// Asks a question that wants a yes.
pub(super) async fn confirmed(question: &str) -> Result<bool, CliError> {
    let mut terminal = io::stderr();
    let _ = write!(terminal, "{question} [y/N] ");
    let _ = terminal.flush();
    let answer = match stdio::stdin_chunks().recv().await {
        Some(Ok(line)) => line,
        Some(Err(source)) => return Err(CliError::local("could not read the answer", source)),
        None => Vec::new(),
    };
    Ok(matches!(answer.trim_ascii(), b"y" | b"Y" | b"yes"))
}
