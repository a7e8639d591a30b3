//! Standard output and standard error: results for programs on the one, progress for people on the other.
//!
//! Progress shows on a terminal only. What a guest printed is hostile: on a terminal its control
//! characters are made visible, into a file or pipe it goes byte for byte.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::error::{Error, one_line};

/// Prints one line to standard output.
pub fn line(text: impl std::fmt::Display) -> Result<(), Error> {
    finish(writeln!(io::stdout().lock(), "{text}"))
}

/// Prints text as it is.
pub fn text(text: &str) -> Result<(), Error> {
    finish(io::stdout().lock().write_all(text.as_bytes()))
}

/// Prints a value as indented JSON.
pub fn json(value: &impl Serialize) -> Result<(), Error> {
    let text =
        serde_json::to_string_pretty(value).map_err(|e| Error::Output(io::Error::other(e)))?;
    line(text)
}

/// Prints a table with a header and columns aligned by spaces, as docker does.
pub fn table<R>(header: &[&str], rows: impl IntoIterator<Item = R>) -> Result<(), Error>
where
    R: IntoIterator<Item = String>,
{
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.into_iter().map(|cell| one_line(&cell)).collect::<Vec<_>>());
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    line(table.lines().map(|l| l.trim_end().to_owned()).collect::<Vec<_>>().join("\n"))
}

/// Prints `name: value` lines, names aligned.
pub fn pairs(rows: &[(&str, String)]) -> Result<(), Error> {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    for (name, value) in rows {
        line(format_args!("{:width$} {}", format!("{name}:"), one_line(value)))?;
    }
    Ok(())
}

/// Prints lines of untrusted text without their control characters.
pub fn untrusted(text: &str) -> Result<(), Error> {
    line(
        text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect::<String>(),
    )
}

/// A message for people, on standard error.
pub fn note(text: impl std::fmt::Display) {
    // Nobody is left to tell if standard error is gone.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A reader that went away (`coffer ps | head -1`) ends the command quietly and well.
fn finish(result: io::Result<()>) -> Result<(), Error> {
    match result.and_then(|()| io::stdout().lock().flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(Error::Output),
    }
}

/// A step under way; silent where standard error is not a terminal, gone when dropped.
pub struct Step(ProgressBar);

impl Step {
    /// Starts to show `text`.
    pub fn start(text: impl Into<String>) -> Self {
        if !io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new_spinner().with_message(text.into());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed:>5.dim}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(bar)
    }

    /// Shows another text.
    pub fn set(&self, text: impl Into<String>) {
        self.0.set_message(text.into());
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Passes on what a guest printed.
pub struct GuestOutput {
    visible: bool,
    after_c2: bool,
}

impl GuestOutput {
    /// To standard output.
    pub fn new() -> Self {
        Self { visible: io::stdout().is_terminal(), after_c2: false }
    }

    /// To standard output byte for byte, though it be a terminal.
    pub fn raw() -> Self {
        Self { visible: false, after_c2: false }
    }

    /// Writes a chunk.
    pub fn write(&mut self, chunk: &[u8]) -> Result<(), Error> {
        let mut out = io::stdout().lock();
        let result = if self.visible {
            let safe = self.make_visible(chunk);
            out.write_all(&safe)
        } else {
            out.write_all(chunk)
        };
        drop(out);
        finish(result)
    }

    /// Control characters as `^X`: a guest must not drive the terminal of whoever reads its log. C1
    /// controls are `C2 80`..`C2 9F` in UTF-8; dropping their second byte disarms them.
    fn make_visible(&mut self, chunk: &[u8]) -> Vec<u8> {
        let mut safe = Vec::with_capacity(chunk.len());
        for &byte in chunk {
            let c1 = self.after_c2 && (0x80..=0x9f).contains(&byte);
            self.after_c2 = byte == 0xc2;
            match byte {
                b'\n' | b'\t' => safe.push(byte),
                b'\r' => {}
                0..0x20 | 0x7f => safe.extend([b'^', byte ^ 0x40]),
                _ if c1 => safe.push(b'?'),
                _ => safe.push(byte),
            }
        }
        safe
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(chunks: &[&[u8]]) -> Vec<u8> {
        let mut out = GuestOutput { visible: true, after_c2: false };
        chunks.iter().flat_map(|c| out.make_visible(c)).collect()
    }

    #[test]
    fn a_guest_cannot_drive_the_terminal() {
        assert_eq!(shown(&[b"a\x1b[2Jb\r\n"]), b"a^[[2Jb\n");
        assert_eq!(shown(&[b"\x7f\x07"]), b"^?^G");
        assert!(!shown(&[b"x\xc2", b"\x9b31m"]).contains(&0x9b));
    }

    #[test]
    fn ordinary_utf8_passes() {
        let text = "größe \u{a0}✓".as_bytes();
        assert_eq!(shown(&[text]), text);
    }
}
