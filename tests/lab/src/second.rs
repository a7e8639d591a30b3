//! A second monitor on a lab host, beside the one that is PID 1's service: that one's end is the host's. This one is a
//! developer's, with a state directory, a socket and a part of the control groups of its own.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::probe;

/// Where it keeps its things.
pub const FOLDER: &str = "/run/second";
/// Its part of the control groups.
const GROUP: &str = "/sys/fs/cgroup/second";
/// Longest that anything here may take.
pub const LIMIT: Duration = Duration::from_secs(40);

/// Becomes the second monitor, in a control group where it disturbs no other.
pub fn become_second(flags: &[String]) -> Result<()> {
    let inner = Path::new(GROUP).join("monitor");
    let group = if inner.exists() { inner } else { GROUP.into() };
    fs::create_dir_all(&group)?;
    fs::write(group.join("cgroup.procs"), std::process::id().to_string())?;
    let error = Command::new(probe::MONITOR)
        .args(["serve", "--profile", "developer", "--images", "/var/lib/coffer/images"])
        .args(["--socket", &format!("{FOLDER}/api.sock"), "--state", &format!("{FOLDER}/state")])
        .args(flags)
        .exec();
    Err(error.into())
}

/// It, while it runs; killed when dropped.
pub struct Second(Child);

impl Second {
    /// Starts it with these flags more, and waits until it answers.
    pub fn start(flags: &[&str]) -> Result<Self> {
        let _ = fs::create_dir_all(FOLDER);
        let mut command = Command::new(probe::PROGRAM);
        command.arg("second-monitor").arg("--").args(flags).stdin(Stdio::null());
        let mut second = Self(command.spawn().context("cannot start the second monitor")?);
        wait("the second monitor's API", || {
            ensure!(second.0.try_wait()?.is_none(), "the second monitor ended");
            Ok(call("GET", "/v1/vms", "").is_ok().then_some(()))
        })?;
        Ok(second)
    }

    /// As by a crash.
    pub fn kill(mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }

    /// Ends it in order, and removes what it leaves: what it made ahead ends with it.
    pub fn end(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.0), Signal::TERM)?;
        wait("the second monitor's end", || Ok(self.0.try_wait()?))?;
        for group in ["vms", "monitor", ""] {
            let _ = fs::remove_dir(Path::new(GROUP).join(group));
        }
        fs::remove_dir_all(FOLDER)?;
        Ok(())
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Processes in groups of its VMs.
pub fn processes() -> Result<usize> {
    let groups = match fs::read_dir(Path::new(GROUP).join("vms")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    let mut count = 0;
    for group in groups {
        // A group may end while it is looked at.
        let inside = fs::read_to_string(group?.path().join("cgroup.procs")).unwrap_or_default();
        count += inside.lines().count();
    }
    Ok(count)
}

/// Asks it something; status and body.
pub fn call(method: &str, path: &str, body: &str) -> Result<(u16, Value)> {
    let mut stream = UnixStream::connect(format!("{FOLDER}/api.sock"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, serde_json::from_str(body).unwrap_or_default()))
}

/// Looks until there is something to see.
pub fn wait<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("{what}: not within {} s", LIMIT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
