//! A process of the management's own on a lab host, which tries what it must not be able to do (SPEC 1.7).
//!
//! Only lab hosts have it, beside the [`crate::probe`]. One connection, one errand: a line of JSON says under which uid
//! what is to be tried; a program started under that uid tries one after the other and says what came of each. An errand
//! ends by itself: the program is killed after [`LIMIT`]. Under uid 0 it is the twin of an attempt, or makes what the
//! others need.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::probe::PROGRAM;

pub mod attempt;
mod hold;

pub use attempt::{Attempt, Process, Subject};
pub use hold::{HOLDS, LOOKS, QUIT};

/// Port on a lab host.
pub const PORT: u16 = 7074;
/// Longest an errand may take.
const LIMIT: Duration = Duration::from_secs(50);
/// Longest request or answer.
const LINE_MAX: u64 = 1 << 20;

/// What to try, and as whom.
#[derive(Debug, Serialize, Deserialize)]
struct Errand {
    uid: u32,
    attempts: Vec<Attempt>,
}

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It was done; what was seen.
    Done(String),
    /// The kernel did not allow it to this uid (EPERM, EACCES).
    Denied,
    /// It failed otherwise.
    Failed(String),
}

impl Outcome {
    fn of(result: io::Result<String>) -> Self {
        match result {
            Ok(seen) => Self::Done(seen),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Self::Denied,
            Err(error) => Self::Failed(error.to_string()),
        }
    }
}

/// Serves errands for as long as the host runs.
pub fn serve() {
    let listener = match TcpListener::bind(("0.0.0.0", PORT)) {
        Ok(listener) => listener,
        Err(error) => return eprintln!("coffer-lab: no intruder: {error}"),
    };
    for stream in listener.incoming().filter_map(Result::ok) {
        std::thread::spawn(move || {
            if let Err(error) = run(&stream) {
                eprintln!("coffer-lab: an errand failed: {error:#}");
            }
        });
    }
}

fn run(mut stream: &TcpStream) -> Result<()> {
    let mut request = Vec::new();
    stream.take(LINE_MAX).read_to_end(&mut request)?;
    let Errand { uid, .. } = serde_json::from_slice(&request)?;
    let mut child = Command::new(PROGRAM)
        .arg("intrude")
        .env_clear()
        .current_dir("/")
        // Leaves root's groups too.
        .uid(uid)
        .gid(uid)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("no input")?;
    let output = child.stdout.take().context("no output")?;
    let reader = std::thread::spawn(move || {
        let mut answer = Vec::new();
        output.take(LINE_MAX).read_to_end(&mut answer).map(|_| answer)
    });
    input.write_all(&request)?;
    drop(input);
    let deadline = Instant::now() + LIMIT;
    while child.try_wait()?.is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill()?;
    child.wait()?;
    let answer = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
    stream.write_all(&answer)?;
    Ok(())
}

/// In the program under the errand's uid.
pub fn intrude() -> Result<()> {
    let Errand { attempts, .. } = serde_json::from_reader(io::stdin().lock())?;
    let outcomes: Vec<Outcome> = attempts.iter().map(|a| Outcome::of(a.make())).collect();
    serde_json::to_writer(io::stdout().lock(), &outcomes)?;
    Ok(())
}

/// Has attempts made on the host behind a port on 127.0.0.1; the outcome of each.
pub fn send(port: u16, uid: u32, attempts: &[Attempt]) -> Result<Vec<Outcome>> {
    let mut stream =
        TcpStream::connect(("127.0.0.1", port)).context("the intruder does not answer")?;
    stream.set_read_timeout(Some(LIMIT + Duration::from_secs(10)))?;
    serde_json::to_writer(&stream, &Errand { uid, attempts: attempts.to_vec() })?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let outcomes: Vec<Outcome> =
        serde_json::from_slice(&answer).context("the intruder did not finish")?;
    ensure!(outcomes.len() == attempts.len(), "outcomes are missing: {outcomes:?}");
    Ok(outcomes)
}

/// Where cores that were caught are counted.
pub const CORES: &str = "/run/coffer-cores";
/// The kernel's setting that brings them there.
pub const CORE_PATTERN: &str = "|/usr/bin/coffer-lab catch-core %p";

/// Takes a core from the kernel and notes the process it was of. The kernel starts it beneath the host's root.
pub fn catch_core(pid: u32) -> Result<()> {
    crate::probe::enter_host()?;
    let bytes = io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    let mut cores = fs::OpenOptions::new().create(true).append(true).open(CORES)?;
    writeln!(cores, "{pid} {bytes}")?;
    Ok(())
}
