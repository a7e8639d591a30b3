//! A second monitor on a lab host, on real KVM, killed at many moments of a launch (SPEC 6.4.3).
//!
//! The host's own monitor is PID 1's service: its end is the host's. This one is a developer's, beside it, with a state
//! directory, a socket and a part of the control groups of its own. The story runs on the host, because only there can
//! one kill a monitor and see what is left; the test reads it as lines of JSON.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::probe;

/// Port of the story on a lab host.
pub const PORT: u16 = 7073;
/// Where the second monitor keeps its things.
const FOLDER: &str = "/run/second";
/// Its part of the control groups.
const GROUP: &str = "/sys/fs/cgroup/second";
/// A port that its VM publishes.
const PUBLISHED: u16 = 9443;
/// Moments after the request, milliseconds: among the copying, the measuring, the starting, and after the vCPUs run.
const MOMENTS: [u64; 6] = [0, 120, 300, 700, 1500, 4000];
/// Longest that anything here may take.
const LIMIT: Duration = Duration::from_secs(40);

/// Serves the story for as long as the host runs; each connection has it told once.
pub fn serve() {
    let listener = match TcpListener::bind(("0.0.0.0", PORT)) {
        Ok(listener) => listener,
        Err(error) => return eprintln!("coffer-lab: the second monitor's story: {error}"),
    };
    for mut stream in listener.incoming().map_while(Result::ok) {
        let end = match story(&mut stream) {
            Ok(()) => json!({ "done": true }),
            Err(error) => json!({ "error": format!("{error:#}") }),
        };
        // Who asked may be gone.
        let _ = writeln!(stream, "{end}");
    }
}

/// Becomes the second monitor, in a control group where it disturbs no other.
pub fn become_second() -> Result<()> {
    let inner = Path::new(GROUP).join("monitor");
    let group = if inner.exists() { inner } else { GROUP.into() };
    fs::create_dir_all(&group)?;
    fs::write(group.join("cgroup.procs"), std::process::id().to_string())?;
    let error = Command::new(probe::MONITOR)
        .args(["serve", "--profile", "developer", "--images", "/var/lib/coffer/images"])
        .args(["--socket", &format!("{FOLDER}/api.sock"), "--state", &format!("{FOLDER}/state")])
        .exec();
    Err(error.into())
}

struct Second(Child);

impl Second {
    fn start() -> Result<Self> {
        let _ = fs::create_dir_all(FOLDER);
        let child = Command::new(probe::PROGRAM).arg("second-monitor").stdin(Stdio::null()).spawn();
        let mut second = Self(child.context("cannot start the second monitor")?);
        wait("the second monitor's API", || {
            ensure!(second.0.try_wait()?.is_none(), "the second monitor ended");
            Ok(call("GET", "/v1/vms", "").is_ok().then_some(()))
        })?;
        Ok(second)
    }

    /// As by a crash.
    fn kill(mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn story(out: &mut TcpStream) -> Result<()> {
    for moment in MOMENTS {
        let seen = one_life(moment).with_context(|| format!("killed after {moment} ms"))?;
        writeln!(out, "{seen}")?;
    }
    writeln!(out, "{}", launched_again()?)?;
    clean_up()
}

/// A launch, a kill `moment` later, and what the next monitor finds.
fn one_life(moment: u64) -> Result<Value> {
    let second = Second::start()?;
    let asked = std::thread::spawn(|| create("no"));
    std::thread::sleep(Duration::from_millis(moment));
    let processes = processes()?;
    second.kill()?;
    // However far it was: the connection has ended with the monitor.
    let answered = asked.join().is_ok_and(|answer| answer.is_ok());
    let second = Second::start()?;
    ensure!(self::processes()? == 0, "processes are left");
    let known = list()?;
    ensure!(known.len() <= 1, "{known:?}");
    for vm in &known {
        ensure!(vm["state"] == "failed" && vm["reason"] == "monitor-ended", "{vm}");
        ensure!(call("DELETE", "/v1/vms/victim", "")?.0 == 204, "it cannot be removed");
    }
    // One that the caller was told of is known.
    ensure!(!answered || known.len() == 1, "a VM that ran is not known");
    TcpListener::bind(("0.0.0.0", PUBLISHED)).context("its port is not free")?;
    second.kill()?;
    Ok(json!({ "moment": moment, "answered": answered, "processes": processes, "known": known }))
}

/// One whose policy is `always` runs again, as another instance, under the next monitor.
fn launched_again() -> Result<Value> {
    let second = Second::start()?;
    let before = create("always")?;
    second.kill()?;
    let second = Second::start()?;
    let after = wait("the VM that is to be launched again", || {
        let vm = list()?.into_iter().next().context("no VM is known")?;
        let runs = ["booting", "started", "attested", "running"];
        Ok(vm["state"].as_str().is_some_and(|state| runs.contains(&state)).then_some(vm))
    })?;
    ensure!(processes()? > 0, "nothing runs");
    let stop = r#"{"grace_s":0}"#;
    ensure!(call("POST", "/v1/vms/victim/stop", stop)?.0 == 200, "it cannot be stopped");
    ensure!(call("DELETE", "/v1/vms/victim", "")?.0 == 204, "it cannot be removed");
    second.kill()?;
    Ok(json!({ "before": before, "after": after }))
}

fn clean_up() -> Result<()> {
    // Those made ahead end with their group, or with the next monitor: this one is told to end in order.
    let mut second = Second::start()?;
    let pid = rustix::process::Pid::from_child(&second.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    wait("the second monitor's end", || Ok(second.0.try_wait()?))?;
    for group in ["vms", "monitor", ""] {
        let _ = fs::remove_dir(Path::new(GROUP).join(group));
    }
    fs::remove_dir_all(FOLDER)?;
    Ok(())
}

fn create(policy: &str) -> Result<Value> {
    let request = json!({
        "image": "vcpus", "name": "victim", "box": "closed", "restart": { "policy": policy },
        "publish": [{ "host": PUBLISHED, "guest": 443 }],
    });
    let (status, vm) = call("POST", "/v1/vms", &request.to_string())?;
    ensure!(status == 201, "{status}: {vm}");
    Ok(vm)
}

fn list() -> Result<Vec<Value>> {
    let (_, vms) = call("GET", "/v1/vms", "")?;
    Ok(vms.as_array().cloned().unwrap_or_default())
}

/// Processes in groups of the second monitor's VMs.
fn processes() -> Result<usize> {
    let groups = match fs::read_dir(Path::new(GROUP).join("vms")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
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

fn call(method: &str, path: &str, body: &str) -> Result<(u16, Value)> {
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

fn wait<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
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
