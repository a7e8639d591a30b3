//! Another verifier as a judge: a command that reads one case and says accept or reject (`ADAPTERS.md`).

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::judge::{Input, Judge, Verdict};

/// How long a verifier may take; one that starts a Python interpreter and three tools needs a second.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most bytes of an answer that are read.
const ANSWER_MAX: u64 = 64 << 10;

/// A command line for `sh`.
pub struct Adapter {
    command: String,
}

/// What the command reads.
#[derive(Serialize)]
struct Question<'a> {
    version: u8,
    surface: &'a str,
    files: std::collections::BTreeMap<&'a str, String>,
}

/// What the command writes.
#[derive(Deserialize)]
struct Answer {
    verdict: String,
    #[serde(default)]
    reason: String,
}

impl Adapter {
    /// Takes a command line.
    pub fn new(command: impl Into<String>) -> Self {
        Self { command: command.into() }
    }

    fn ask(&self, input: &Input) -> Result<Answer, String> {
        let files = input.files.iter().map(|(name, file)| (name.as_str(), STANDARD.encode(file)));
        let question =
            Question { version: 1, surface: input.surface.name(), files: files.collect() };
        let question = serde_json::to_vec(&question).map_err(|e| e.to_string())?;
        let mut child = Command::new("sh")
            .args(["-c", &self.command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("does not start: {e}"))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        // The command may answer before it has read everything, or never: neither side may wait for the other.
        let writer = std::thread::spawn(move || {
            stdin.map(|mut stdin| stdin.write_all(&question)).transpose()
        });
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            stdout.map(|out| out.take(ANSWER_MAX).read_to_string(&mut text)).transpose()?;
            Ok::<_, std::io::Error>(text)
        });
        wait(&mut child)?;
        // A command that refused by the look of it may have left input unread.
        let _ = writer.join();
        let text = reader.join().map_err(|_| "its answer could not be read".to_owned())?;
        let text = text.map_err(|e| format!("its answer could not be read: {e}"))?;
        serde_json::from_str(text.trim()).map_err(|e| format!("its answer makes no sense: {e}"))
    }
}

/// Waits for the end of the command, which must end well: the verdict is in the answer.
fn wait(child: &mut Child) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match child.try_wait().map_err(|e| e.to_string())? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => return Err(format!("ended with {status}")),
            None if Instant::now() > deadline => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("did not answer in {} s", PATIENCE.as_secs()));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

impl Judge for Adapter {
    fn judge(&self, input: &Input) -> Verdict {
        match self.ask(input) {
            Err(detail) => Verdict::Broken(detail),
            Ok(answer) => match answer.verdict.as_str() {
                "accept" => Verdict::Accept,
                "reject" => Verdict::Reject(answer.reason),
                "unsupported" => Verdict::Unsupported,
                other => Verdict::Broken(format!("verdict `{other}` is none")),
            },
        }
    }

    fn speaks_codes(&self) -> bool {
        false
    }

    fn name(&self) -> String {
        self.command.clone()
    }
}
