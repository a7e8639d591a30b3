//! A person at the console of an open box: `coffer console` with what is typed and seen in our hands.

use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::{guard, workspace};

/// What a shell says when it is ready, in the form no command line that is echoed has.
const PROMPT: &str = "ready> ";

/// An open console.
pub struct Console {
    child: Child,
    input: ChildStdin,
    seen: Arc<Mutex<Vec<u8>>>,
    /// How much of it was dealt with.
    read: usize,
}

impl Console {
    /// Opens the console of a VM of the monitor at `api`.
    pub fn open(api: &str, vm: &str) -> Result<Self> {
        let mut child = Command::new(workspace::program("coffer")?)
            .args(["console", vm])
            .env("COFFER_HOST", api)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("cannot start `coffer console`")?;
        guard::watch(child.id())?;
        let input = child.stdin.take().context("the console has no input")?;
        let mut output = child.stdout.take().context("the console has no output")?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let to = seen.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                let bytes = buffer.get(..n).unwrap_or_default();
                to.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            }
        });
        Ok(Self { child, input, seen, read: 0 })
    }

    /// Types.
    pub fn send(&mut self, text: &str) -> Result<()> {
        self.input.write_all(text.as_bytes()).context("the console is gone")
    }

    /// Waits for a text, and returns all from where the last wait ended to its end.
    pub fn expect(&mut self, text: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let new: String =
                seen.iter().skip(self.read).map(|byte| char::from(byte & 0x7F)).collect();
            if let Some((before, _)) = new.split_once(text) {
                self.read += before.len() + text.len();
                return Ok(format!("{before}{text}"));
            }
            if Instant::now() > deadline || self.child.try_wait()?.is_some() {
                bail!("no `{text}` came from the console, but:\n{new}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Logs in and gets a shell with a plain prompt.
    pub fn log_in(&mut self, user: &str, password: &str, limit: Duration) -> Result<()> {
        self.expect("login: ", limit)?;
        self.send(&format!("{user}\n"))?;
        self.expect("Password: ", limit)?;
        self.send(&format!("{password}\n"))?;
        self.expect("# ", limit)?;
        // In two parts, so that what is echoed is not taken for it; and a shell that edits no lines.
        self.send("stty -echo cols 200; export PS1='ready''> '; exec sh\n")?;
        self.expect(PROMPT, limit).map(drop)
    }

    /// Runs a command line; what it printed.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<String> {
        self.send(&format!("{command}\n"))?;
        let said = self.expect(PROMPT, limit)?;
        Ok(said.strip_suffix(PROMPT).unwrap_or(&said).replace('\r', "").trim().to_owned())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // Both fail only if it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        guard::forget(self.child.id());
    }
}
