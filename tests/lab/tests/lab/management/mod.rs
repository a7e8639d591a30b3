//! A management role that is hostile and has every right it can have: the API, the image store, and processes of its own
//! on the host (SPEC 1.7, 2.2, 2.5). What it tries is refused or changes what is measured; the same succeeds where the
//! defence is not.
//!
//! `monitor/supervisor/tests/management.rs` has what needs no VM, `refusals.rs` what a changed image comes to.

mod host;
mod images;
mod processes;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use coffer_lab::appliance;
use coffer_lab::host::LabHost;
use coffer_lab::initrd::API_PORT;
use coffer_lab::intruder::{Attempt, Outcome, Process};
use serde_json::{Value, json};

use crate::world::World;

/// Reads from its disk without end, and says what it read.
const WATCH: &str = "\
b=/bin/busybox; echo \"CMDLINE $($b cat /proc/cmdline)\"
while true; do
    echo 3 > /proc/sys/vm/drop_caches; echo \"READ $($b sha256sum < /usr/bin/tpm2)\"; $b sleep 1
done";

/// Images of these tests.
pub fn build_images(images: &Path, tools: &Path, site: &Path, pin: &Value) -> Result<()> {
    let workload = |script: &str| json!({ "argv": ["/bin/busybox", "sh", "-c", script] });
    let watcher =
        json!({ "name": "watcher", "workload": workload(WATCH), "cmdline": [images::MARKED] });
    appliance::build(&watcher, tools, &images.join("watcher"))?;
    let silent = json!({
        "name": "silent",
        "workload": workload("echo SPEAKS; exec /bin/busybox sleep 1000"),
        "network": { "mode": "none" },
        "console": "none",
    });
    appliance::build(&silent, tools, &images.join("silent"))?;
    let mut older = appliance::site_recipe(pin, &[]);
    older["svn"] = json!(0);
    appliance::build(&older, site, &images.join("site-older")).map(drop)
}

/// A uid that owns nothing on a host.
const STRANGER: u32 = 4242;
const ROOT: u32 = 0;

/// Has one thing tried.
#[track_caller]
fn attempt(host: &LabHost, uid: u32, attempt: Attempt) -> Outcome {
    host.intrude(uid, &[attempt]).unwrap().remove(0)
}

/// What root sees or does on the host.
#[track_caller]
fn done(host: &LabHost, what: Attempt) -> String {
    match attempt(host, ROOT, what.clone()) {
        Outcome::Done(seen) => seen,
        other => panic!("{what:?}: {other:?}"),
    }
}

/// The host's processes.
fn all_processes(host: &LabHost) -> Vec<Process> {
    serde_json::from_str(&done(host, Attempt::Processes)).unwrap()
}

/// The processes of a VM, in this order: VM process, vTPM, network backend.
fn processes_of(host: &LabHost, vm: &str) -> [Process; 3] {
    let id = host.inspect(vm).unwrap()["vm"]["id"].as_str().unwrap().to_owned();
    let group = format!("/vms/{id}");
    let mut all = all_processes(host);
    all.retain(|process| process.group.ends_with(&group));
    ["coffer-vmm", "swtpm", "passt"].map(|name| {
        let found = all.iter().find(|process| process.name.starts_with(name));
        found.unwrap_or_else(|| panic!("no `{name}` in {all:?}")).clone()
    })
}

/// Status and body of the API's answer.
fn call(host: &LabHost, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", host.port(API_PORT).unwrap())).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

/// The site serves its page: whatever was tried, it is as it was.
#[track_caller]
fn site_is_well(world: &World) {
    let site = &world.host.inspect("site").unwrap()["vm"];
    let before = &world.site.vm.as_ref().unwrap()["vm"];
    assert_eq!((&site["state"], &site["id"]), (&json!("running"), &before["id"]));
    world.scene.fetch(&world.host).unwrap();
}
