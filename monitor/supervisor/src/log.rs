//! The monitor's log: each event is one line of printable ASCII, whoever chose the words in it (SPEC 6.4). What callers,
//! images and guests say ends up here by way of errors; none of it begins a line or speaks to a terminal.

use std::io::{self, Write};

use tracing_subscriber::EnvFilter;

/// Starts it, on standard error.
pub fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // A second call, as in tests, finds one in place.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| OneLine)
        .with_ansi(false)
        .try_init();
}

/// Takes an event with its final newline at once, as `tracing_subscriber` writes it.
struct OneLine;

impl Write for OneLine {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = event.strip_suffix(b"\n").unwrap_or(event);
        let plain = |byte: &u8| if matches!(byte, b' '..=b'~') { *byte } else { b'?' };
        let line: Vec<u8> = text.iter().map(plain).chain([b'\n']).collect();
        io::stderr().write_all(&line).map(|()| event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
