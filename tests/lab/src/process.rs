//! Programs the lab runs: bounded in time, never left behind.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::guard;

/// A program that runs beside us in a process group of its own; killed when dropped.
pub struct Running {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Running {
    /// Starts it; output and errors go to `log`.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let name = Path::new(command.get_program())
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let out = File::create(log).with_context(|| format!("cannot make `{}`", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start `{name}`; run `cargo xtask setup`"))?;
        guard::watch(child.id())?;
        Ok(Self { child, name, log: log.to_path_buf() })
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// An error if it has ended, with the last lines it wrote.
    pub fn must_live(&mut self) -> Result<()> {
        if let Some(status) = self.ended()? {
            bail!("`{}` ended ({status}):\n{}", self.name, tail(&self.log, 20));
        }
        Ok(())
    }

    /// Waits for its own end, then ends it.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                self.kill();
                bail!("`{}` did not end in {} s", self.name, limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks it to end, and ends it if it does not.
    pub fn stop(&mut self, grace: Duration) {
        let _ = killpg(self.group(), Signal::SIGTERM);
        if self.wait(grace).is_err() {
            self.kill();
        }
    }

    /// Ends its whole group.
    pub fn kill(&mut self) {
        // Both fail only if it is gone already.
        let _ = killpg(self.group(), Signal::SIGKILL);
        let _ = self.child.wait();
    }

    fn group(&self) -> Pid {
        // A process id is positive and fits: the kernel's limit is 2^22.
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        guard::forget(self.child.id());
    }
}

/// What a program that ended had to say.
#[derive(Debug, Clone)]
pub struct Said {
    /// True if it ended well.
    pub ok: bool,
    /// Exit code, if it was not killed.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// Runs a program to its end.
pub fn run(command: &mut Command, limit: Duration) -> Result<Said> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start `{name}`"))?;
    // Its group is not ours: Ctrl-C does not reach it, the guard does.
    let group = child.id();
    guard::watch(group)?;
    let out = collect(child.stdout.take());
    let err = collect(child.stderr.take());
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            let _ = killpg(Pid::from_raw(group.cast_signed()), Signal::SIGKILL);
            let _ = child.wait();
            guard::forget(group);
            bail!(
                "`{name}` did not end in {} s; it said: {}",
                limit.as_secs(),
                err.join().unwrap_or_default()
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    guard::forget(group);
    Ok(Said {
        ok: status.success(),
        code: status.code(),
        out: out.join().unwrap_or_default(),
        err: err.join().unwrap_or_default(),
    })
}

/// Runs a program that must end well, and returns its output.
pub fn must<I: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = I>,
) -> Result<String> {
    let said = run(Command::new(program).args(arguments), Duration::from_secs(60))?;
    if !said.ok {
        bail!("`{program}` failed: {}{}", said.out, said.err);
    }
    Ok(said.out)
}

fn collect(pipe: Option<impl std::io::Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read until the failure is still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The last lines of a file.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}
