//! The other end of QEMU's `guestfwd`: standard input and output to a port on 127.0.0.1.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

use anyhow::{Context as _, Result};

/// Copies both ways until either side is done.
pub fn run(port: u16) -> Result<()> {
    let out = TcpStream::connect(("127.0.0.1", port)).context("nobody listens")?;
    out.set_nodelay(true)?;
    let back = out.try_clone()?;
    std::thread::spawn(move || {
        // The peer's end of the connection is the end of this program.
        let _ = copy(&back, io::stdout().lock());
        std::process::exit(0);
    });
    copy(io::stdin().lock(), &out)?;
    out.shutdown(Shutdown::Write)?;
    // The other thread ends the program once the answer is through.
    loop {
        std::thread::park();
    }
}

/// Unlike `io::copy` to a buffered writer, passes on each piece at once.
fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            n => {
                to.write_all(buffer.get(..n).unwrap_or_default())?;
                to.flush()?;
            }
        }
    }
}
