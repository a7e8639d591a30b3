//! A guest has the vCPUs that were asked for, and its launch record says how many (SPEC 3.2, 3.4).

use coffer_attestation::Statement as _;
use coffer_attestation::launch::LaunchRecord;
use serde_json::{Value, json};

use crate::world::enter;

/// Prints the CPUs the guest's kernel has brought up, and lets each of them run something.
const SCRIPT: &str = "\
b=/bin/busybox; n=$($b grep -c ^processor /proc/cpuinfo); i=0
while [ $i -lt $n ]; do $b taskset $((1 << i)) $b true && echo \"RAN on $i\"; i=$((i + 1)); done
echo BEGIN end";

pub fn recipe() -> Value {
    json!({
        "name": "vcpus",
        "workload": { "argv": ["/bin/busybox", "sh", "-c", SCRIPT] },
        "network": { "mode": "none" },
    })
}

#[track_caller]
fn check(name: &str, more: &[&str], vcpus: u8) {
    let world = enter();
    let launch = world.host.run("vcpus", name, more).unwrap();
    assert!(launch.ok, "{launch:?}");
    let log = world.finished_log(name, "BEGIN end");
    let vm = world.host.inspect(name).unwrap();
    world.host.remove(name).unwrap();
    let ran: Vec<&str> = log.lines().filter_map(|line| line.strip_prefix("RAN on ")).collect();
    assert_eq!(ran, (0..vcpus).map(|n| n.to_string()).collect::<Vec<_>>(), "{log}");
    let record = hex::decode(vm["measurements"]["launch_record"].as_str().unwrap()).unwrap();
    assert_eq!(LaunchRecord::decode(&record).unwrap().vcpus, vcpus);
    assert_eq!(
        LaunchRecord::digest(&record).to_string(),
        vm["measurements"]["launch_digest"].as_str().unwrap()
    );
}

#[test]
fn a_guest_runs_on_one_vcpu_unless_asked_otherwise() {
    check("one", &[], 1);
}

#[test]
fn a_guest_runs_on_two_vcpus() {
    check("two", &["--open", "--vcpus", "2"], 2);
}
