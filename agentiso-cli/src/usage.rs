//! Wrong command lines, and requests for help.

use std::{ffi::OsString, process::ExitCode};

use agentiso_core::ErrorKind;
use clap::{
    CommandFactory,
    error::{ContextKind, ContextValue, ErrorKind as ClapErrorKind},
};

use crate::{
    cli::Cli,
    context::Context,
    error::{self, CliError},
    exit, stdio,
};

/// Says what was wrong with the command line, or prints the help that was asked for.
pub(crate) fn report(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    if !error.use_stderr() {
        // Help is what was asked for. A reader that has gone away is no failure.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let words = own_words(arguments);
    if words.contains(&"--json") {
        error::print_json(ErrorKind::InvalidParams, &summary(error), next_step(error, &words).as_deref());
    } else {
        let _ = error.print();
    }
    ExitCode::from(status(&words))
}

/// Neither a command nor `--version` was given.
pub(crate) fn no_command(context: &Context) -> Result<u8, CliError> {
    if context.output.json {
        error::print_json(ErrorKind::InvalidParams, "a command is missing", Some("see `agentiso --help`"));
    } else {
        stdio::say(&Cli::command().render_help().to_string());
    }
    Ok(exit::USAGE)
}

/// The words up to `--`: what comes after it belongs to the guest.
fn own_words(arguments: &[OsString]) -> Vec<&str> {
    arguments.iter().skip(1).filter_map(|word| word.to_str()).take_while(|word| *word != "--").collect()
}

/// 125 where the status otherwise is that of the guest's command, which may well be 2, or that of a comparison.
fn status(words: &[&str]) -> u8 {
    match words.iter().find(|word| !word.starts_with('-')) {
        Some(&"run" | &"exec" | &"shell" | &"diff") => exit::AGENTISO_FAILED,
        _ => exit::USAGE,
    }
}

/// The first paragraph of clap's message, on one line, without "error: ".
fn summary(error: &clap::Error) -> String {
    if error.kind() == ClapErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "a command is missing".to_owned();
    }
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let first = text.split("\n\n").next().unwrap_or(text);
    first.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn next_step(error: &clap::Error, words: &[&str]) -> Option<String> {
    for kind in [ContextKind::SuggestedSubcommand, ContextKind::SuggestedArg] {
        match error.get(kind) {
            Some(ContextValue::String(suggestion)) => return Some(format!("did you mean {suggestion}?")),
            Some(ContextValue::Strings(suggestions)) if !suggestions.is_empty() => {
                return Some(format!("did you mean {}?", suggestions.join(" or ")));
            }
            _ => {}
        }
    }
    let command = words.iter().find(|word| !word.starts_with('-'));
    Some(match command {
        Some(command) if error.kind() != ClapErrorKind::InvalidSubcommand => {
            format!("see `agentiso {command} --help`")
        }
        _ => "see `agentiso --help`".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn status_of_a_wrong_line_depends_on_whose_status_it_otherwise_is() {
        for (line, expected) in [
            ("agentiso run --bogus", 125),
            ("agentiso --json exec", 125),
            ("agentiso shell", 125),
            ("agentiso create --memory 1", 2),
            ("agentiso bogus", 2),
            ("agentiso ls run", 2),
        ] {
            assert_eq!(status(&own_words(&words(line))), expected, "{line}");
        }
    }

    #[test]
    fn json_behind_the_double_dash_is_the_guests() {
        assert!(!own_words(&words("agentiso run -- ls --json")).contains(&"--json"));
    }

    #[test]
    fn summary_is_one_line_that_names_the_bounds() {
        let error = Cli::try_parse_from(["agentiso", "create", "--memory", "9000"]).unwrap_err();

        let text = summary(&error);

        assert!(text.contains("9000") && text.contains("128 to 8192 MiB"), "{text}");
        assert!(!text.contains('\n') && !text.starts_with("error"), "{text}");
    }

    #[test]
    fn next_step_suggests_what_was_probably_meant() {
        let error = Cli::try_parse_from(["agentiso", "creat"]).unwrap_err();

        assert!(next_step(&error, &["creat"]).unwrap().contains("create"));
    }
}
