//! Wrong usage, in the same two lines as every other error.
//!
//! clap's own messages run over several lines; the first paragraph says what is wrong, a `tip:` or the
//! help of the command what to try. Help and version are passed through as they are.

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::error::one_line;
use crate::output;

/// Reports what clap found; 2 for wrong usage, 0 for help that was asked for.
pub fn report(error: &clap::Error) -> ExitCode {
    let shown = matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    if shown {
        // A closed pipe is the reader's choice.
        let _ = error.print();
        return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    }
    output::note(two_lines(error));
    ExitCode::from(2)
}

fn two_lines(error: &clap::Error) -> String {
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let what = first.strip_prefix("error: ").unwrap_or(first);
    format!("error: {}\nhint: {}", what_is_wrong(what), hint(error, &text))
}

/// A list of arguments, one to a line, becomes one clause.
fn what_is_wrong(paragraph: &str) -> String {
    let mut lines = paragraph.lines().map(str::trim).filter(|l| !l.is_empty());
    let head = lines.next().unwrap_or("the arguments are not usable").replace('\'', "`");
    let rest: Vec<_> = lines.map(one_line).collect();
    match rest.is_empty() {
        true => one_line(&head),
        false => format!("{} {}", one_line(&head), rest.join(", ")),
    }
}

fn hint(error: &clap::Error, text: &str) -> String {
    let tip = text.lines().find_map(|l| l.trim().strip_prefix("tip: "));
    if let Some(tip) = tip {
        return one_line(tip).replace('\'', "`");
    }
    if error.kind() == ErrorKind::ValueValidation {
        return "the same command with `--help` says what the value looks like".into();
    }
    let usage = match error.get(ContextKind::Usage) {
        Some(ContextValue::StyledStr(usage)) => one_line(&usage.to_string()),
        _ => "Usage: coffer <COMMAND>".into(),
    };
    let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage);
    match usage.strip_suffix(" <COMMAND>") {
        Some(group) => format!("`{group} --help` lists the commands"),
        None => format!("usage: {usage}"),
    }
}
