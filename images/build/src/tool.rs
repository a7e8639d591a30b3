//! Running the outside tools: no shell, no locale, no inherited time stamp, output captured.

use std::io;
use std::process::{Command, Output, Stdio};

use crate::BuildError;

/// A command with what would make its output vary taken away.
pub fn command(tool: &str) -> Command {
    let mut command = Command::new(tool);
    command
        .env("LC_ALL", "C")
        .env_remove("SOURCE_DATE_EPOCH")
        .env_remove("LD_PRELOAD")
        .stdin(Stdio::null());
    command
}

/// Runs it to the end and returns what it wrote.
pub fn run(tool: &'static str, command: &mut Command) -> Result<Vec<u8>, BuildError> {
    let Output { status, stdout, stderr } =
        command.output().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => BuildError::NoTool { tool },
            _ => BuildError::Tool { tool, message: error.to_string() },
        })?;
    if status.success() {
        return Ok(stdout);
    }
    let text = String::from_utf8_lossy(&stderr);
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).map(str::trim);
    Err(BuildError::Tool { tool, message: last.map_or_else(|| status.to_string(), Into::into) })
}
