//! A second monitor on a lab host, on real KVM, killed at many moments of a launch (SPEC 6.4.3).
//!
//! The story runs on the host, because only there can one kill a monitor and see what is left; the test reads it as lines
//! of JSON.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::second::{Second, call, processes, wait};

/// Port of the story on a lab host.
pub const PORT: u16 = 7073;
/// A port that its VM publishes.
const PUBLISHED: u16 = 9443;
/// Moments after the request, milliseconds: among the copying, which takes longest here, the measuring and the starting;
/// and one that comes with the answer, once the vCPUs run.
const MOMENTS: [Option<u64>; 7] =
    [Some(0), Some(1500), Some(2500), Some(2800), Some(3200), Some(4000), None];

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

fn story(out: &mut TcpStream) -> Result<()> {
    for moment in MOMENTS {
        let seen = one_life(moment).with_context(|| format!("killed after {moment:?} ms"))?;
        writeln!(out, "{seen}")?;
    }
    writeln!(out, "{}", launched_again()?)?;
    clean_up()
}

/// A launch, a kill `moment` later or with its answer, and what the next monitor finds.
fn one_life(moment: Option<u64>) -> Result<Value> {
    let second = Second::start(&[])?;
    let asked = std::thread::spawn(|| create("no"));
    match moment {
        Some(moment) => std::thread::sleep(Duration::from_millis(moment)),
        None => wait("the answer", || Ok(asked.is_finished().then_some(())))?,
    }
    let processes = processes()?;
    second.kill()?;
    // However far it was: the connection has ended with the monitor.
    let answered = asked.join().is_ok_and(|answer| answer.is_ok());
    let second = Second::start(&[])?;
    ensure!(crate::second::processes()? == 0, "processes are left");
    let known = list()?;
    ensure!(known.len() <= 1, "{known:?}");
    for vm in &known {
        // It may have ended for a reason of its own before its monitor did.
        ensure!(vm["state"] == "failed" && vm["reason"].is_string(), "{vm}");
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
    let second = Second::start(&[])?;
    let before = create("always")?;
    second.kill()?;
    let second = Second::start(&[])?;
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
    Second::start(&[])?.end()
}

fn create(policy: &str) -> Result<Value> {
    let request = json!({
        "image": "site", "name": "victim", "box": "closed", "restart": { "policy": policy },
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
