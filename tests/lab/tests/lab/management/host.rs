//! What the host has beside processes: files, devices, sockets, ports, and the routes of its API.

use coffer_lab::appliance::SITE_PORT;
use coffer_lab::initrd::API_PORT;
use coffer_lab::intruder::attempt::TWIN_SOCKET;
use coffer_lab::intruder::{self, Attempt, Outcome};
use coffer_lab::scene::PUBLISHED;
use coffer_lab::{crash, probe, rival};

use super::{ROOT, STRANGER, attempt, call, done, site_is_well};
use crate::world::enter;

#[test]
fn no_file_device_or_socket_of_the_host_is_open_to_a_process_without_privilege() {
    let world = enter();
    let host = &world.host;
    let id = host.inspect("site").unwrap()["vm"]["id"].as_str().unwrap().to_owned();
    let (group, state) = (format!("/sys/fs/cgroup/vms/{id}"), "/run/coffer/monitor");
    let in_group = ["cgroup.freeze", "cgroup.kill", "cgroup.procs", "memory.max", "cpu.max"]
        .map(|file| Attempt::Write(format!("{group}/{file}").into()));
    let mut attempts = vec![
        Attempt::Write("/dev/kvm".into()),
        Attempt::Write("/dev/tpmrm0".into()),
        Attempt::Read("/dev/vda".into()),
        Attempt::Connect("/run/coffer/monitor.sock".into()),
        Attempt::List(state.into()),
        Attempt::Write(format!("{state}/lock").into()),
        Attempt::List(format!("{state}/vms").into()),
        Attempt::Write("/etc/coffer/host.json".into()),
        Attempt::Write("/etc/passwd".into()),
        Attempt::Write("/proc/sys/kernel/core_pattern".into()),
        Attempt::Write("/proc/sysrq-trigger".into()),
        Attempt::Read("/sys/kernel/security/tpm0/binary_bios_measurements".into()),
    ];
    attempts.extend(in_group);
    let denied = host.intrude(STRANGER, &attempts).unwrap();
    for (attempt, outcome) in attempts.iter().zip(denied) {
        assert_eq!(outcome, Outcome::Denied, "{attempt:?}");
    }
    for (attempt, outcome) in attempts.iter().zip(host.intrude(ROOT, &attempts).unwrap()) {
        assert!(matches!(outcome, Outcome::Done(_)), "as root: {attempt:?}: {outcome:?}");
    }
    site_is_well(&world);
}

#[test]
fn a_vm_has_no_socket_with_a_name_and_no_port_but_those_published() {
    let world = enter();
    let named = done(&world.host, Attempt::NamedSockets);
    let mut named: Vec<&str> = named.lines().collect();
    named.sort_unstable();
    // No control channel of swtpm, no monitor of a hypervisor; the second is the look's own.
    assert_eq!(named, ["/run/coffer/monitor.sock", &format!("@{TWIN_SOCKET}")]);
    let ports = done(&world.host, Attempt::Ports);
    let known = [API_PORT, probe::PORT, crash::PORT, intruder::PORT, rival::PORT, PUBLISHED];
    assert_eq!(ports, known.map(|port| port.to_string()).join("\n"));
}

#[test]
fn nobody_on_the_host_reaches_the_attestation_channel_of_a_vm() {
    let world = enter();
    // The guest does: it said `attested` over it.
    assert!(world.site.timing("attested").is_some());
    let port = coffer_attestation::channel::PORT;
    for cid in [1, 2, 3] {
        let outcome = attempt(&world.host, ROOT, Attempt::Vsock(cid, port));
        assert!(!matches!(outcome, Outcome::Done(_)), "CID {cid}: {outcome:?}");
    }
}

#[test]
fn the_port_of_another_cannot_be_taken() {
    let world = enter();
    for port in [API_PORT, PUBLISHED] {
        let outcome = attempt(&world.host, STRANGER, Attempt::Listen(port));
        assert!(matches!(&outcome, Outcome::Failed(why) if why.contains("in use")), "{outcome:?}");
        let publish = format!("{port}:{SITE_PORT}");
        let launch = world.host.run("tools", "thief", &["-p", &publish]).unwrap();
        assert!(!launch.ok && launch.vm.is_none(), "{launch:?}");
        assert!(launch.message.contains(&port.to_string()), "{launch:?}");
    }
    let free = attempt(&world.host, STRANGER, Attempt::Listen(PUBLISHED + 1));
    assert!(matches!(free, Outcome::Done(_)), "{free:?}");
    site_is_well(&world);
}

/// What other monitors of VMs have routes for.
const ROUTES: [&str; 26] = [
    "memory",
    "mem",
    "dump",
    "core",
    "coredump",
    "debug",
    "debugger",
    "gdb",
    "exec",
    "attach",
    "snapshot",
    "migrate",
    "save",
    "disks",
    "drives",
    "nics",
    "tpm",
    "vtpm",
    "kernel",
    "cmdline",
    "state",
    "attested",
    "secrets",
    "environment",
    "signal",
    "actions",
];

#[test]
fn the_api_has_no_route_into_a_vm() {
    let world = enter();
    for route in ROUTES {
        for method in ["GET", "PUT", "POST", "PATCH", "DELETE"] {
            let path = format!("/v1/vms/site/{route}");
            let (status, body) = call(&world.host, method, &path, "{}");
            assert!([404, 405].contains(&status), "{method} {path}: {status} {body}");
        }
    }
    let (status, body) = call(&world.host, "PATCH", "/v1/vms/site", r#"{"state":"attested"}"#);
    assert_eq!(status, 405, "{body}");
    assert_eq!(call(&world.host, "GET", "/v1/vms/site", "").0, 200);
    site_is_well(&world);
}
