//! A guest reaches what its host reaches, and not its host: whoever reaches the management API may run VMs
//! (SPEC 1.7, 6.6).

use coffer_lab::initrd::{ADDRESS, API_PORT};
use coffer_lab::{machine, probe};
use serde_json::{Value, json};

use crate::world::enter;

/// The guest's gateway, which some backends map to the host.
const GATEWAY: &str = "192.168.76.1";

/// Tries to connect to each, and says how that ended; `-e` starts a program only on a connection.
pub fn recipe() -> Value {
    let targets: Vec<String> =
        cases().iter().map(|(address, port, _)| format!("{address} {port}")).collect();
    let script = format!(
        "b=/bin/busybox
try() {{ if $b nc -w 2 $1 $2 -e $b true; then echo \"TRY $1:$2 connected\"; else echo \"TRY $1:$2 refused\"; fi; }}
try {}; echo BEGIN end",
        targets.join("; try ")
    );
    json!({
        "name": "egress",
        "workload": { "argv": ["/bin/busybox", "sh", "-c", script] },
    })
}

/// Each address with what must come of it. The verifier comes first and last: the network was there all the while.
fn cases() -> [(&'static str, u16, &'static str); 6] {
    [
        (machine::VERIFIER_ADDRESS, 443, "connected"),
        (ADDRESS, API_PORT, "refused"),
        (ADDRESS, probe::PORT, "refused"),
        (GATEWAY, API_PORT, "refused"),
        ("127.0.0.1", API_PORT, "refused"),
        (machine::VERIFIER_ADDRESS, 443, "connected"),
    ]
}

#[test]
fn a_guest_reaches_the_verifier_and_no_port_of_its_host() {
    let world = enter();
    let launch = world.host.run("egress", "egress", &[]).unwrap();
    assert!(launch.ok, "{launch:?}");
    let log = world.finished_log("egress", "BEGIN end");
    world.host.remove("egress").unwrap();
    let said: Vec<&str> = log.lines().filter_map(|line| line.strip_prefix("TRY ")).collect();
    let expected = cases().map(|(address, port, outcome)| format!("{address}:{port} {outcome}"));
    assert_eq!(said, expected, "{log}");
}
